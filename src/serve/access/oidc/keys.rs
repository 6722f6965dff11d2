//! The public keys of an issuer (RFC 7517) and the signatures that they verify (RFC 7518). Pure.
//!
//! A key decides which algorithms it verifies. The token's `alg` only has to be one of them, so that
//! no token can choose another kind of key, no key, or a public key as a secret one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// The largest document of keys: hundreds of RSA keys.
pub(super) const MAX_JWKS: usize = 256 << 10;
/// The most keys of an issuer. Issuers have two or three at a time.
const MAX_KEYS: usize = 64;
/// The longest name of a key.
const MAX_KID: usize = 256;

/// Why a document of keys cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwksError {
    #[error("longer than 256 KiB")]
    TooLarge,
    #[error("not a JSON Web Key Set")]
    Malformed,
    #[error("more than 64 keys")]
    TooMany,
    #[error("no key of a supported kind")]
    Empty,
}

/// The algorithms that count: signatures with public keys only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            // RFC 9864 has a name for the curve too.
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    /// The hash of an RSA signature. Moduli of fewer than 2048 bits do not count.
    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Es256 | Self::Es384 | Self::EdDsa => None,
        }
    }
}

/// A key, with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    kid: Option<String>,
    /// The only algorithm, if the issuer says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

/// The keys of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Keys(Vec<Key>);

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Parses a document. Keys that this server cannot use are left out.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, JwksError> {
        if bytes.len() > MAX_JWKS {
            return Err(JwksError::TooLarge);
        }
        let document: Document =
            serde_json::from_slice(bytes).map_err(|_error| JwksError::Malformed)?;
        if document.keys.len() > MAX_KEYS {
            return Err(JwksError::TooMany);
        }
        let keys = document.keys.into_iter();
        let keys: Vec<Key> = keys
            .filter_map(|value| Key::of(serde_json::from_value(value).ok()?))
            .collect();
        if keys.is_empty() {
            return Err(JwksError::Empty);
        }
        Ok(Self(keys))
    }

    /// Whether a key with this name is among them; without a name, whether there is a key at all.
    pub(super) fn has(&self, kid: Option<&str>) -> bool {
        self.0
            .iter()
            .any(|key| kid.is_none() || key.kid.as_deref() == kid)
    }

    /// Whether the key with this name, or the only one if there is no name, has signed the message.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let fits = |key: &&Key| {
            let is_named = kid.is_none() || key.kid.as_deref() == kid;
            is_named && key.takes(algorithm)
        };
        let mut fitting = self.0.iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => key.verify(algorithm, message, signature),
            _ => false,
        }
    }
}

impl Key {
    fn of(jwk: Jwk) -> Option<Self> {
        let is_for_signatures = jwk
            .purpose
            .as_deref()
            .is_none_or(|purpose| purpose == "sig");
        let is_named = jwk.kid.as_ref().is_none_or(|kid| kid.len() <= MAX_KID);
        let algorithm = match &jwk.alg {
            Some(name) => Some(Algorithm::parse(name)?),
            None => None,
        };
        let number = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        let point = |length: usize| {
            let (x, y) = (number(&jwk.x)?, number(&jwk.y)?);
            let is_whole = x.len() == length && y.len() == length;
            is_whole.then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Material::Rsa {
                n: number(&jwk.n)?,
                e: number(&jwk.e)?,
            },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(number(&jwk.x)?),
            _ => return None,
        };
        let key = Self {
            kid: jwk.kid,
            algorithm,
            material,
        };
        (is_for_signatures && is_named).then_some(key)
    }

