//! Docker's `config.json` and its credential helpers.
//!
//! The file is read anew when a cached login is [`LOGIN_LIFETIME`] old or was refused, so that
//! `docker login` and rotated credentials take effect.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::docker_keys::fit;
use super::login::{LOGIN_LIFETIME, Login};
use crate::oci::hub::is_docker_hub;
use crate::registry::config::Secret;

/// A helper that takes longer is killed. Helpers of cloud providers make one or two requests.
const HELPER_TIME: Duration = Duration::from_secs(10);
/// The longest answer of a helper, which is a name and a token.
const MAX_HELPER_ANSWER: u64 = 64 << 10;
/// The key under which Docker stores the login to Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that marks the secret as an identity token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// The time at which a helper was asked, and the login that it returned.
type Answered = (Instant, Option<Login>);

/// The location of Docker's configuration and helpers.
#[derive(Debug)]
pub(in crate::registry) struct DockerConfig {
    directory: Option<PathBuf>,
    helpers: Option<PathBuf>,
    /// Recent answers of helpers, by helper and server: many repositories need the same one.
    answers: Mutex<HashMap<(String, String), Answered>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

/// The reason why there is no login. Never contains the output of a helper.
#[derive(Debug, thiserror::Error)]
enum DockerConfigError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("not valid JSON of the expected form")]
    Json,
    #[error("helper name {0:?} is not a file name")]
    Name(String),
    #[error("helper took longer than {}", humantime::format_duration(HELPER_TIME))]
    Time,
    #[error("field auth is not base64 of user:password")]
    Encoding,
}

impl DockerConfig {
    pub(in crate::registry) fn new(directory: Option<PathBuf>, helpers: Option<PathBuf>) -> Self {
        Self {
            directory: directory.or_else(default_directory),
            helpers,
            answers: Mutex::default(),
        }
    }

    /// Returns the login for a repository at `host`. Anonymous if there is none, or if it cannot be
    /// read, which is logged.
    pub(super) async fn login(&self, host: &str, repository: &str) -> Login {
        match self.find(host, repository).await {
            Ok(login) => login.unwrap_or(Login::Anonymous),
            Err(error) => {
                tracing::warn!(host, %error, "no login from Docker's configuration");
                Login::Anonymous
            }
        }
    }

    /// Drops cached answers of helpers, so that the next login is read anew.
    pub(super) async fn forget(&self) {
        self.answers.lock().await.clear();
    }

    async fn find(&self, host: &str, repository: &str) -> Result<Option<Login>, DockerConfigError> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let text = match tokio::fs::read(directory.join("config.json")).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The cause is dropped on purpose, because it can quote the file.
        let file: File = serde_json::from_slice(&text).map_err(|_error| DockerConfigError::Json)?;
        let key = if is_docker_hub(host) { HUB_KEY } else { host };
        if let Some(helper) = by_fit(&file.cred_helpers, host, repository)
            .into_iter()
            .next()
        {
            return self.ask(helper, key).await;
        }
        let mut stored = None;
        for auth in by_fit(&file.auths, host, repository) {
            stored = auth.login()?;
            if stored.is_some() {
                break;
            }
        }
        match (stored, &file.creds_store) {
            (Some(login), _) => Ok(Some(login)),
            (None, Some(helper)) if !helper.is_empty() => self.ask(helper, key).await,
            (None, _) => Ok(None),
        }
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Login>, DockerConfigError> {
        let key = (helper.to_owned(), server.to_owned());
        let mut answers = self.answers.lock().await;
        answers.retain(|_, (since, _)| since.elapsed() < LOGIN_LIFETIME);
        if let Some((_, login)) = answers.get(&key) {
            return Ok(login.clone());
        }
        let login = self.run_helper(helper, server).await?;
        answers.insert(key, (Instant::now(), login.clone()));
        Ok(login)
    }

    /// Runs `docker-credential-HELPER get` (docker-credential-helpers, "Development").
    async fn run_helper(
        &self,
        helper: &str,
        server: &str,
    ) -> Result<Option<Login>, DockerConfigError> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if helper.is_empty() || !helper.bytes().all(is_name) {
            return Err(DockerConfigError::Name(helper.to_owned()));
        }
        let program = format!("docker-credential-{helper}");
        let program = self
            .helpers
            .as_ref()
            .map_or_else(|| PathBuf::from(&program), |place| place.join(&program));
        let answer = tokio::time::timeout(HELPER_TIME, run(&program, server)).await;
        let Some(answer) = answer.map_err(|_elapsed| DockerConfigError::Time)?? else {
            return Ok(None);
        };
        let answer: HelperAnswer =
            serde_json::from_slice(&answer).map_err(|_error| DockerConfigError::Json)?;
        Ok(Some(match answer.username.as_str() {
            TOKEN_USER => Login::Identity(answer.secret),
            _ => Login::Password {
                user: answer.username,
                password: answer.secret,
            },
        }))
    }
}

