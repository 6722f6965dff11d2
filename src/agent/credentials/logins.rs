//! The logins that kubelets sent, by the registry and repository that they were sent for.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::kept::{self, Kept, Record};
use crate::containerd::runtime::v1::AuthConfig;
use crate::oci::{ImageName, Repository};
use crate::registry::{Login, Logins, Secret};

/// Most repositories whose logins are held. Beyond that, the login that was sent the longest ago is
/// dropped. A node has some hundred.
const MAX_REPOSITORIES: usize = 1024;
/// A longer secret is not a login: the tokens of cloud providers have some KiB.
const MAX_SECRET_BYTES: usize = 64 << 10;

/// The logins of the pods on this node. Clones share them.
#[derive(Clone, Default)]
pub struct CriCredentials(Arc<Mutex<LoginTable>>);

#[derive(Default)]
struct LoginTable {
    by_repository: HashMap<Key, Entry>,
    /// Counts the recorded logins, to know the oldest.
    noted: u64,
    /// The memory that also holds all of it, if it outlives this process.
    kept: Option<Kept>,
}

/// The source of an image: the host as images name it, and the repository.
type Key = (String, Repository);

#[derive(Clone)]
struct Entry {
    login: Login,
    number: u64,
}

/// A recorded login, and the one that it replaced.
pub(super) struct RecordedLogin {
    key: Key,
    number: u64,
    before: Option<Entry>,
}

impl CriCredentials {
    /// Creates memory for [`Self::kept_in`]. It is freed when its last descriptor is closed.
    pub fn memory() -> io::Result<OwnedFd> {
        kept::memory()
    }

    /// Starts with the logins in `memory`, and stores all logins there from now on.
    pub fn kept_in(memory: OwnedFd) -> Self {
        let (kept, records) = Kept::open(memory);
        let mut held = LoginTable {
            kept: Some(kept),
            ..LoginTable::default()
        };
        for record in records.iter().take(MAX_REPOSITORIES) {
            if let Ok(repository) = record.repository.parse() {
                held.insert((record.host.clone(), repository), record.login());
            }
        }
        Self(Arc::new(Mutex::new(held)))
    }

    /// Returns the login that was last sent for images of this image's repository.
    pub fn for_image(&self, reference: &str) -> Option<Login> {
        let image: ImageName = reference.parse().ok()?;
        self.find(&image.host, &image.repository)
    }

    /// Returns all logins, for `Upstreams`.
    pub fn logins(&self) -> Logins {
        let credentials = self.clone();
        Logins::new(move |host, repository| credentials.find(host, repository))
    }

    fn find(&self, host: &str, repository: &Repository) -> Option<Login> {
        let key = (host.to_owned(), repository.clone());
        self.held()
            .by_repository
            .get(&key)
            .map(|entry| entry.login.clone())
    }

    /// Records the login of a pull of `reference`. Returns `None` if it is not a login for its
    /// registry.
    pub(super) fn note(&self, reference: &str, auth: &AuthConfig) -> Option<RecordedLogin> {
        let image: ImageName = reference.parse().ok()?;
        let login = login(auth, &image.host)?;
        let key = (image.host, image.repository);
        let mut held = self.held();
        if held.by_repository.len() >= MAX_REPOSITORIES && !held.by_repository.contains_key(&key) {
            held.forget_oldest();
        }
        let before = held.insert(key.clone(), login);
        held.keep();
        Some(RecordedLogin {
            key,
            number: held.noted,
            before,
        })
    }

    /// Withdraws a recorded login and restores the previous one, unless a newer login has replaced
    /// it: the pull that sent it failed, and running containers may need the previous login.
    pub(super) fn withdraw(&self, noted: RecordedLogin) {
        let mut held = self.held();
        if held
            .by_repository
            .get(&noted.key)
            .is_none_or(|entry| entry.number != noted.number)
        {
            return;
        }
        match noted.before {
            Some(before) => held.by_repository.insert(noted.key, before),
            None => held.by_repository.remove(&noted.key),
        };
        held.keep();
    }

    fn held(&self) -> MutexGuard<'_, LoginTable> {
        self.0.lock()
    }
}

