//! JSON Web Tokens in their compact form (RFC 7515, RFC 7519): parsed, verified and checked. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Number;

use super::keys::{Algorithm, Keys};

/// The longest token. Those of Kubernetes have one or two KiB; a header of HTTP has 64 KiB.
const MAX_TOKEN: usize = 16 << 10;
/// The longest subject.
pub(super) const MAX_SUBJECT: usize = 512;
/// How far the clocks of issuer and server may differ, in seconds.
pub(super) const MAX_SKEW: u64 = 30;

/// Why a token of a known issuer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("signature not verified")]
    Signature,
    #[error("claims missing or malformed")]
    Claims,
    #[error("for another audience")]
    Audience,
    #[error("expired")]
    Expired,
    #[error("not valid yet")]
    Early,
    #[error("unknown key")]
    UnknownKey,
}

/// A token that has been split, not yet verified.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    pub(super) kid: Option<String>,
    /// As the token says. The keys of this issuer decide.
    pub(super) issuer: String,
    /// `None` for an algorithm that does not count.
    algorithm: Option<Algorithm>,
    /// The signed part.
    message: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// The claims of a verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) subject: String,
    /// Seconds since 1970.
    pub(super) until: u64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None is.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

#[derive(Deserialize)]
struct Payload {
    sub: String,
    aud: Audience,
    exp: Number,
    nbf: Option<Number>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl<'a> Unverified<'a> {
    /// Splits a token. `None` if it is not one.
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        let header: Header = serde_json::from_slice(&decoded(header)?).ok()?;
        let payload = decoded(payload)?;
        let issuer: Issuer = serde_json::from_slice(&payload).ok()?;
        let algorithm = Algorithm::parse(&header.alg).filter(|_| header.crit.is_none());
        Some(Self {
            kid: header.kid,
            issuer: issuer.iss,
            algorithm,
            message,
            payload,
            signature: decoded(signature)?,
        })
    }

    /// Verifies the signature, then the claims.
    pub(super) fn verify(
        &self,
        keys: &Keys,
        audiences: &[String],
        now: u64,
    ) -> Result<Claims, Flaw> {
        let algorithm = self.algorithm.ok_or(Flaw::Signature)?;
        let message = self.message.as_bytes();
        if !keys.verify(self.kid.as_deref(), algorithm, message, &self.signature) {
            return Err(Flaw::Signature);
        }
        Claims::checked(&self.payload, audiences, now)
    }
}

impl Claims {
    /// Parses the claims of a token, whose signature is verified before, and checks that it is for one
    /// of `audiences` and valid now.
    pub(super) fn checked(payload: &[u8], audiences: &[String], now: u64) -> Result<Self, Flaw> {
        let payload: Payload =
            serde_json::from_slice(payload).map_err(|_malformed| Flaw::Claims)?;
        let is_name =
            |sub: &str| (1..=MAX_SUBJECT).contains(&sub.len()) && !sub.contains(char::is_control);
        if !is_name(&payload.sub) {
            return Err(Flaw::Claims);
        }
        let is_ours = |audience: &String| audiences.contains(audience);
        let is_for_us = match &payload.aud {
            Audience::One(audience) => is_ours(audience),
            Audience::Many(all) => all.iter().any(is_ours),
        };
        if !is_for_us {
            return Err(Flaw::Audience);
        }
        let until = seconds(&payload.exp)
            .ok_or(Flaw::Claims)?
            .saturating_add(MAX_SKEW);
        if until <= now {
            return Err(Flaw::Expired);
        }
        if let Some(from) = &payload.nbf
            && seconds(from).ok_or(Flaw::Claims)? > now.saturating_add(MAX_SKEW)
        {
            return Err(Flaw::Early);
        }
        Ok(Self {
            subject: payload.sub,
            until,
        })
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Whole seconds of a `NumericDate`, which may have a fraction.
fn seconds(number: &Number) -> Option<u64> {
    if let Some(whole) = number.as_u64() {
        return Some(whole);
    }
    let text = number.to_string();
    let (whole, fraction) = text.split_once('.')?;
    let is_plain = fraction.bytes().all(|byte| byte.is_ascii_digit());
    whole.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use ring::hmac;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn pair() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
    }

    fn keys() -> Keys {
        let x = URL_SAFE_NO_PAD.encode(pair().public_key());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "a"});
        Keys::parse(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap()
    }