/// Returns the answer of a helper; `None` if it exits with an error, as helpers do if they know no
/// login.
async fn run(program: &Path, server: &str) -> Result<Option<Vec<u8>>, std::io::Error> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(server.as_bytes()).await
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(error);
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_HELPER_ANSWER)
            .read_to_end(&mut answer)
            .await?;
    }
    Ok(child.wait().await?.success().then_some(answer))
}

impl Auth {
    fn login(&self) -> Result<Option<Login>, DockerConfigError> {
        if let Some(identity) = self
            .identitytoken
            .as_ref()
            .filter(|token| !token.expose().is_empty())
        {
            return Ok(Some(Login::Identity(identity.clone())));
        }
        if let Some(encoded) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            return Login::from_basic(encoded)
                .map(Some)
                .ok_or(DockerConfigError::Encoding);
        }
        let Some((user, password)) = self.username.clone().zip(self.password.clone()) else {
            return Ok(None);
        };
        Ok(Some(Login::Password { user, password }))
    }
}

/// Returns `$DOCKER_CONFIG`, else `~/.docker`, as Docker does.
fn default_directory() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(home)
}

/// Returns the values whose keys match a repository at `host`, the best match first.
fn by_fit<'a, T>(values: &'a BTreeMap<String, T>, host: &str, repository: &str) -> Vec<&'a T> {
    let fitting = values
        .iter()
        .filter_map(|(key, value)| Some((fit(key, host, repository)?, value)));
    let mut fitting: Vec<_> = fitting.collect();
    fitting.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
    fitting.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn login(config: &str, host: &str) -> String {
        login_for(config, host, "library/app").await
    }

    async fn login_for(config: &str, host: &str, repository: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let helper = directory.path().join("docker-credential-test");
        let script = r#"#!/bin/sh
read -r server
case "$1 $server" in
"get quay.io") echo '{"ServerURL": "quay.io", "Username": "<token>", "Secret": "refresh"}' ;;
"get https://index.docker.io/v1/") echo '{"Username": "hub", "Secret": "hush"}' ;;
"get broken.example") echo 'hush' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"#;
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let place = directory.path().to_owned();
        match DockerConfig::new(Some(place.clone()), Some(place))
            .login(host, repository)
            .await
        {
            Login::Anonymous => "anonymous".to_owned(),
            Login::Password { user, password } => format!("{user}:{}", password.expose()),
            Login::Identity(token) => format!("identity:{}", token.expose()),
        }
    }

    #[tokio::test]
    async fn auths_are_found_by_host_in_every_spelling() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6c2U6Y3JldA=="},
            "http://a.example:5000/v2/": {"username": "u", "password": "p"},
            "b.example": {"auth": "eDp5", "identitytoken": "refresh"},
            "c.example": {"auth": "no base64"}
        }, "HttpHeaders": {"x": "y"}}"#;
        assert_eq!(login(config, "docker.io").await, "me:se:cret");
        assert_eq!(login(config, "a.example:5000").await, "u:p");
        assert_eq!(login(config, "a.example").await, "anonymous");
        assert_eq!(login(config, "b.example").await, "identity:refresh");
        assert_eq!(login(config, "c.example").await, "anonymous");
        assert_eq!(login("no json", "c.example").await, "anonymous");
    }

    #[tokio::test]
    async fn each_path_has_its_own_login() {
        let config = r#"{"auths": {
            "a.example/team-a": {"username": "a", "password": "1"},
            "a.example/team-b": {"username": "b", "password": "2"},
            "a.example/team-b/deep": {},
            "*.example": {"username": "any", "password": "3"}
        }}"#;
        for (repository, expected) in [
            ("team-a/app", "a:1"),
            ("team-b/app", "b:2"),
            ("team-b/deep/app", "b:2"),
            ("team-ab/app", "any:3"),
            ("other", "any:3"),
        ] {
            assert_eq!(
                login_for(config, "a.example", repository).await,
                expected,
                "{repository}"
            );
        }
    }

    #[tokio::test]
    async fn helpers_are_asked() {
        let config = r#"{"auths": {"quay.io": {}}, "credHelpers": {"docker.io": "test", "x.example": "../test",
            "y.example": "absent"}, "credsStore": "test"}"#;
        assert_eq!(login(config, "quay.io").await, "identity:refresh");
        assert_eq!(login(config, "docker.io").await, "hub:hush");
        for host in [
            "broken.example",
            "unknown.example",
            "x.example",
            "y.example",
        ] {
            assert_eq!(login(config, host).await, "anonymous", "{host}");
        }
    }
}