    fn takes(&self, algorithm: Algorithm) -> bool {
        let is_of_kind = match self.material {
            Material::Rsa { .. } => algorithm.rsa().is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
        };
        is_of_kind && self.algorithm.is_none_or(|only| only == algorithm)
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let verified = match (&self.material, algorithm.rsa()) {
            (Material::Rsa { n, e }, Some(parameters)) => {
                // ring takes numbers without leading zeros. Some issuers write them.
                let n = &n[n.iter().take_while(|byte| **byte == 0).count()..];
                RsaPublicKeyComponents { n, e: e.as_slice() }.verify(parameters, message, signature)
            }
            (Material::P256(point), _) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Material::P384(point), _) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Material::Ed25519(point), _) => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
            (Material::Rsa { .. }, None) => return false,
        };
        verified.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    fn encoded(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn keys(keys: &[Value]) -> Result<Keys, JwksError> {
        Keys::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_verifies_only_its_own_algorithm() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let x = encoded(pair.public_key().as_ref());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "a"});
        let keys = keys(&[jwk]).unwrap();
        let signature = pair.sign(b"message");
        let verify = |kid, algorithm, message: &[u8]| {
            keys.verify(kid, algorithm, message, signature.as_ref())
        };
        assert!(verify(Some("a"), Algorithm::EdDsa, b"message"));
        assert!(verify(None, Algorithm::EdDsa, b"message"));
        assert!(!verify(Some("b"), Algorithm::EdDsa, b"message"));
        assert!(!verify(Some("a"), Algorithm::EdDsa, b"massage"));
        for other in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384] {
            assert!(!verify(Some("a"), other, b"message"), "{other:?}");
        }
        assert!(keys.has(Some("a")) && !keys.has(Some("b")));
    }

    #[test]
    fn without_a_name_only_an_unambiguous_key_counts() {
        let random = SystemRandom::new();
        let of_curve = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = || {
            let document = EcdsaKeyPair::generate_pkcs8(of_curve, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(of_curve, document.as_ref(), &random).unwrap()
        };
        let jwk = |pair: &EcdsaKeyPair, kid: &str| {
            let point = pair.public_key().as_ref();
            json!({
                "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256",
                "x": encoded(&point[1..33]), "y": encoded(&point[33..]),
            })
        };
        let (one, other) = (pair(), pair());
        let signature = one.sign(&random, b"message").unwrap();
        let verify =
            |keys: &Keys, kid| keys.verify(kid, Algorithm::Es256, b"message", signature.as_ref());
        let alone = keys(&[jwk(&one, "1")]).unwrap();
        assert!(verify(&alone, None) && verify(&alone, Some("1")));
        let both = keys(&[jwk(&one, "1"), jwk(&other, "2")]).unwrap();
        assert!(verify(&both, Some("1")));
        assert!(!verify(&both, None) && !verify(&both, Some("2")));
        let twice = keys(&[jwk(&other, "1"), jwk(&one, "1")]).unwrap();
        assert!(!verify(&twice, Some("1")), "an ambiguous name");
    }

    #[test]
    fn hostile_documents_of_keys_are_refused_whole_and_useless_keys_left_out() {
        let x = encoded(&[9; 32]);
        let good = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "a"});
        let with = |name: &str, value: Value| {
            let mut jwk = good.clone();
            jwk[name] = value;
            jwk
        };
        for useless in [
            json!({"kty": "oct", "k": x, "kid": "a"}),
            with("use", json!("enc")),
            with("alg", json!("HS256")),
            with("alg", json!("none")),
            with("crv", json!("X25519")),
            with("x", json!("not base64url!")),
            with("kid", json!(7)),
            with("kid", json!("k".repeat(300))),
            json!({"kty": "EC", "crv": "P-256", "x": x}),
            json!({"kty": "EC", "crv": "P-256", "x": x, "y": encoded(&[9; 31])}),
            json!(3),
        ] {
            assert_eq!(
                keys(std::slice::from_ref(&useless)),
                Err(JwksError::Empty),
                "{useless}"
            );
            let both = keys(&[useless, good.clone()]).unwrap();
            assert_eq!(both.0.len(), 1);
        }
        let many = vec![good; MAX_KEYS + 1];
        assert_eq!(keys(&many), Err(JwksError::TooMany));
        assert_eq!(
            Keys::parse(&vec![b' '; MAX_JWKS + 1]),
            Err(JwksError::TooLarge)
        );
        for text in ["", "[]", "{}", "{\"keys\": 3}", "<html>"] {
            assert_eq!(
                Keys::parse(text.as_bytes()),
                Err(JwksError::Malformed),
                "{text}"
            );
        }
    }
}
