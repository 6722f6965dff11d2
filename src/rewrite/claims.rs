//! The claims of a layer's annotations: that it is lazily readable, with the TOC that they name.
//!
//! Tools that repack a layer keep the annotations of the old one. A client that trusts them finds
//! no TOC. So a claim is compared with the end of the blob, in one or two requests, and a layer
//! whose claim is wrong is converted.

use estargz::footer::{Footer, Form};
use estargz::{Limits, UnverifiedToc};
use serde_json::{Map, Value};

use crate::oci::Digest;
use crate::oci::annotations::{OLDER_ZSTD_CHECKSUM, TOC_DIGEST, ZSTD_CHECKSUM};

/// The most bytes of a TOC that are hashed. Other readers have the same limit.
const MAX_TOC: u64 = 256 << 20;
/// Prefixes of the annotation keys that describe how a layer is read lazily.
const LAZY_KEYS: [&str; 4] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
];

/// Whether an annotation describes how a layer is read lazily.
pub(crate) fn is_lazy_key(key: &str) -> bool {
    LAZY_KEYS.iter().any(|start| key.starts_with(start))
}

/// The digests that annotations name for a layer's TOC.
pub(crate) struct Claims<'a> {
    toc: Option<&'a str>,
    pub(crate) zstd: Option<&'a str>,
}

impl<'a> Claims<'a> {
    pub(crate) fn of(annotations: &'a Map<String, Value>) -> Self {
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
    pub(crate) fn name(&self, footer: &Footer, section: &[u8]) -> bool {
        let is_zstd = footer.form() == Form::ZstdChunked;
        let names_section =
            |claimed: &str| is_zstd && claimed == Digest::sha256_of(section).to_string();
        let limits = Limits::default().with_max_json_bytes(MAX_TOC);
        let names_toc = |claimed: &str| {
            UnverifiedToc::digest_of(section, footer, &limits)
                .is_ok_and(|digest| digest.to_string() == claimed)
        };
        self.zstd.is_none_or(names_section) && self.toc.is_none_or(names_toc)
    }
}

/// Whether annotations claim that a layer can be read lazily.
pub(crate) fn are_made(annotations: &Map<String, Value>) -> bool {
    let Claims { toc, zstd } = Claims::of(annotations);
    toc.or(zstd).is_some()
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
}
