//! The access section of the server's configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::oidc::IssuerConfig;
use super::policy::AccessRule;

/// The access section of the server's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// The rules, written as `[[serve.access.rule]]`. A request is allowed if one of them allows
    /// it. Without any, a server on loopback allows everything, and any other server does not
    /// start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<AccessRule>,
    /// A file of `htpasswd -B`: a user and the bcrypt hash of a password in each line. It is read
    /// again when it has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub htpasswd: Option<PathBuf>,
    /// A file with `NAME:TOKEN` in each line; a client that sends `Authorization: Bearer TOKEN` is
    /// the user NAME. Tokens have 20 characters or more. The file is read again when it has
    /// changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Issuers of tokens (OpenID Connect, Kubernetes), written as `[[serve.access.issuer]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub issuer: Vec<IssuerConfig>,
    /// How long an upstream's answer is used that a client, or this server, may pull from a
    /// repository. A withdrawal holds within this time.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// How long a client that was allowed continues to read while the upstream, which must allow
    /// it, does not answer.
    #[serde(with = "humantime_serde")]
    pub unreachable: Duration,
    /// How long a token of this server's token endpoint is valid.
    #[serde(with = "humantime_serde")]
    pub login_lifetime: Duration,
    /// The URL of this server's token endpoint (`https://images.example/token`) as clients reach
    /// it. If it is not set, it is derived from each request's host, with `https` if `serve.tls` is
    /// set. Set it behind a proxy that terminates TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            rule: Vec::new(),
            htpasswd: None,
            token_file: None,
            issuer: Vec::new(),
            remember: Duration::from_secs(60),
            unreachable: Duration::from_secs(60 * 60),
            login_lifetime: Duration::from_secs(5 * 60),
            realm: None,
        }
    }
}
