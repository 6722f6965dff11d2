//! The credentials for one registry: from the configuration, else from the caller, else from
//! Docker's configuration, else none (anonymous).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use super::Authorization;
use super::client::ClientLogin;
use super::docker_config::DockerConfig;
use super::given::Given;
use super::login::{LOGIN_LIFETIME, Login, bearer_header};
use crate::registry::config::{Secret, UpstreamConfig};
use crate::registry::error::Error;

/// The most repositories whose logins are cached. Logins come from local files and helpers.
const MAX_LOGINS: usize = 1024;

#[derive(Debug)]
enum Origin {
    Password {
        user: String,
        password: Secret,
    },
    PasswordFile {
        user: String,
        path: PathBuf,
    },
    Token(Secret),
    TokenFile(PathBuf),
    Docker {
        config: Arc<DockerConfig>,
        host: String,
    },
}

/// The source of one registry's logins, and the logins cached from it.
#[derive(Debug)]
pub(in crate::registry) struct Credentials {
    /// Asked first; `None` if the configuration has credentials.
    given: Option<Given>,
    origin: Origin,
    /// By repository if the login depends on it, else under the empty name.
    logins: Mutex<HashMap<String, (Instant, Login)>>,
}

impl Credentials {
    /// Returns credentials from an upstream's own configuration, else from `given`, else from
    /// Docker's configuration for `host`.
    pub(in crate::registry) fn new(
        upstream: Option<&UpstreamConfig>,
        docker: Arc<DockerConfig>,
        host: &str,
        given: Option<Given>,
    ) -> Result<Self, Error> {
        let configured = upstream.map(configured).transpose()?.flatten();
        let given = given.filter(|_| configured.is_none());
        let origin = configured.unwrap_or_else(|| Origin::Docker {
            config: docker,
            host: host.to_owned(),
        });
        Ok(Self {
            given,
            origin,
            logins: Mutex::default(),
        })
    }

    /// Returns the credentials of a client, and no others.
    pub(in crate::registry) fn of_client(login: &ClientLogin) -> Self {
        let origin = match login.clone() {
            ClientLogin::Password { user, password } => Origin::Password { user, password },
            ClientLogin::Token(token) => Origin::Token(token),
        };
        Self {
            given: None,
            origin,
            logins: Mutex::default(),
        }
    }

    /// Returns the token in a file, and no other credentials.
    pub(in crate::registry) fn of_token_file(file: &Path) -> Self {
        Self {
            given: None,
            origin: Origin::TokenFile(file.to_owned()),
            logins: Mutex::default(),
        }
    }

    /// Returns the configured token, which needs no token endpoint.
    pub(super) async fn bearer(&self) -> Result<Option<Authorization>, Error> {
        let (token, is_fresh) = match &self.origin {
            Origin::Token(token) => (token.clone(), true),
            Origin::TokenFile(_) => match self.login_and_age("").await? {
                (Login::Identity(token), is_fresh) => (token, is_fresh),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(Authorization {
            header: bearer_header(token.expose())?,
            is_fresh,
            is_token: false,
        }))
    }

    pub(super) async fn login(&self, repository: &str) -> Result<Login, Error> {
        self.login_and_age(repository).await.map(|(login, _)| login)
    }

    /// Returns the header for a Basic challenge. Fails with [`Error::Unauthorized`] if there is no
    /// password.
    pub(super) async fn basic(&self, repository: &str) -> Result<Authorization, Error> {
        let (login, is_fresh) = self.login_and_age(repository).await?;
        let header = login.basic()?.ok_or(Error::Unauthorized)?;
        Ok(Authorization {
            header,
            is_fresh,
            is_token: false,
        })
    }

    /// Drops cached logins, so that the next one is read anew.
    pub(super) async fn forget(&self) {
        self.logins.lock().await.clear();
        if let Origin::Docker { config, .. } = &self.origin {
            config.forget().await;
        }
    }

    async fn login_and_age(&self, repository: &str) -> Result<(Login, bool), Error> {
        if let Some(login) = self
            .given
            .as_ref()
            .and_then(|given| given.login(repository))
        {
            return Ok((login, true));
        }
        let key = self.origin.scope(repository);
        let mut held = self.logins.lock().await;
        if let Some((since, login)) = held.get(key)
            && since.elapsed() < LOGIN_LIFETIME
        {
            return Ok((login.clone(), false));
        }
        let login = self.origin.login(repository).await?;
        if held.len() >= MAX_LOGINS {
            held.clear();
        }
        held.insert(key.to_owned(), (Instant::now(), login.clone()));
        Ok((login, true))
    }
}

fn configured(upstream: &UpstreamConfig) -> Result<Option<Origin>, Error> {
    let password = match (&upstream.password, &upstream.password_file) {
        (Some(_), Some(_)) => {
            return Err(Error::Configuration(
                "password or password_file, not both".to_owned(),
            ));
        }
        (Some(password), None) => Some(Ok(password.clone())),
        (None, Some(path)) => Some(Err(path.clone())),
        (None, None) => None,
    };
    match (&upstream.username, password, &upstream.token) {
        (None, None, None) => Ok(None),
        (None, None, Some(token)) => Ok(Some(Origin::Token(token.clone()))),
        (Some(user), Some(Ok(password)), None) => Ok(Some(Origin::Password {
            user: user.clone(),
            password,
        })),
        (Some(user), Some(Err(path)), None) => Ok(Some(Origin::PasswordFile {
            user: user.clone(),
            path,
        })),
        _ => Err(Error::Configuration(
            "an upstream takes a username with a password, or a token".to_owned(),
        )),
    }
}

impl Origin {
    /// Returns the part of a repository's name that the login depends on.
    fn scope<'a>(&self, repository: &'a str) -> &'a str {
        match self {
            Self::Docker { .. } => repository,
            Self::Password { .. }
            | Self::PasswordFile { .. }
            | Self::Token(_)
            | Self::TokenFile(_) => "",
        }
    }

    async fn login(&self, repository: &str) -> Result<Login, Error> {
        match self {
            Self::Token(_) => Ok(Login::Anonymous),
            Self::Password { user, password } => Ok(Login::Password {
                user: user.clone(),
                password: password.clone(),
            }),
            Self::PasswordFile { user, path } => Ok(Login::Password {
                user: user.clone(),
                password: line_in(path).await?,
            }),
            Self::TokenFile(path) => line_in(path).await.map(Login::Identity),
            Self::Docker { config, host } => Ok(config.login(host, repository).await),
        }
    }
}

/// Returns the secret in a file, without the end of its line.
async fn line_in(path: &Path) -> Result<Secret, Error> {
    let unreadable = |error| Error::Configuration(format!("{}: {error}", path.display()));
    let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}
