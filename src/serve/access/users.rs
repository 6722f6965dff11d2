//! The users of this server: names with passwords in a file of `htpasswd -B`, and names with
//! tokens. Both files are read again when they have changed.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::registry::Secret;
use crate::telemetry::log::chain;

/// How often a file is checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The longest file: some hundred thousand users.
const MAX_FILE: u64 = 16 << 20;
/// The shortest token that counts: shorter ones can be guessed.
const MIN_TOKEN: usize = 20;
/// Passwords that are compared at once. Each takes a tenth of a second of processor time.
const COMPARED_AT_ONCE: usize = 2;
/// Why a file of users cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("{} cannot be read", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}, line {line}: {problem}", file.display())]
    Line {
        file: PathBuf,
        line: usize,
        problem: &'static str,
    },
}

/// The form of a file's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Passwords,
    Tokens,
}

/// The parsed lines: hashes of passwords by user, or users by the hash of their token.
type Entries = HashMap<String, String>;

#[derive(Debug)]
struct UserFile {
    path: PathBuf,
    form: Form,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    entries: Arc<Entries>,
    modified: Option<SystemTime>,
    looked: Instant,
}

/// All users of this server.
#[derive(Debug)]
pub(super) struct Users {
    passwords: Option<UserFile>,
    tokens: Option<UserFile>,
    comparing: Semaphore,
}

impl Users {
    /// Reads the files.
    pub(super) fn open(
        passwords: Option<&Path>,
        tokens: Option<&Path>,
    ) -> Result<Self, UsersError> {
        let open = |path: Option<&Path>, form| path.map(|path| UserFile::open(path, form));
        Ok(Self {
            passwords: open(passwords, Form::Passwords).transpose()?,
            tokens: open(tokens, Form::Tokens).transpose()?,
            comparing: Semaphore::new(COMPARED_AT_ONCE),
        })
    }

    /// Whether the password is that of this user. `None` if there is no such user.
    pub(super) async fn has_password(&self, user: &str, password: &Secret) -> Option<bool> {
        let entries = self.passwords.as_ref()?.entries();
        let known = entries.get(user);
        let is_known = known.is_some();
        // The password of an unknown user is compared too, so that the time of the answer does not
        // show which users exist.
        let hash = known.or_else(|| entries.values().next())?.clone();
        let password = password.clone();
        let _place = self.comparing.acquire().await.ok()?;
        let compared = tokio::task::spawn_blocking(move || {
            bcrypt::verify(password.expose(), &hash).unwrap_or(false)
        });
        let is_right = compared.await.unwrap_or(false);
        is_known.then_some(is_right)
    }

    /// The user with this token.
    pub(super) fn with_token(&self, token: &Secret) -> Option<String> {
        let entries = self.tokens.as_ref()?.entries();
        entries.get(&hash_of(token.expose())).cloned()
    }
}

impl UserFile {
    fn open(path: &Path, form: Form) -> Result<Self, UsersError> {
        let (entries, modified) = read(path, form)?;
        Ok(Self {
            path: path.to_owned(),
            form,
            held: Mutex::new(Held {
                entries: Arc::new(entries),
                modified,
                looked: Instant::now(),
            }),
        })
    }

