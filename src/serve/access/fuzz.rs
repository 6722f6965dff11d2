//! Fuzz targets: the tokens, keys and certificates that identify clients.

use rustls::pki_types::CertificateDer;

pub use super::oidc::fuzz::{seeds, tokens};
use super::{CertificateFields, ClientCertificate};

/// Input: a certificate. The names of a certificate that can be read are parts of it.
pub fn certificates(data: &[u8]) {
    let Some(fields) = CertificateFields::read(data) else {
        return;
    };
    let is_part =
        |name: &[u8]| name.is_empty() || data.windows(name.len()).any(|part| part == name);
    assert!(is_part(&fields.issuer) && is_part(&fields.subject));
    if let Some(client) = ClientCertificate::read(&CertificateDer::from(data)) {
        assert_eq!(client.until, fields.until);
    }
}
