//! Logins, and the `Authorization` headers made from them.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::header::HeaderValue;

use crate::registry::config::Secret;
use crate::registry::error::Error;

/// How long the answer of a credential helper or a password file is used before it is read again.
pub(super) const LOGIN_LIFETIME: Duration = Duration::from_secs(60);

/// A way to log in.
#[derive(Debug, Clone)]
pub enum Login {
    Anonymous,
    Password {
        user: String,
        password: Secret,
    },
    /// A refresh token for token endpoints.
    Identity(Secret),
}

impl Login {
    /// Parses base64, padded or not, of `user:password`, as in the `auth` field of Docker's
    /// configuration.
    pub fn from_basic(encoded: &str) -> Option<Self> {
        let lenient =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let bytes = GeneralPurpose::new(&alphabet::STANDARD, lenient)
            .decode(encoded)
            .ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Self::Password {
            user: user.to_owned(),
            password: Secret::new(password.trim_end_matches('\0')),
        })
    }

    /// Returns the `Authorization: Basic` header; `None` without a password.
    pub(super) fn basic(&self) -> Result<Option<HeaderValue>, Error> {
        let Self::Password { user, password } = self else {
            return Ok(None);
        };
        let text = format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{}", password.expose()))
        );
        secret_header(&text).map(Some)
    }
}

/// Returns the `Authorization: Bearer` header for `token`.
pub(super) fn bearer_header(token: &str) -> Result<HeaderValue, Error> {
    secret_header(&format!("Bearer {token}"))
}

fn secret_header(text: &str) -> Result<HeaderValue, Error> {
    // The cause is dropped on purpose, because the text is secret.
    let unfit =
        |_error| Error::Malformed("token or password does not fit into a header".to_owned());
    let mut header = HeaderValue::from_str(text).map_err(unfit)?;
    header.set_sensitive(true);
    Ok(header)
}
