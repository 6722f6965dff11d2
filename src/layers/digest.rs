//! Conversions between this crate's digests and those of the eStargz crate, which supports SHA-256
//! only.

use estargz::digest::ParseDigestError;

use crate::oci::Digest;

/// Converts a digest of the eStargz crate.
pub(crate) fn from_format(digest: estargz::Digest) -> Digest {
    Digest::from_sha256(*digest.as_bytes())
}

/// Converts a digest to the type of the eStargz crate.
///
/// # Errors
/// When the digest is not of SHA-256.
pub(crate) fn to_format(digest: &Digest) -> Result<estargz::Digest, ParseDigestError> {
    digest.to_string().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_both_ways() {
        let digest = Digest::sha256_of(b"x");
        assert_eq!(from_format(to_format(&digest).unwrap()), digest);
    }
}