impl LoginTable {
    /// Returns the previous entry of this repository.
    fn insert(&mut self, key: Key, login: Login) -> Option<Entry> {
        self.noted += 1;
        self.by_repository.insert(
            key,
            Entry {
                login,
                number: self.noted,
            },
        )
    }

    fn keep(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        let mut entries: Vec<_> = self.by_repository.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.number);
        let record = |((host, repository), entry): (&Key, &Entry)| {
            Record::new(host, repository.as_str(), &entry.login)
        };
        if let Err(error) = kept.write(entries.into_iter().map(record).collect()) {
            tracing::warn!(%error, "logins of pods not stored; they will not outlive a restart");
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .by_repository
            .iter()
            .min_by_key(|(_, entry)| entry.number);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.by_repository.remove(&key);
        }
    }
}

impl fmt::Debug for CriCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CriCredentials({})", self.held().by_repository.len())
    }
}

/// Reads a login as containerd does (`pkg/cri/server/image_pull.go`, `ParseAuth`), which ignores a
/// registry token.
fn login(auth: &AuthConfig, host: &str) -> Option<Login> {
    let AuthConfig {
        username,
        password,
        auth: encoded,
        server_address,
        identity_token,
    } = auth;
    let longest = [username, password, encoded, identity_token]
        .into_iter()
        .map(String::len)
        .max();
    if longest.is_some_and(|length| length > MAX_SECRET_BYTES) {
        tracing::warn!(host, "credentials of a pull ignored; they are too long");
        return None;
    }
    if !server_address.is_empty() && host_of(server_address).as_deref() != Some(host) {
        return None;
    }
    if !username.is_empty() {
        return Some(Login::Password {
            user: username.clone(),
            password: Secret::new(password),
        });
    }
    if !identity_token.is_empty() {
        return Some(Login::Identity(Secret::new(identity_token)));
    }
    Login::from_basic(encoded)
}

