//! Who may read which images: identifies the sender of a request, and decides about its actions by
//! the policy, or by the upstream that the policy names.
//!
//! ```text
//! Authorization, else
//! the certificate  ▶ Identity ─ rule allows it ▶ this server's credentials
//!                             └ rule asks the upstream ▶ Grants ▶ the client's own credentials
//! ```
//! Which digests a name stands for is decided by links (`store::links`), not here.

mod certificate;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grants;
mod identity;
mod oidc;
mod policy;
mod tokens;
mod users;

use std::time::Duration;

use http::HeaderMap;
use moka::future::Cache;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::clock::unix_now;
use crate::oci::route::Location;
use crate::oci::{Digest, Reference};
use crate::registry::ClientLogin;
use crate::store::{self, Holder, Store};
use crate::telemetry::log;
use crate::transport::Source;

pub(crate) use certificate::{CertificateFields, ClientCertificate};
pub use config::AccessConfig;
use grants::{Grants, Question};
pub(crate) use grants::{Proof, Verdict};
use identity::Client;
pub(crate) use identity::{Credentials, Identity, Known, Reader};
use oidc::Issuers;
pub use oidc::{IssuerConfig, IssuerError};
use policy::Policy;
pub use policy::{AccessRule, Action, ImagePattern, ParseRuleError, Who};
use tokens::Sealer;
use users::Users;
pub use users::UsersError;

/// Passwords that were compared lately, and upstreams with the credentials of clients.
const REMEMBERED: u64 = 10_000;
/// How long the tokens of a client's credentials are used for its reads.
const CLIENT_FOR: Duration = Duration::from_secs(5 * 60);

/// Why a request is refused before it is handled.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Credentials are missing.
    Unidentified,
    /// The credentials are malformed, wrong or expired.
    BadCredentials,
    /// The client is known, and may not.
    Denied,
    /// The upstream that has to allow it does not answer.
    Unavailable,
}

/// Why a file of the access settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

/// A request that may be handled.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pub(crate) reader: Reader,
    /// The upstream, with the reader's credentials.
    pub(crate) source: Source,
}

/// Identifies clients and decides what they may do.
#[derive(Debug)]
pub(crate) struct Access {
    policy: Policy,
    users: Users,
    issuers: Issuers,
    grants: Grants,
    config: AccessConfig,
    /// Whether the policy is that of a server without rules, whose clients need no credentials.
    is_unruled: bool,
    store: Store,
    sealer: OnceCell<Sealer>,
    /// Users whose password was right, by the credentials.
    compared: Cache<Reader, String>,
    /// Upstreams by the reader and their name.
    clients: Cache<(Reader, String), Source>,
}

impl Access {
    /// Reads the files of users and issuers.
    pub(crate) fn new(config: &AccessConfig, store: Store) -> Result<Self, AccessError> {
        let users = Users::open(config.htpasswd.as_deref(), config.token_file.as_deref())?;
        Ok(Self {
            policy: Policy::new(&config.rule),
            users,
            issuers: Issuers::open(&config.issuer, config.remember)?,
            grants: Grants::new(config.remember, config.unreachable),
            is_unruled: config.rule.is_empty(),
            compared: Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_live(config.remember)
                .build(),
            clients: Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_live(CLIENT_FOR)
                .build(),
            config: config.clone(),
            store,
            sealer: OnceCell::new(),
        })
    }

    /// Who sent a request with these headers, over a connection with this certificate.
    pub(crate) async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Identity, Refusal> {
        let known = self.known(headers, certificate).await;
        known.map(|known| known.identity)
    }

