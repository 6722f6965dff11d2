//! The issuers of tokens in the server's configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An issuer of tokens (OpenID Connect, Kubernetes service accounts): clients with a token of it,
/// as a bearer token or as the password of the user `oidc`, are `user:PREFIX` and the token's `sub`
/// in rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The issuer, as the tokens' `iss` has it.
    pub issuer: String,
    /// The audiences of this server. A token must be for one of them.
    pub audience: Vec<String>,
    /// The text in front of `sub` in users' names, different for each issuer; `oidc:` if not set.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// The URL of the issuer's keys (JWKS). If neither this nor `jwks_file` is set, the issuer's
    /// `/.well-known/openid-configuration` names it. Plain HTTP only on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// A file with the issuer's keys (JWKS), for an issuer that this server does not reach. It is
    /// read again when it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// PEM certificates of authorities to trust for this issuer, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A file with a bearer token for the requests for keys, read at each; the API servers of
    /// Kubernetes require one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// How long keys are used before they are fetched again; `5m` if not set. A key that the issuer
    /// has withdrawn is refused after this time and `serve.access.remember`.
    #[serde(default = "refresh", with = "humantime_serde")]
    pub refresh: Duration,
    /// How long keys are used while the issuer does not answer; `1day` if not set. After that, its
    /// tokens get 503.
    #[serde(default = "unreachable", with = "humantime_serde")]
    pub unreachable: Duration,
}

fn prefix() -> String {
    "oidc:".to_owned()
}

fn refresh() -> Duration {
    Duration::from_secs(5 * 60)
}

fn unreachable() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}
