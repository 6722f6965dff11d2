//! A token, what it is good for, and how long it is kept.

use std::fmt;
use std::time::{Duration, Instant};

use moka::Expiry;
use reqwest::header::HeaderValue;

/// A token is renewed this long before it expires, for the request it goes with takes time.
const RENEW_BEFORE: Duration = Duration::from_secs(30);

/// What a request does to a repository, in the words of token scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Pull,
    Push,
}

impl Action {
    pub(super) fn scope(self, repository: &str) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{repository}:{actions}")
    }
}

/// What a token is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    /// Whose login it was fetched with, for scopes that do not say it.
    pub(super) repository: String,
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) lifetime: Duration,
}

impl TokenKey {
    /// Bytes that it takes to remember.
    pub(super) fn weight(&self) -> usize {
        self.realm.len()
            + self.service.as_ref().map_or(0, String::len)
            + self.scope.len()
            + self.repository.len()
    }
}

impl Token {
    /// Bytes that it takes to remember.
    pub(super) fn weight(&self) -> usize {
        self.header.len()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// Lets tokens go before they expire.
pub(super) struct UntilRenewal;

impl<K> Expiry<K, Token> for UntilRenewal {
    fn expire_after_create(&self, _: &K, token: &Token, _: Instant) -> Option<Duration> {
        Some(
            token
                .lifetime
                .saturating_sub(RENEW_BEFORE.min(token.lifetime / 5)),
        )
    }
}