    /// The same, and how long it is known. Credentials in the headers count before a certificate.
    pub(crate) async fn known(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Known, Refusal> {
        if self.is_unruled {
            return Ok(Identity::Anonymous.into());
        }
        let credentials =
            Credentials::from_headers(headers).map_err(|_malformed| Refusal::BadCredentials)?;
        match (credentials, certificate) {
            (Some(credentials), _) => Box::pin(self.judge(credentials)).await,
            (None, Some(certificate)) if certificate.until <= unix_now() => {
                Err(Refusal::BadCredentials)
            }
            (None, Some(certificate)) => Ok(Known {
                identity: Identity::User(certificate.user.to_string()),
                until: Some(certificate.until),
            }),
            (None, None) => Ok(Identity::Anonymous.into()),
        }
    }

    /// Who has these credentials. Those of no user of this server are left to the upstreams, if a
    /// rule does that.
    pub(crate) async fn judge(&self, credentials: Credentials) -> Result<Known, Refusal> {
        let login = match credentials {
            Credentials::Password { user, password } if self.issuers.is_login(&user) => {
                let known = self.issuers.judge(&password).await?;
                return known.ok_or(Refusal::BadCredentials);
            }
            Credentials::Password { user, password } => {
                let client = Client::new(ClientLogin::Password {
                    user: user.clone(),
                    password: password.clone(),
                });
                if let Some(user) = self.compared.get(&client.reader()).await {
                    return Ok(Identity::User(user).into());
                }
                match self.users.has_password(&user, &password).await {
                    Some(true) => {
                        self.compared.insert(client.reader(), user.clone()).await;
                        return Ok(Identity::User(user).into());
                    }
                    // A mistyped password of this server is nobody else's business.
                    Some(false) => return Err(Refusal::BadCredentials),
                    None => client,
                }
            }
            Credentials::Bearer(token) => {
                if let Some(user) = self.users.with_token(&token) {
                    return Ok(Identity::User(user).into());
                }
                if let Some(known) = self.issuers.judge(&token).await? {
                    return Ok(known);
                }
                match self.sealer().await?.open(token.expose()) {
                    Ok(known) => return known.ok_or(Refusal::BadCredentials),
                    Err(_not_own) => Client::new(ClientLogin::Token(token)),
                }
            }
        };
        if self.policy.has_upstream() {
            Ok(Identity::Client(login).into())
        } else {
            Err(Refusal::BadCredentials)
        }
    }

    /// A token for the identity, and how long it is valid: not longer than the identity is known.
    pub(crate) async fn token(&self, known: &Known) -> Result<(String, Duration), Refusal> {
        let left = known.until.map(|until| until.saturating_sub(unix_now()));
        let lifetime = self.config.login_lifetime;
        let lifetime = left.map_or(lifetime, |left| lifetime.min(Duration::from_secs(left)));
        let sealer = self.sealer().await?;
        let token = sealer.seal(&known.identity, lifetime);
        Ok((token.ok_or(Refusal::Unavailable)?, lifetime))
    }

    async fn sealer(&self) -> Result<&Sealer, Refusal> {
        let made = self.sealer.get_or_try_init(|| async {
            let salt = self.store.salt().await.map_err(|error| {
                tracing::warn!(%error, "the key of tokens is not read");
                Refusal::Unavailable
            })?;
            Sealer::new(&salt).ok_or(Refusal::Unavailable)
        });
        made.await
    }

    /// Decides whether the action on an image is allowed, and with whose credentials.
    ///
    /// `proof` is an object with which the upstream shows that the client may pull.
    pub(crate) async fn admit(
        &self,
        identity: &Identity,
        action: Action,
        location: &Location,
        upstream: Source,
        proof: impl Future<Output = Result<Proof, store::Error>>,
    ) -> Result<Admission, Refusal> {
        if self.policy.allows(identity, action, location) {
            return Ok(Admission {
                reader: Reader::Server,
                source: upstream,
            });
        }
        let client = match identity {
            Identity::Client(client) if self.policy.asks_upstream(action, location) => client,
            Identity::Anonymous => return Err(Refusal::Unidentified),
            Identity::User(_) | Identity::Client(_) => return Err(Refusal::Denied),
        };
        match Box::pin(self.may_pull(client, location, &upstream, proof)).await? {
            Verdict::Granted => {}
            Verdict::Refused => return Err(Refusal::Denied),
            Verdict::Unknown => return Err(Refusal::Unavailable),
        }
        let reader = client.reader();
        let key = (reader, location.upstream.clone());
        let source = self
            .clients
            .try_get_with(key, upstream.for_client(&client.login));
        let source = Box::pin(source)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(Admission { reader, source })
    }

    async fn may_pull(
        &self,
        client: &Client,
        location: &Location,
        upstream: &Source,
        proof: impl Future<Output = Result<Proof, store::Error>>,
    ) -> Result<Verdict, Refusal> {
        let holder = Holder::repository(&location.upstream, &location.repository);
        let reader = client.reader();
        if let Some(verdict) = self.grants.remembered(reader, &holder).await {
            return Ok(verdict);
        }
        let question = Question {
            reader,
            upstream: upstream.clone(),
            login: Some(client.login.clone()),
            repository: location.repository.clone(),
            proof: proof.await.map_err(|error| unavailable(&error))?,
        };
        Ok(self.grants.verdict(&holder, &question).await)
    }

    /// Whether the reader still may read what is stored of the image with this source manifest.
    pub(crate) async fn may_still_read(
        &self,
        admission: &Admission,
        holder: &Holder,
        location: &Location,
        image: &Digest,
    ) -> bool {
        if admission.reader != Reader::Server {
            return true;
        }
        if let Some(verdict) = self.grants.remembered(Reader::Server, holder).await {
            return verdict == Verdict::Granted;
        }
        let question = Question {
            reader: Reader::Server,
            upstream: admission.source.clone(),
            login: None,
            repository: location.repository.clone(),
            proof: Proof::Manifest(Reference::Digest(image.clone())),
        };
        Box::pin(self.grants.verdict(holder, &question)).await == Verdict::Granted
    }

    /// Records that the upstream has served the reader something of the repository.
    pub(crate) async fn confirm(&self, reader: Reader, holder: &Holder, since: Instant) {
        self.grants.confirm(reader, holder, since).await;
    }

    /// Whether an action that is about no image, or about every one, is allowed.
    pub(crate) fn admit_to_all(&self, identity: &Identity, action: Action) -> Result<(), Refusal> {
        match identity {
            _ if self.policy.allows_all(identity, action) => Ok(()),
            Identity::Anonymous => Err(Refusal::Unidentified),
            Identity::User(_) | Identity::Client(_) => Err(Refusal::Denied),
        }
    }

    /// Whether clients without credentials may pull every image, so that none is asked for any.
    pub(crate) fn is_open(&self) -> bool {
        self.policy.is_open()
    }
}

/// Logs why access cannot be checked.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::warn!(error = log::chain(error), "access cannot be checked");
    Refusal::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_has_ended_counts_no_longer() {
        let rule = serde_json::json!({"who": ["anyone"], "may": ["pull"], "images": ["**"]});
        let config = AccessConfig {
            rule: vec![serde_json::from_value(rule).unwrap()],
            ..AccessConfig::default()
        };
        let access = Access::new(&config, Store::in_memory()).unwrap();
        let until = |until: u64| ClientCertificate {
            user: "cert:me".into(),
            until,
        };
        let headers = HeaderMap::new();
        let known = access.known(&headers, Some(&until(unix_now() + 30))).await;
        let known = known.unwrap();
        assert_eq!(known.identity.to_string(), "user:cert:me");
        // A token for it ends with it too.
        let (_, lifetime) = access.token(&known).await.unwrap();
        assert!(lifetime <= Duration::from_secs(30));
        let ended = access.known(&headers, Some(&until(unix_now()))).await;
        assert!(matches!(ended, Err(Refusal::BadCredentials)));
    }
}
