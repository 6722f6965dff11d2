//! Files of keys, as `openssl genpkey` and `openssl pkey -pubout` write them.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use starlift::provenance::{PublicKey, SigningKey, TrustedKeys};

/// The DER in front of the bytes of a public key (RFC 8410).
const SPKI: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The two files of an Ed25519 key.
#[derive(Debug, Clone)]
pub(crate) struct KeyFiles {
    pub(crate) private: PathBuf,
    pub(crate) public: PathBuf,
}

impl KeyFiles {
    /// Writes the files of a new key, `NAME.pem` and `NAME.pub`.
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        let private = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(private.as_ref()).unwrap();
        let public = [SPKI, pair.public_key().as_ref()].concat();
        let write = |name: String, label: &str, der: &[u8]| {
            let path = directory.join(name);
            let text = STANDARD.encode(der);
            let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
            std::fs::write(&path, pem).unwrap();
            path
        };
        Self {
            private: write(format!("{name}.pem"), "PRIVATE KEY", private.as_ref()),
            public: write(format!("{name}.pub"), "PUBLIC KEY", &public),
        }
    }

    pub(crate) fn signing(&self) -> SigningKey {
        SigningKey::read(&self.private).unwrap()
    }

    pub(crate) fn trusted(&self) -> TrustedKeys {
        [PublicKey::read(&self.public).unwrap()]
            .into_iter()
            .collect()
    }

    /// The name of the key.
    pub(crate) fn id(&self) -> String {
        self.signing().id().to_string()
    }

    pub(crate) fn public_path(&self) -> &str {
        self.public.to_str().unwrap()
    }

    pub(crate) fn private_path(&self) -> &str {
        self.private.to_str().unwrap()
    }
}
