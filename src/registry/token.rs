//! Tokens: their scope, and how long they are cached.

use std::fmt;
use std::time::{Duration, Instant};

use moka::Expiry;
use reqwest::header::HeaderValue;

/// A token is renewed this long before it expires, because the request that it is for takes time.
const RENEW_BEFORE: Duration = Duration::from_secs(30);

/// The action of a request on a repository, as token scopes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Pull,
    Push,
}

impl Action {
    /// Returns the scope of a repository. No repository needs none.
    pub(super) fn scope(self, repository: &str) -> String {
        if repository.is_empty() {
            return String::new();
        }
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{repository}:{actions}")
    }
}

/// The scope of a token, under which it is cached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: String,
    /// The repository whose login it was fetched with, because a scope does not always name it.
    pub(super) repository: String,
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) lifetime: Duration,
}

impl TokenKey {
    /// Returns the bytes that its texts take in memory.
    pub(super) fn weight(&self) -> usize {
        self.realm.len()
            + self.service.as_ref().map_or(0, String::len)
            + self.scope.len()
            + self.repository.len()
    }
}

impl Token {
    /// Returns the bytes that its texts take in memory.
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

/// An expiry that evicts tokens before they expire.
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
