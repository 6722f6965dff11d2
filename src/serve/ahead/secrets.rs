//! The secrets of registries that announce pushes.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::io::AsyncReadExt as _;

use crate::serve::ahead_config::NotificationConfig;

/// The shortest secret that counts: shorter ones can be guessed.
const MIN_SECRET: usize = 20;
/// The longest file: some secrets.
const MAX_FILE: u64 = 16 << 10;

/// Why the file of a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("serve.notifications: the secret of {name} in {} cannot be read", file.display())]
    Read {
        name: String,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "serve.notifications: {} has no secret of {MIN_SECRET} characters or more for {name}; \
         `openssl rand -hex 32` makes one", file.display()
    )]
    TooShort { name: String, file: PathBuf },
}

/// Checks that a source's file has a secret.
pub(in crate::serve) async fn check(source: &NotificationConfig) -> Result<(), SecretError> {
    let file = &source.secret_file;
    match read(file).await {
        Ok(secrets) if secrets.is_empty() => Err(SecretError::TooShort {
            name: source.name.clone(),
            file: file.clone(),
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(SecretError::Read {
            name: source.name.clone(),
            file: file.clone(),
            source: error,
        }),
    }
}

/// Whether the headers show one of the source's secrets. A file that cannot be read is logged, and
/// nothing counts.
pub(super) async fn are_shown(source: &NotificationConfig, headers: &HeaderMap) -> bool {
    let shown = candidates(headers);
    if shown.is_empty() {
        return false;
    }
    match read(&source.secret_file).await {
        Ok(secrets) => is_one_of(&shown, &secrets),
        Err(error) => {
            let file = source.secret_file.display();
            tracing::warn!(source = source.name, %file, %error, "secret of notifications not read");
            false
        }
    }
}

async fn read(file: &Path) -> io::Result<Vec<String>> {
    let mut text = String::new();
    let opened = tokio::fs::File::open(file).await?;
    opened.take(MAX_FILE).read_to_string(&mut text).await?;
    let lines = text.lines().map(str::trim);
    let secrets = lines.filter(|line| line.len() >= MIN_SECRET);
    Ok(secrets.map(str::to_owned).collect())
}

/// The texts in `Authorization` that may be the secret: the whole value (Harbor sends its "auth
/// header" as it was typed), a bearer token, or a password (zot's credentials).
fn candidates(headers: &HeaderMap) -> Vec<String> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Vec::new();
    };
    let Ok(line) = line.to_str() else {
        return Vec::new();
    };
    let mut found = vec![line.trim().to_owned()];
    if let Some((scheme, value)) = line.split_once(' ') {
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            found.push(value.to_owned());
        }
        let decoded = STANDARD.decode(value).ok();
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        if scheme.eq_ignore_ascii_case("basic")
            && let Some((_, password)) = decoded.as_deref().and_then(|text| text.split_once(':'))
        {
            found.push(password.to_owned());
        }
    }
    found
}

/// Compares all with all, in a time that depends on their lengths only: as tags under a key that
/// is made for it.
fn is_one_of(shown: &[String], secrets: &[String]) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
        return false;
    };
    let mut is_known = false;
    for secret in secrets {
        let tag = hmac::sign(&key, secret.as_bytes());
        for text in shown {
            is_known |= hmac::verify(&key, text.as_bytes(), tag.as_ref()).is_ok();
        }
    }
    is_known
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123";

    async fn is_shown(lines: &[&str], file: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, file).unwrap();
        let source = NotificationConfig {
            name: "a".to_owned(),
            upstream: "local".to_owned(),
            secret_file: path,
            untagged: false,
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, line.parse().unwrap());
        }
        are_shown(&source, &headers).await
    }

    #[tokio::test]
    async fn a_secret_counts_in_each_form_that_senders_have() {
        let basic = format!("Basic {}", STANDARD.encode(format!("any:{SECRET}")));
        let bearer = format!("Bearer {SECRET}");
        let file = format!("another-secret-of-20-letters\n{SECRET}\n");
        for line in [SECRET, &bearer, &basic] {
            assert!(is_shown(&[line], &file).await, "{line}");
        }
        // A header that was typed with its scheme, and a secret that holds it.
        assert!(is_shown(&[&bearer], &bearer).await);
    }

    #[tokio::test]
    async fn wrong_short_and_repeated_secrets_count_for_nothing() {
        let bearer = format!("Bearer {SECRET}");
        let user = format!("Basic {}", STANDARD.encode(format!("{SECRET}:")));
        for lines in [
            &[][..],
            &[""],
            &["Bearer "],
            &["Bearer 0123456789abcdef0124"],
            &["Bearer 0123456789abcdef012"],
            &[&user],
            &[&bearer, &bearer],
        ] {
            assert!(!is_shown(lines, SECRET).await, "{lines:?}");
        }
        assert!(!is_shown(&["Bearer short"], "short\n").await);
        assert!(!is_shown(&["Bearer"], "\n\n").await);
    }
}
