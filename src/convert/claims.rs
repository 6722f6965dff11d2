//! The claims of a layer's annotations: that it is lazily readable, with the TOC that they name.
//!
//! Tools that repack a layer keep the annotations of the old one. A client that trusts them finds
//! no TOC. So a claim is compared with the end of the blob, in one or two requests, and a layer
//! whose claim is wrong is converted.

use std::io::{self, Read};

use estargz::footer::{Footer, Form};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::oci::Digest;
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, TOC_DIGEST, ZSTD_CHECKSUM};

/// The most bytes of a TOC that are hashed. Other readers have the same limit.
const MAX_TOC: u64 = 256 << 20;
/// The size of a block of the tar that contains a TOC.
const TAR_BLOCK: usize = 512;
/// Prefixes of the annotation keys that describe how a layer is read lazily.
const LAZY_KEYS: [&str; 4] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
];

/// Whether an annotation describes how a layer is read lazily.
pub(super) fn is_lazy_key(key: &str) -> bool {
    LAZY_KEYS.iter().any(|start| key.starts_with(start))
}

/// The digests that annotations name for a layer's TOC.
pub(super) struct Claims<'a> {
    toc: Option<&'a str>,
    pub(super) zstd: Option<&'a str>,
}

impl<'a> Claims<'a> {
    pub(super) fn of(annotations: &'a Map<String, Value>) -> Self {
        let text = |key: &str| {
            annotations
                .get(key)
                .map(|value| value.as_str().unwrap_or_default())
        };
        Self {
            toc: text(TOC_DIGEST),
            zstd: text(ZSTD_CHECKSUM).or_else(|| text(OLDER_ZSTD_CHECKSUM)),
        }
    }

    /// Whether the claims name the TOC in `section`.
    pub(super) fn name(&self, footer: &Footer, section: &[u8]) -> bool {
        let is_zstd = footer.form() == Form::ZstdChunked;
        let names_section =
            |claimed: &str| is_zstd && claimed == Digest::sha256_of(section).to_string();
        let names_toc = |claimed: &str| {
            toc_digest(section, is_zstd).is_ok_and(|digest| digest.to_string() == claimed)
        };
        self.zstd.is_none_or(names_section) && self.toc.is_none_or(names_toc)
    }
}

/// Whether annotations claim that a layer can be read lazily.
pub(super) fn are_made(annotations: &Map<String, Value>) -> bool {
    let Claims { toc, zstd } = Claims::of(annotations);
    toc.or(zstd).is_some()
}

/// Returns the digest of the TOC in `section`: the only file of a tar in gzip, or a zstd frame. The
/// TOC is never held in memory as a whole.
fn toc_digest(section: &[u8], is_zstd: bool) -> io::Result<Digest> {
    let mut hasher = HashWriter(Sha256::new());
    let copied = if is_zstd {
        let decoder = zstd::stream::read::Decoder::with_buffer(section)?;
        io::copy(&mut decoder.take(MAX_TOC + 1), &mut hasher)?
    } else {
        let mut tar = flate2::bufread::GzDecoder::new(section);
        let mut header = [0; TAR_BLOCK];
        tar.read_exact(&mut header)?;
        let digits = String::from_utf8_lossy(&header[124..136]);
        let digits = digits.trim_matches(['\0', ' ']);
        let size = u64::from_str_radix(digits, 8).map_err(io::Error::other)?;
        io::copy(&mut tar.take(size.min(MAX_TOC + 1)), &mut hasher)?
    };
    if copied > MAX_TOC {
        return Err(io::Error::other("TOC too long"));
    }
    Ok(Digest::from_sha256(hasher.0.finalize().into()))
}

struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_lazy_format_are_known() {
        for key in [
            TOC_DIGEST,
            ZSTD_CHECKSUM,
            OLDER_ZSTD_CHECKSUM,
            "io.github.containers.zstd-chunked.tarsplit-position",
        ] {
            assert!(is_lazy_key(key), "{key}");
        }
        assert!(
            !is_lazy_key("org.opencontainers.image.title")
                && !is_lazy_key("dev.starlift.source.digest")
        );
    }

    #[test]
    fn the_digest_of_a_toc_is_that_of_its_text() {
        let text = br#"{"version":1,"entries":[]}"#;
        let mut tar = [0; TAR_BLOCK].to_vec();
        tar[124..136].copy_from_slice(format!("{:011o}\0", text.len()).as_bytes());
        tar.extend_from_slice(text);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, &tar).unwrap();
        let section = encoder.finish().unwrap();
        assert_eq!(
            toc_digest(&section, false).unwrap(),
            Digest::sha256_of(text)
        );
        let frame = zstd::encode_all(&text[..], 1).unwrap();
        assert_eq!(toc_digest(&frame, true).unwrap(), Digest::sha256_of(text));
        assert!(toc_digest(b"garbage", false).is_err() && toc_digest(b"garbage", true).is_err());
    }
}
