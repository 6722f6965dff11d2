//! Keys: a private one that signs, and public ones that are trusted. Ed25519, or ECDSA on P-256 with
//! SHA-256, which `cosign` writes; in PEM, as OpenSSL writes it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use sha2::{Digest as _, Sha256};

/// Longest file of a key. A key has a few hundred bytes; comments may stand around it.
const MAX_KEY_FILE: u64 = 64 << 10;
/// The DER in front of the bytes of a public key (RFC 8410; RFC 5480, a point that is not
/// compressed).
const ED25519_SPKI: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_BYTES: usize = 32;
const P256_BYTES: usize = 65;

const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";

/// The name of a key: the SHA-256 of its public half (SubjectPublicKeyInfo, DER), in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

/// A private key.
pub struct SigningKey {
    public: PublicKey,
    pair: Pair,
}

/// The public keys whose signatures count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

/// The file of a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("key {}: {reason}", path.display())]
pub struct KeyError {
    path: PathBuf,
    reason: KeyReason,
}

/// Why the bytes of a file are not the wanted key. Never quotes them.
#[derive(Debug, thiserror::Error)]
enum KeyReason {
    #[error("not readable: {0}")]
    Unreadable(io::Error),
    #[error("file is longer than {MAX_KEY_FILE} bytes")]
    TooLong,
    #[error("no PEM block; `openssl genpkey -algorithm ed25519` writes a private key")]
    NotPem,
    #[error("damaged PEM block")]
    Damaged,
    #[error("file has a private key, and a public one is wanted: `openssl pkey -pubout` writes it")]
    Private,
    #[error("file has a public key, and a private one is wanted")]
    Public,
    #[error(
        "PEM block is {0:?}, and PKCS#8 without a password is wanted: `openssl pkcs8 -topk8 -nocrypt` \
         writes it"
    )]
    NotPkcs8(String),
    #[error("PEM block is {0:?}, and \"PUBLIC KEY\" is wanted")]
    NotPublic(String),
    #[error("neither an Ed25519 key nor an ECDSA key on P-256")]
    Unsupported,
}

/// The system has no random numbers, which an ECDSA signature needs.
#[derive(Debug, thiserror::Error)]
#[error("no random numbers for the signature")]
pub struct SignError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Ed25519,
    P256,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl KeyId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Algorithm {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Ed25519 => ED25519_SPKI,
            Self::P256 => P256_SPKI,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Ed25519 => ED25519_BYTES,
            Self::P256 => P256_BYTES,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &ED25519,
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
        }
    }
}

impl PublicKey {
    /// Reads the file of a public key.
    ///
    /// # Errors
    /// If it cannot be read, or holds another thing.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        read(path)
            .and_then(|pem| Self::from_pem(&pem))
            .map_err(of(path))
    }

    fn from_pem(pem: &[u8]) -> Result<Self, KeyReason> {
        match label(pem)?.as_str() {
            PUBLIC => {}
            private if private.ends_with(PRIVATE) => return Err(KeyReason::Private),
            other => return Err(KeyReason::NotPublic(other.to_owned())),
        }
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem);
        let spki = spki.map_err(|_damaged| KeyReason::Damaged)?;
        for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
            match spki.strip_prefix(algorithm.prefix()) {
                Some(bytes) if bytes.len() == algorithm.len() => {
                    return Ok(Self::new(algorithm, bytes));
                }
                _ => {}
            }
        }
        Err(KeyReason::Unsupported)
    }

    fn new(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let spki = [algorithm.prefix(), bytes].concat();
        Self {
            id: KeyId(hex::encode(Sha256::digest(spki))),
            algorithm,
            bytes: bytes.to_vec(),
        }
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm.verification(), &self.bytes)
            .verify(message, signature)
            .is_ok()
    }
}

