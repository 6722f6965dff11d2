//! A fuzz target: tokens and keys as anybody may send them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::jwt::{Claims, MAX_SUBJECT, Unverified};
use super::keys::Keys;

const NOW: u64 = 1_000_000;
/// The public key of RFC 8037, appendix A.2.
const KEYS: &[u8] = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A header and claims, a whole token, and keys.
pub fn seeds() -> Vec<Vec<u8>> {
    let parts = br#"{"alg":"EdDSA"}
{"iss":"https://issuer.example","sub":"a:b","aud":["starlift"],"exp":1000060,"nbf":999940.5}"#;
    let token = b"eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ4In0.AAAA";
    vec![parts.to_vec(), token.to_vec(), KEYS.to_vec()]
}

/// Input: a token's header and claims in two lines, or a token, or keys. Without the private key no
/// token counts, and claims that count have a subject and an end to come.
pub fn tokens(data: &[u8]) {
    let _read = Keys::parse(data);
    let keys = Keys::parse(KEYS).expect("a public key");
    let audiences = ["starlift".to_owned()];
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (header, payload) = (parts.next(), parts.next().unwrap_or_default());
    let encoded = [header.unwrap_or_default(), payload, &[0; 64]];
    let encoded = encoded.map(|part| URL_SAFE_NO_PAD.encode(part));
    let raw = String::from_utf8_lossy(data).into_owned();
    for token in [encoded.join("."), raw] {
        if let Some(token) = Unverified::parse(&token) {
            assert!(token.verify(&keys, &audiences, NOW).is_err(), "{token:?}");
        }
    }
    if let Ok(claims) = Claims::checked(payload, &audiences, NOW) {
        assert!(claims.until > NOW, "{claims:?}");
        assert!((1..=MAX_SUBJECT).contains(&claims.subject.len()));
    }
}