/// Returns the host of a registry as images name it, from a host or URL as in Docker's
/// configuration.
fn host_of(address: &str) -> Option<String> {
    let bare = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    let host = bare.split('/').next().unwrap_or(bare);
    let image: ImageName = format!("{host}/a/b").parse().ok()?;
    Some(image.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> AuthConfig {
        AuthConfig {
            username: name.to_owned(),
            password: "secret".to_owned(),
            ..AuthConfig::default()
        }
    }

    fn known(credentials: &CriCredentials, reference: &str) -> String {
        match credentials.for_image(reference) {
            None => "nothing".to_owned(),
            Some(Login::Anonymous) => "anonymous".to_owned(),
            Some(Login::Password { user, password }) => format!("{user}:{}", password.expose()),
            Some(Login::Identity(token)) => format!("identity:{}", token.expose()),
        }
    }

    #[test]
    fn a_login_is_for_all_of_its_repository_and_nothing_else() {
        let credentials = CriCredentials::default();
        credentials.note("nginx:1", &user("me")).unwrap();
        let digest = crate::oci::Digest::sha256_of(b"x");
        for reference in [
            "docker.io/library/nginx:2",
            "nginx",
            "index.docker.io/library/nginx:1",
        ] {
            assert_eq!(known(&credentials, reference), "me:secret", "{reference}");
        }
        assert_eq!(known(&credentials, &format!("nginx@{digest}")), "me:secret");
        for reference in [
            "docker.io/other/nginx:1",
            "ghcr.io/library/nginx:1",
            "nginx/x",
            "not an image",
        ] {
            assert_eq!(known(&credentials, reference), "nothing", "{reference}");
        }
        credentials.note("nginx:2", &user("another")).unwrap();
        assert_eq!(known(&credentials, "nginx:1"), "another:secret");
    }

    #[test]
    fn every_form_of_login_is_read() {
        let token = AuthConfig {
            identity_token: "refresh".to_owned(),
            ..AuthConfig::default()
        };
        let encoded = AuthConfig {
            auth: "bWU6c2U6Y3JldA==".to_owned(),
            ..AuthConfig::default()
        };
        let both = AuthConfig {
            identity_token: "refresh".to_owned(),
            ..user("me")
        };
        for (auth, expected) in [
            (token, "identity:refresh"),
            (encoded, "me:se:cret"),
            (both, "me:secret"),
        ] {
            let credentials = CriCredentials::default();
            credentials.note("ghcr.io/a/b:1", &auth).unwrap();
            assert_eq!(known(&credentials, "ghcr.io/a/b:1"), expected);
        }
        let nonsense = AuthConfig {
            auth: "?".to_owned(),
            ..AuthConfig::default()
        };
        let huge = user(&"x".repeat(MAX_SECRET_BYTES + 1));
        for auth in [AuthConfig::default(), nonsense, huge] {
            assert!(
                CriCredentials::default()
                    .note("ghcr.io/a/b:1", &auth)
                    .is_none()
            );
        }
    }

    #[test]
    fn a_login_for_another_registry_is_not_used() {
        let at = |address: &str| AuthConfig {
            server_address: address.to_owned(),
            ..user("me")
        };
        for (image, address, is_used) in [
            ("nginx", "https://index.docker.io/v1/", true),
            ("nginx", "docker.io", true),
            ("127.0.0.1:5000/a/b", "http://127.0.0.1:5000/v2/", true),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5001", false),
            ("ghcr.io/a/b", "https://index.docker.io/v1/", false),
            ("ghcr.io/a/b", "::", false),
        ] {
            let credentials = CriCredentials::default();
            assert_eq!(
                credentials.note(image, &at(address)).is_some(),
                is_used,
                "{image} at {address}"
            );
        }
    }

    #[test]
    fn withdrawing_a_login_restores_the_previous_one() {
        let credentials = CriCredentials::default();
        let first = credentials.note("ghcr.io/a/b:1", &user("first")).unwrap();
        let second = credentials.note("ghcr.io/a/b:1", &user("second")).unwrap();
        credentials.withdraw(first);
        assert_eq!(
            known(&credentials, "ghcr.io/a/b:1"),
            "second:secret",
            "a newer login stays"
        );
        credentials.withdraw(second);
        assert_eq!(known(&credentials, "ghcr.io/a/b:1"), "first:secret");
        let only = credentials.note("ghcr.io/c/d:1", &user("only")).unwrap();
        credentials.withdraw(only);
        assert_eq!(known(&credentials, "ghcr.io/c/d:1"), "nothing");
    }

    #[test]
    fn logins_in_kept_memory_outlive_the_process_that_recorded_them() {
        let memory = CriCredentials::memory().unwrap();
        let reopened = || CriCredentials::kept_in(memory.try_clone().unwrap());
        let credentials = reopened();
        credentials.note("ghcr.io/a/b:1", &user("first")).unwrap();
        let token = AuthConfig {
            identity_token: "refresh".to_owned(),
            ..AuthConfig::default()
        };
        credentials.note("nginx", &token).unwrap();
        let failed = credentials.note("ghcr.io/a/b:1", &user("second")).unwrap();
        assert_eq!(known(&reopened(), "ghcr.io/a/b:1"), "second:secret");
        credentials.withdraw(failed);
        drop(credentials);
        assert_eq!(known(&reopened(), "ghcr.io/a/b:2"), "first:secret");
        assert_eq!(
            known(&reopened(), "docker.io/library/nginx:1"),
            "identity:refresh"
        );
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_secrets_are_not_shown() {
        let credentials = CriCredentials::default();
        for number in 0..MAX_REPOSITORIES {
            credentials
                .note(&format!("ghcr.io/a/r{number}"), &user("me"))
                .unwrap();
        }
        credentials.note("ghcr.io/a/r0", &user("again")).unwrap();
        credentials.note("ghcr.io/a/new", &user("me")).unwrap();
        assert_eq!(known(&credentials, "ghcr.io/a/r0"), "again:secret");
        assert_eq!(known(&credentials, "ghcr.io/a/r1"), "nothing");
        assert_eq!(known(&credentials, "ghcr.io/a/new"), "me:secret");
        assert_eq!(
            format!("{credentials:?}"),
            format!("CriCredentials({MAX_REPOSITORIES})")
        );
        let shown = format!("{:?}", user("me"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
