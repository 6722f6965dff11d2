//! Tokens of other issuers (OpenID Connect, Kubernetes service accounts) as identities.
//!
//! ```text
//! token ▶ iss: which issuer ▶ its keys ▶ signature ▶ exp, nbf, aud ▶ user: prefix and sub
//! ```

mod check;
mod config;
mod fetch;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod issuer;
mod jwt;
mod keys;

use std::time::Duration;

use moka::future::Cache;
use sha2::{Digest as _, Sha256};

use super::Refusal;
use super::identity::{Identity, Known};
use crate::clock::unix_now;
use crate::registry::Secret;
use crate::telemetry::limit::LineLimit;

pub use config::IssuerConfig;
use fetch::FetchError;
use issuer::{Issuer, Unavailable};
use jwt::Unverified;

/// The user whose password is a token of an issuer, for clients that know only passwords.
const LOGIN: &str = "oidc";
/// Tokens that were verified lately.
const REMEMBERED: u64 = 10_000;
/// Log lines about tokens, which clients can cause at any rate.
static LINES: LineLimit = LineLimit::new();

/// Why an issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("serve.access.issuer {issuer:?}: {problem}")]
    Config {
        issuer: String,
        problem: &'static str,
    },
    #[error("serve.access.issuer {issuer:?}")]
    Files {
        issuer: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A verified token's user, and the end of the token.
type Verified = (String, u64);

/// All issuers.
#[derive(Debug)]
pub(super) struct Issuers {
    all: Vec<Issuer>,
    /// By the hash of the token.
    verified: Cache<[u8; 32], Verified>,
}

impl Issuers {
    /// Checks the configuration and reads the files. A verified token is used for `remember` without
    /// another look at the keys. Blocking.
    pub(super) fn open(configs: &[IssuerConfig], remember: Duration) -> Result<Self, IssuerError> {
        let mut all: Vec<Issuer> = Vec::new();
        for config in configs {
            let is_double = |other: &Issuer| {
                other.config.issuer == config.issuer || other.config.prefix == config.prefix
            };
            let checked = match config.check() {
                Ok(()) if all.iter().any(is_double) => {
                    Err("another issuer has the same name or prefix")
                }
                checked => checked,
            };
            checked.map_err(|problem| IssuerError::Config {
                issuer: config.issuer.clone(),
                problem,
            })?;
            let unusable = |source: FetchError| IssuerError::Files {
                issuer: config.issuer.clone(),
                source: source.into(),
            };
            all.push(Issuer::open(config).map_err(unusable)?);
        }
        let verified = Cache::builder()
            .max_capacity(REMEMBERED)
            .time_to_live(remember)
            .build();
        Ok(Self { all, verified })
    }

    /// Whether the user's password is a token.
    pub(super) fn is_login(&self, user: &str) -> bool {
        user == LOGIN && !self.all.is_empty()
    }

    /// Who has this token. `None` if it is of no issuer that is configured.
    pub(super) async fn judge(&self, token: &Secret) -> Result<Option<Known>, Refusal> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let hash = Sha256::digest(token.expose()).into();
        if let Some((user, until)) = self.verified.get(&hash).await {
            return match until > unix_now() {
                true => Ok(Some(known(user, until))),
                false => Err(Refusal::BadCredentials),
            };
        }
        let Some(unverified) = Unverified::parse(token.expose()) else {
            return Ok(None);
        };
        let is_of = |issuer: &&Issuer| issuer.config.issuer == unverified.issuer;
        let Some(issuer) = self.all.iter().find(is_of) else {
            return Ok(None);
        };
        let name = &issuer.config.issuer;
        match issuer.verify(&unverified).await {
            Ok(Ok(claims)) => {
                let user = format!("{}{}", issuer.config.prefix, claims.subject);
                let verified = (user.clone(), claims.until);
                self.verified.insert(hash, verified).await;
                Ok(Some(known(user, claims.until)))
            }
            Ok(Err(flaw)) => {
                if let Some(dropped) = LINES.pass() {
                    tracing::warn!(issuer = name, reason = %flaw, dropped, "token refused");
                }
                Err(Refusal::BadCredentials)
            }
            Err(Unavailable) => {
                if let Some(dropped) = LINES.pass() {
                    tracing::warn!(
                        issuer = name,
                        dropped,
                        "token not checked: no keys of its issuer"
                    );
                }
                Err(Refusal::Unavailable)
            }
        }
    }
}

fn known(user: String, until: u64) -> Known {
    Known {
        identity: Identity::User(user),
        until: Some(until),
    }
}