impl SigningKey {
    /// Reads the file of a private key.
    ///
    /// # Errors
    /// If it cannot be read, or holds another thing.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        read(path)
            .and_then(|pem| Self::from_pem(&pem))
            .map_err(of(path))
    }

    fn from_pem(pem: &[u8]) -> Result<Self, KeyReason> {
        match label(pem)?.as_str() {
            PRIVATE => {}
            PUBLIC => return Err(KeyReason::Public),
            other => return Err(KeyReason::NotPkcs8(other.to_owned())),
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem);
        let der = der.map_err(|_damaged| KeyReason::Damaged)?;
        let der = der.secret_pkcs8_der();
        // OpenSSL writes Ed25519 keys without their public half.
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            let public = PublicKey::new(Algorithm::Ed25519, pair.public_key().as_ref());
            let pair = Pair::Ed25519(pair);
            return Ok(Self { public, pair });
        }
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random);
        let pair = pair.map_err(|_rejected| KeyReason::Unsupported)?;
        let public = PublicKey::new(Algorithm::P256, pair.public_key().as_ref());
        let pair = Pair::P256(pair);
        Ok(Self { public, pair })
    }

    pub fn id(&self) -> &KeyId {
        &self.public.id
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message`. An Ed25519 signature is always the same, an ECDSA one never.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message);
                signature
                    .map(|signature| signature.as_ref().to_vec())
                    .map_err(|_no_randomness| SignError)
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(self.id()).finish()
    }
}

impl TrustedKeys {
    /// Reads the files of public keys.
    ///
    /// # Errors
    /// If one of them cannot be read, or holds another thing.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, KeyError> {
        let keys = paths.iter().map(|path| PublicKey::read(path.as_ref()));
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

fn of(path: &Path) -> impl FnOnce(KeyReason) -> KeyError {
    let path = path.to_owned();
    move |reason| KeyError { path, reason }
}

fn read(path: &Path) -> Result<Vec<u8>, KeyReason> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes))
        .map_err(KeyReason::Unreadable)?;
    if bytes.len() as u64 > MAX_KEY_FILE {
        return Err(KeyReason::TooLong);
    }
    Ok(bytes)
}

/// Returns the label of the first PEM block.
fn label(pem: &[u8]) -> Result<String, KeyReason> {
    let text = std::str::from_utf8(pem).map_err(|_binary| KeyReason::NotPem)?;
    let labels = text.lines().filter_map(|line| {
        let line = line.trim_end().strip_prefix("-----BEGIN ")?;
        line.strip_suffix("-----")
    });
    // OpenSSL may write the parameters of a curve in front of the key.
    let mut labels = labels.filter(|label| *label != "EC PARAMETERS");
    Ok(labels.next().ok_or(KeyReason::NotPem)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3, the key of which 10.1 has the public half.
    const ED25519_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    fn signing(pem: &str) -> SigningKey {
        SigningKey::from_pem(pem.as_bytes()).unwrap()
    }

    #[test]
    fn the_public_half_of_a_private_key_is_the_public_key() {
        let (private, public) = (
            signing(ED25519_PRIVATE),
            PublicKey::from_pem(ED25519_PUBLIC.as_bytes()).unwrap(),
        );
        assert_eq!(private.public(), &public);
        // `openssl pkey -pubin -outform DER | sha256sum`
        assert_eq!(public.id().as_str().len(), 64);
        assert_eq!(
            format!("{private:?}"),
            format!("SigningKey(KeyId({:?}))", public.id().as_str()),
            "nothing of the private key"
        );
    }

    #[test]
    fn signatures_of_ed25519_are_always_the_same() {
        let key = signing(ED25519_PRIVATE);
        assert_eq!(key.sign(b"a").unwrap(), key.sign(b"a").unwrap());
        assert!(key.public().verifies(b"a", &key.sign(b"a").unwrap()));
        assert!(!key.public().verifies(b"b", &key.sign(b"a").unwrap()));
    }

    #[test]
    fn files_of_other_things_are_refused_with_the_mend() {
        let reason = |outcome: Result<(), KeyReason>| outcome.unwrap_err().to_string();
        let private = |pem: &str| reason(SigningKey::from_pem(pem.as_bytes()).map(drop));
        let public = |pem: &str| reason(PublicKey::from_pem(pem.as_bytes()).map(drop));
        assert!(private("").contains("openssl genpkey"));
        assert!(private(ED25519_PUBLIC).contains("a private one is wanted"));
        assert!(public(ED25519_PRIVATE).contains("openssl pkey -pubout"));
        let sec1 = ED25519_PRIVATE.replace("PRIVATE KEY", "EC PRIVATE KEY");
        let sec1 =
            format!("-----BEGIN EC PARAMETERS-----\nAA==\n-----END EC PARAMETERS-----\n{sec1}");
        assert!(
            private(&sec1).contains("openssl pkcs8 -topk8"),
            "{}",
            private(&sec1)
        );
        assert!(public(&sec1).contains("a public one is wanted"));
        let cosign = ED25519_PRIVATE.replace("PRIVATE KEY", "ENCRYPTED SIGSTORE PRIVATE KEY");
        assert!(private(&cosign).contains("without a password"));
        let certificate = ED25519_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE");
        assert!(public(&certificate).contains("\"CERTIFICATE\""));
        assert!(private(&ED25519_PRIVATE.replace("MC4C", "M!4C")).contains("damaged"));
        assert!(private(&ED25519_PRIVATE.replace("MC4C", "MC4D")).contains("neither"));
        assert!(public(&ED25519_PUBLIC.replace("K2Vw", "K2Vx")).contains("neither"));
    }

    #[test]
    fn a_missing_file_and_a_huge_one_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let missing = SigningKey::read(&path).unwrap_err().to_string();
        assert!(missing.contains("key.pem: not readable"), "{missing}");
        std::fs::write(&path, vec![b'\n'; 70 << 10]).unwrap();
        let huge = PublicKey::read(&path).unwrap_err().to_string();
        assert!(huge.contains("longer than 65536 bytes"), "{huge}");
    }
}
