//! Authenticates to one registry: challenges, tokens, credentials.
//!
//! ```text
//! 401 ▶ challenge ─ Basic  ▶ credentials ▶ header
//!                 └ Bearer ▶ token cache ─ miss ▶ realm (GET, or POST with a refresh token) ▶ header
//! ```

mod client;
mod credentials;
mod docker_config;
mod docker_keys;
mod given;
mod login;
mod token;

use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderValue};
use url::Url;

pub use self::client::ClientLogin;
pub(super) use self::credentials::Credentials;
pub(super) use self::docker_config::DockerConfig;
pub(super) use self::given::Given;
pub use self::given::Logins;
pub use self::login::Login;
use self::token::get_token;
use super::challenge::Challenge;
use super::error::Error;
use super::http::Http;
use super::memory::{EndpointId, Memory};
use super::token::Action;

/// An `Authorization` header, and whether it was made for this request.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) is_fresh: bool,
    /// Whether it comes from a token endpoint, which can issue another.
    pub(super) is_token: bool,
}

/// The authentication to one registry: answers its challenges.
#[derive(Debug)]
pub(super) struct Authenticator {
    http: Http,
    registry: Url,
    credentials: Credentials,
    memory: Arc<Memory>,
    id: EndpointId,
}

impl Authenticator {
    pub(super) fn new(
        http: Http,
        registry: Url,
        credentials: Credentials,
        memory: Arc<Memory>,
        id: EndpointId,
    ) -> Self {
        Self {
            http,
            registry,
            credentials,
            memory,
            id,
        }
    }

    /// Returns the header that satisfied the registry the last time; `None` before its first
    /// challenge.
    pub(super) async fn known(
        &self,
        repository: &str,
        action: Action,
    ) -> Result<Option<Authorization>, Error> {
        match self
            .memory
            .challenges
            .get(&(self.id, repository.to_owned(), action))
            .await
        {
            Some(challenge) => self.satisfy(&challenge, repository, action).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the same as [`Self::known`], with a newly fetched token.
    pub(super) async fn renewed(
        &self,
        repository: &str,
        action: Action,
    ) -> Result<Option<Authorization>, Error> {
        if let Some(challenge) = self
            .memory
            .challenges
            .get(&(self.id, repository.to_owned(), action))
            .await
        {
            self.memory
                .tokens
                .invalidate(&(self.id, challenge.token_key(repository, action)))
                .await;
        }
        self.known(repository, action).await
    }

    /// Returns the header that a refusal asks for. `refused` is the header that was sent before;
    /// its login and token are dropped.
    ///
    /// Fails with [`Error::Unauthorized`] if there are no better credentials.
    pub(super) async fn after_refusal(
        &self,
        headers: &HeaderMap,
        repository: &str,
        action: Action,
        refused: Option<&Authorization>,
    ) -> Result<Authorization, Error> {
        if refused.is_some_and(|refused| refused.is_fresh) {
            return Err(Error::Unauthorized);
        }
        let challenge = Challenge::from_headers(headers)?;
        if refused.is_some() {
            self.credentials.forget().await;
            self.memory
                .tokens
                .invalidate(&(self.id, challenge.token_key(repository, action)))
                .await;
        }
        let authorization = self.satisfy(&challenge, repository, action).await?;
        self.memory
            .challenges
            .insert((self.id, repository.to_owned(), action), challenge)
            .await;
        Ok(authorization)
    }

    /// Whether there is no login for the registry as a whole.
    pub(super) async fn is_anonymous(&self) -> bool {
        let has_token = matches!(self.credentials.bearer().await, Ok(Some(_)));
        !has_token && matches!(self.credentials.login("").await, Ok(Login::Anonymous))
    }

    async fn satisfy(
        &self,
        challenge: &Challenge,
        repository: &str,
        action: Action,
    ) -> Result<Authorization, Error> {
        match challenge {
            Challenge::Basic => self.credentials.basic(repository).await,
            Challenge::Bearer { .. } => {
                if let Some(authorization) = self.credentials.bearer().await? {
                    return Ok(authorization);
                }
                let key = challenge.token_key(repository, action);
                let login = self.credentials.login(repository);
                // Boxed, because it is seldom needed and would be the largest part of every request.
                Box::pin(get_token(
                    (&self.memory, self.id),
                    key,
                    &self.http,
                    &self.registry,
                    login,
                ))
                .await
            }
        }
    }
}
