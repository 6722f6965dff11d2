//! Digests in the words of the format's crate, which knows SHA-256 and nothing else.

use estargz::digest::ParseDigestError;

use crate::oci::Digest;

/// The digest as the rest of the house has it.
pub(crate) fn from_format(digest: estargz::Digest) -> Digest {
    Digest::from_sha256(*digest.as_bytes())
}

/// The digest as the format's crate has it.
///
/// # Errors
/// When it is of another algorithm.
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