    fn message(header: &Value, payload: &str) -> String {
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}", encoded(&header.to_string()), encoded(payload))
    }

    fn header() -> Value {
        json!({"alg": "EdDSA", "kid": "a"})
    }

    fn payload() -> Value {
        json!({"iss": "https://issuer", "sub": "me", "aud": "here", "exp": NOW + 60})
    }

    /// Signs a token.
    fn token(header: &Value, payload: &str) -> String {
        let message = message(header, payload);
        let signature = pair().sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn verified(token: &str) -> Result<Claims, Flaw> {
        let unverified = Unverified::parse(token).expect("a token");
        assert_eq!(unverified.issuer, "https://issuer");
        unverified.verify(&keys(), &["here".to_owned()], NOW)
    }

    fn with(name: &str, value: Value) -> String {
        let mut payload = payload();
        payload[name] = value;
        token(&header(), &payload.to_string())
    }

    #[test]
    fn times_and_audiences_are_checked_within_the_skew() {
        let good = verified(&token(&header(), &payload().to_string())).unwrap();
        assert_eq!(
            good,
            Claims {
                subject: "me".to_owned(),
                until: NOW + 60 + MAX_SKEW
            }
        );
        for (name, value, expected) in [
            ("aud", json!(["there", "here"]), None),
            ("aud", json!(["there"]), Some(Flaw::Audience)),
            ("aud", json!([]), Some(Flaw::Audience)),
            ("aud", json!(7), Some(Flaw::Claims)),
            ("exp", json!(NOW - MAX_SKEW + 1), None),
            ("exp", json!(NOW - MAX_SKEW), Some(Flaw::Expired)),
            (
                "exp",
                json!(NOW + 1).as_f64().map(|exp| exp + 0.5).into(),
                None,
            ),
            ("exp", json!((NOW + 60).to_string()), Some(Flaw::Claims)),
            ("exp", json!(-1), Some(Flaw::Claims)),
            ("exp", json!(1e300), Some(Flaw::Claims)),
            ("exp", Value::Null, Some(Flaw::Claims)),
            ("exp", json!(u64::MAX), None),
            ("nbf", json!(NOW + MAX_SKEW), None),
            ("nbf", json!(NOW + MAX_SKEW + 1), Some(Flaw::Early)),
            ("nbf", json!("0"), Some(Flaw::Claims)),
            ("sub", json!(""), Some(Flaw::Claims)),
            ("sub", json!("a\nb"), Some(Flaw::Claims)),
            (
                "sub",
                json!("a".repeat(MAX_SUBJECT + 1)),
                Some(Flaw::Claims),
            ),
        ] {
            let found = verified(&with(name, value.clone()));
            assert_eq!(found.err(), expected, "{name} {value}");
        }
        let twice = payload()
            .to_string()
            .replacen('{', "{\"exp\":9999999999,", 1);
        assert_eq!(verified(&token(&header(), &twice)), Err(Flaw::Claims));
    }

    #[test]
    fn no_signature_and_a_public_key_as_a_secret_do_not_count() {
        let payload = payload().to_string();
        for alg in ["none", "None", "NONE", "", "HS256", "RS256", "ES256"] {
            let unsigned = message(&json!({"alg": alg, "kid": "a"}), &payload);
            assert_eq!(
                verified(&format!("{unsigned}.")),
                Err(Flaw::Signature),
                "{alg}"
            );
            let secret = hmac::Key::new(hmac::HMAC_SHA256, pair().public_key().as_ref());
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, unsigned.as_bytes()));
            assert_eq!(
                verified(&format!("{unsigned}.{tag}")),
                Err(Flaw::Signature),
                "{alg}"
            );
        }
        for header in [
            json!({"alg": "EdDSA", "kid": "b"}),
            json!({"alg": "EdDSA", "kid": "a", "crit": ["b64"], "b64": false}),
            json!({"alg": "EdDSA", "kid": "a", "crit": []}),
        ] {
            assert_eq!(
                verified(&token(&header, &payload)),
                Err(Flaw::Signature),
                "{header}"
            );
        }
        // A key in the token's own header is not asked.
        let own = json!({"alg": "EdDSA", "jwk": {"kty": "OKP"}, "jku": "https://evil", "kid": "a"});
        assert!(verified(&token(&own, &payload)).is_ok());
    }

    #[test]
    fn a_changed_token_does_not_verify() {
        let good = token(&header(), &payload().to_string());
        let parts: Vec<_> = good.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(payload().to_string().replace("me", "it"));
        let forged = [parts[0], other.as_str(), parts[2]].join(".");
        assert_eq!(verified(&forged), Err(Flaw::Signature));
        let cut = format!(
            "{}.{}.{}",
            parts[0],
            parts[1],
            URL_SAFE_NO_PAD.encode([7; 61])
        );
        assert_eq!(verified(&cut), Err(Flaw::Signature));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let long = with("more", json!("x".repeat(MAX_TOKEN)));
        let good = token(&header(), &payload().to_string());
        for text in [
            "",
            "..",
            "a.b.c",
            "starlift.AAAA",
            "0123456789-0123456789",
            &format!("{good}."),
            &format!(".{good}"),
            &good.replace('.', "=."),
            &long,
        ] {
            assert!(Unverified::parse(text).is_none(), "{text:.40}");
        }
    }
}
