//! The envelope of a signed document: DSSE, version 1 (github.com/secure-systems-lab/dsse,
//! `envelope.md` and `protocol.md`).
//!
//! The signature is over the exact bytes of the payload and its type, so that nobody parses them
//! before they are verified.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::{Deserialize, Serialize};

use super::keys::{KeyId, SignError, SigningKey};

/// The media type of an envelope, and the type of the artifact that holds it.
pub const MEDIA_TYPE: &str = "application/vnd.dsse.envelope.v1+json";
/// Longest envelope. The statement on an image of the most layers, in base64, is a third of it.
pub const MAX_ENVELOPE_BYTES: usize = 1 << 20;
/// Most signatures of an envelope, each of which may be tried with each trusted key.
const MAX_SIGNATURES: usize = 16;

/// Readers accept base64 of both alphabets (`protocol.md`), with or without padding.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const ANY_STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const ANY_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// A document with its signatures, none of which is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub payload_type: String,
    pub(super) payload: Vec<u8>,
    pub(super) signatures: Vec<Signature>,
}

/// A signature, and the key that it claims to be of. The claim is not part of the signed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) key_id: String,
    pub(super) bytes: Vec<u8>,
}

/// The bytes are not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("envelope is longer than {MAX_ENVELOPE_BYTES} bytes")]
    TooLong,
    #[error("not a DSSE envelope")]
    Json(#[source] serde_json::Error),
    #[error("{0} of the envelope is not base64")]
    Base64(&'static str),
    #[error("envelope has no signature")]
    Unsigned,
    #[error("envelope has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
}

/// The envelope as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireSignature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    sig: String,
}

/// Returns the bytes that are signed: the pre-authentication encoding of a payload and its type
/// (`protocol.md`, "Signature Definition").
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Signs `payload`.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub(super) fn sign(
        payload_type: &str,
        payload: Vec<u8>,
        key: &SigningKey,
    ) -> Result<Self, SignError> {
        let signature = Signature {
            key_id: key.id().to_string(),
            bytes: key.sign(&pae(payload_type, &payload))?,
        };
        Ok(Self {
            payload_type: payload_type.to_owned(),
            payload,
            signatures: vec![signature],
        })
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// If the bytes are not an envelope, have no signature, or are more than the limits allow.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLong);
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(EnvelopeError::Json)?;
        if wire.signatures.is_empty() {
            return Err(EnvelopeError::Unsigned);
        }
        if wire.signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::TooManySignatures);
        }
        let signatures = wire.signatures.into_iter().map(|signature| {
            Ok(Signature {
                key_id: signature.keyid.unwrap_or_default(),
                bytes: decode(&signature.sig, "a signature")?,
            })
        });
        Ok(Self {
            payload_type: wire.payload_type,
            payload: decode(&wire.payload, "the payload")?,
            signatures: signatures.collect::<Result<_, EnvelopeError>>()?,
        })
    }

    /// Returns the envelope's JSON. The same envelope always has the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let signatures = self.signatures.iter().map(|signature| WireSignature {
            keyid: Some(signature.key_id.clone()).filter(|id| !id.is_empty()),
            sig: STANDARD.encode(&signature.bytes),
        });
        let wire = Wire {
            payload: STANDARD.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: signatures.collect(),
        };
        // Only maps whose keys are not strings fail.
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// Returns the keys that the signatures claim to be of.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.signatures
            .iter()
            .map(|signature| signature.key_id.as_str())
    }

    /// Whether one of the signatures claims to be of this key.
    pub(super) fn claims(&self, key: &KeyId) -> bool {
        self.key_ids().any(|id| id == key.as_str())
    }
}

fn decode(text: &str, part: &'static str) -> Result<Vec<u8>, EnvelopeError> {
    let decoded = ANY_STANDARD.decode(text);
    decoded
        .or_else(|_not_standard| ANY_URL_SAFE.decode(text))
        .map_err(|_not_base64| EnvelopeError::Base64(part))
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    const HELLO_TYPE: &str = "http://example.com/HelloWorld";

    #[test]
    fn the_signed_bytes_are_those_of_the_specification() {
        // `protocol.md`, "Test Vectors".
        let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(pae(HELLO_TYPE, b"hello world"), expected);
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
        // Lengths are in bytes.
        assert_eq!(pae("ä", &[0, 255]), b"DSSEv1 2 \xc3\xa4 2 \x00\xff");
    }

    #[test]
    fn the_signature_of_the_specification_is_one_of_these_bytes() {
        // The same test vectors: an envelope, and the public key as X and Y. The signature is r and
        // s, not the DER that Starlift, OpenSSL and cosign write.
        let envelope = br#"{"payload": "aGVsbG8gd29ybGQ=",
            "payloadType": "http://example.com/HelloWorld",
            "signatures": [{"sig": "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="}]}"#;
        let envelope = Envelope::parse(envelope).unwrap();
        let point = concat!(
            "04",
            "67cd390f77aa359cb08c2235f652270493a9ed832b0abcc01f70954c0390d238",
            "0c782bd54e269125a44f4433aff1432ce94e12bca73aa67ac80cea12608ddf74"
        );
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, hex::decode(point).unwrap());
        let message = pae(&envelope.payload_type, &envelope.payload);
        key.verify(&message, &envelope.signatures[0].bytes).unwrap();
    }

    #[test]
    fn an_envelope_survives_its_json_and_unknown_fields_are_ignored() {
        let envelope = Envelope {
            payload_type: HELLO_TYPE.to_owned(),
            payload: b"hello world".to_vec(),
            signatures: vec![Signature {
                key_id: "k".to_owned(),
                bytes: vec![255, 254, 253],
            }],
        };
        let json = envelope.to_json();
        assert_eq!(Envelope::parse(&json).unwrap(), envelope);
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains(r#""payload":"aGVsbG8gd29ybGQ=""#), "{text}");
        let url_safe = text.replace("//79", "__79").replace("GQ=", "GQ");
        let more = url_safe.replacen('{', r#"{"later":[1],"#, 1);
        assert_eq!(Envelope::parse(more.as_bytes()).unwrap(), envelope);
    }
}