    /// The entries as they are now, or were a moment ago. A file that has become unusable changes
    /// nothing and is logged.
    fn entries(&self) -> Arc<Entries> {
        let mut held = self.held.lock();
        if held.looked.elapsed() >= LOOK_EVERY {
            held.looked = Instant::now();
            if modified(&self.path) != held.modified {
                match read(&self.path, self.form) {
                    Ok((entries, modified)) => {
                        (held.entries, held.modified) = (Arc::new(entries), modified);
                        tracing::info!(file = %self.path.display(), users = held.entries.len(), "users read again");
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "users stay as they were");
                    }
                }
            }
        }
        Arc::clone(&held.entries)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn read(path: &Path, form: Form) -> Result<(Entries, Option<SystemTime>), UsersError> {
    let modified = modified(path);
    let unreadable = |source| UsersError::Read {
        file: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let entries = parse(&text, form).map_err(|(line, problem)| UsersError::Line {
        file: path.to_owned(),
        line,
        problem,
    })?;
    Ok((entries, modified))
}

/// Parses lines of `NAME:SECRET`. Empty lines and lines that begin with `#` are left out.
fn parse(text: &str, form: Form) -> Result<Entries, (usize, &'static str)> {
    let mut entries = Entries::new();
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (name, secret) = match form {
            Form::Passwords => text.split_once(':'),
            // A user's name may have colons, as those of Kubernetes have. A token has none.
            Form::Tokens => text.rsplit_once(':'),
        }
        .filter(|(name, _)| !name.is_empty())
        .ok_or((line, "not of the form NAME:SECRET"))?;
        let double = match form {
            Form::Passwords => {
                let is_bcrypt = secret.parse::<bcrypt::HashParts>().is_ok();
                if !is_bcrypt {
                    return Err((line, "no bcrypt hash, as htpasswd -B writes it"));
                }
                entries.insert(name.to_owned(), secret.to_owned())
            }
            Form::Tokens if secret.len() < MIN_TOKEN => {
                return Err((line, "a token of fewer than 20 characters"));
            }
            Form::Tokens => entries.insert(hash_of(secret), name.to_owned()),
        };
        if double.is_some() {
            return Err((line, "the same user or token twice"));
        }
    }
    Ok(entries)
}

/// The hash under which a token is looked up, so that the time of the look-up depends on nothing
/// that a client could use.
fn hash_of(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line as `htpasswd -nbB` writes it.
    fn line(user: &str, password: &str) -> String {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[tokio::test]
    async fn passwords_are_compared_with_their_users_hash() {
        let text = format!("# users\n\n{}{}", line("alice", "one"), line("bob", "two"));
        let file = file(&text);
        let users = Users::open(Some(file.path()), None).unwrap();
        for (user, password, expected) in [
            ("alice", "one", Some(true)),
            ("alice", "two", Some(false)),
            ("alice", "", Some(false)),
            ("bob", "two", Some(true)),
            ("carol", "one", None),
            ("", "", None),
        ] {
            let found = users.has_password(user, &Secret::new(password)).await;
            assert_eq!(found, expected, "{user}");
        }
        assert_eq!(users.with_token(&Secret::new("one")), None);
    }

    #[test]
    fn tokens_are_found_whole() {
        let token = "0123456789abcdefghij";
        let file = file(&format!("system:node:{token}\n"));
        let users = Users::open(None, Some(file.path())).unwrap();
        let user = |token: &str| users.with_token(&Secret::new(token));
        assert_eq!(user(token).as_deref(), Some("system:node"));
        assert_eq!(user(&token[1..]), None);
        assert_eq!(user(""), None);
    }

    #[test]
    fn malformed_lines_are_refused_without_their_secrets() {
        for (text, form) in [
            ("alice", Form::Passwords),
            ("alice:plain-secret", Form::Passwords),
            ("alice:{SHA}plain-secret", Form::Passwords),
            (":plain-secret-that-is-long", Form::Tokens),
            ("alice:plain-secret", Form::Tokens),
            (
                "a:plain-secret-that-is-long\nb:plain-secret-that-is-long",
                Form::Tokens,
            ),
        ] {
            let (_, problem) = parse(text, form).unwrap_err();
            assert!(!problem.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_again_and_a_spoiled_one_changes_nothing() {
        let token = "0123456789abcdefghij";
        let file = file(&format!("one:{token}\n"));
        let users = Users::open(None, Some(file.path())).unwrap();
        let seen = |text: &str, ahead: u64| {
            std::fs::write(file.path(), text).unwrap();
            let later = SystemTime::now() + Duration::from_secs(ahead);
            file.as_file().set_modified(later).unwrap();
            let held = &users.tokens.as_ref().unwrap().held;
            held.lock().looked = Instant::now().checked_sub(LOOK_EVERY).unwrap();
            users.with_token(&Secret::new(token))
        };
        assert_eq!(seen(&format!("two:{token}\n"), 10).as_deref(), Some("two"));
        assert_eq!(seen("spoiled", 20).as_deref(), Some("two"));
        assert_eq!(seen("", 30), None);
    }
}
