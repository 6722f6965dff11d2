//! The tokens of this server's token endpoint: the identity of a client, sealed with a key that
//! every replica over the same store derives from the store's salt.
//!
//! A token says who a client is, and not what it may do: that is decided at each request.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::clock::unix_now;
use crate::registry::{ClientLogin, Secret};
use crate::store::Salt;

use super::identity::{Client, Identity, Known};

/// The beginning of each token, which distinguishes it from the tokens of others.
const PREFIX: &str = "starlift.";
/// The purpose of the key, so that no other use of the salt has the same.
const PURPOSE: &[u8] = b"starlift access tokens 1";

/// Seals and opens tokens.
pub(super) struct Sealer(LessSafeKey);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

/// A token's content.
#[derive(Serialize, Deserialize)]
struct Content {
    /// Seconds since 1970.
    expires: u64,
    who: Sealed,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sealed {
    Anonymous,
    User(String),
    Password(String, String),
    Token(String),
}

impl Sealer {
    /// `None` only if the cryptographic library refuses a key of its own length.
    pub(super) fn new(salt: &Salt) -> Option<Self> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, salt.as_bytes());
        let derived = hmac::sign(&key, PURPOSE);
        let key = UnboundKey::new(&CHACHA20_POLY1305, derived.as_ref()).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// Returns a token for the identity that is valid for `lifetime`.
    pub(super) fn seal(&self, identity: &Identity, lifetime: Duration) -> Option<String> {
        let who = match identity {
            Identity::Anonymous => Sealed::Anonymous,
            Identity::User(name) => Sealed::User(name.clone()),
            Identity::Client(client) => match &client.login {
                ClientLogin::Password { user, password } => {
                    Sealed::Password(user.clone(), password.expose().to_owned())
                }
                ClientLogin::Token(token) => Sealed::Token(token.expose().to_owned()),
            },
        };
        let expires = unix_now().saturating_add(lifetime.as_secs());
        let mut bytes = serde_json::to_vec(&Content { expires, who }).ok()?;
        // Random nonces of 96 bits do not repeat within any number of tokens that a server issues.
        let nonce: [u8; NONCE_LEN] = rand::random();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut bytes,
            )
            .ok()?;
        let sealed = [nonce.as_slice(), &bytes].concat();
        Some(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// Returns the identity in a token; `None` if it is not a valid one of this server. A token that
    /// does not look like one is `Err`.
    pub(super) fn open(&self, token: &str) -> Result<Option<Known>, NotOwn> {
        let text = token.strip_prefix(PREFIX).ok_or(NotOwn)?;
        Ok(self.content(text).and_then(Content::known))
    }

    fn content(&self, text: &str) -> Option<Content> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .0
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .ok()?;
        serde_json::from_slice(opened).ok()
    }
}

/// The token is of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotOwn;

impl Content {
    fn known(self) -> Option<Known> {
        if self.expires <= unix_now() {
            return None;
        }
        let identity = match self.who {
            Sealed::Anonymous => Identity::Anonymous,
            Sealed::User(name) => Identity::User(name),
            Sealed::Password(user, password) => {
                Identity::Client(Client::new(ClientLogin::Password {
                    user,
                    password: Secret::new(&password),
                }))
            }
            Sealed::Token(token) => {
                Identity::Client(Client::new(ClientLogin::Token(Secret::new(&token))))
            }
        };
        Some(Known {
            identity,
            until: Some(self.expires),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn sealer(store: &Store) -> Sealer {
        Sealer::new(&store.salt().await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_token_opens_at_every_replica_and_nowhere_else() {
        let (store, other) = (Store::in_memory(), Store::in_memory());
        let login = ClientLogin::Password {
            user: "me".to_owned(),
            password: Secret::new("hush"),
        };
        let client = Client::new(login);
        let identities = [
            Identity::Anonymous,
            Identity::User("alice".to_owned()),
            Identity::Client(client),
        ];
        for identity in identities {
            let token = sealer(&store).await.seal(&identity, HOUR).unwrap();
            assert!(!token.contains("hush") && !token.contains("alice"));
            let opened = sealer(&store).await.open(&token).unwrap().unwrap();
            assert_eq!(format!("{:?}", opened.identity), format!("{identity:?}"));
            assert!(matches!(sealer(&other).await.open(&token), Ok(None)));
        }
    }

    #[tokio::test]
    async fn expired_changed_and_foreign_tokens_are_worth_nothing() {
        let sealer = sealer(&Store::in_memory()).await;
        let user = Identity::User("alice".to_owned());
        let expired = sealer.seal(&user, Duration::ZERO).unwrap();
        assert!(matches!(sealer.open(&expired), Ok(None)));
        let token = sealer.seal(&user, HOUR).unwrap();
        for at in PREFIX.len()..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(matches!(sealer.open(&changed), Ok(None)), "{at}");
        }
        for foreign in ["", "x.y.z", "starlift"] {
            assert!(sealer.open(foreign).is_err(), "{foreign:?}");
        }
        assert!(matches!(sealer.open("starlift."), Ok(None)));
    }
}
