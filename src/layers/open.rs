//! Opens a layer: from the last bytes of its blob to its verified TOC.
//!
//! ```text
//! Tail ─ Opening::new ▶ Opening ─ section ▶ a range of a blob
//!                          └── toc(its bytes) ▶ UnverifiedToc ─ verify(TocDigest) ▶ Toc
//! ```
//! The caller reads the bytes, reserves memory for them, and chooses a thread: parsing a large TOC
//! takes a second.

use std::ops::Range;

use bytes::Bytes;
use estargz::digest::ParseDigestError;
use estargz::footer::FooterError;
use estargz::toc::TocError;
use estargz::{Footer, Limits, Toc, UnverifiedToc};
use serde::{Deserialize, Serialize};

use super::digest::to_format;
use crate::oci::Digest;

pub use estargz::footer::tail_range;

/// The digest that a layer's TOC must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TocDigest {
    /// Of its JSON.
    Json(Digest),
    /// Of its compressed bytes, as in zstd:chunked.
    Section(Digest),
}

/// The bytes of a blob from `start` to its end.
#[derive(Debug, Clone)]
pub struct Tail {
    pub blob_size: u64,
    pub start: u64,
    pub bytes: Bytes,
}

/// A layer whose footer has been read.
#[derive(Debug, Clone)]
pub struct Opening {
    footer: Footer,
    limits: Limits,
}

/// Why a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("unreadable footer")]
    Footer(#[from] FooterError),
    #[error("unreadable TOC")]
    Toc(#[from] TocError),
    #[error("invalid TOC digest")]
    Digest(#[from] ParseDigestError),
    #[error("TOC in a separate blob that is not known")]
    ExternalToc,
}

impl TocDigest {
    /// Returns the TOC if it has this digest.
    ///
    /// # Errors
    /// If it has another digest, contradicts itself or exceeds its limits, or if this digest is not
    /// of SHA-256.
    pub fn verify(&self, toc: UnverifiedToc) -> Result<Toc, OpenError> {
        Ok(match self {
            Self::Json(digest) => toc.verify(&to_format(digest)?)?,
            Self::Section(digest) => toc.verify_section(&to_format(digest)?)?,
        })
    }
}

impl Tail {
    /// The last `bytes` of a blob of `blob_size` bytes.
    pub fn new(blob_size: u64, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let start = blob_size.saturating_sub(bytes.len() as u64);
        Self {
            blob_size,
            start,
            bytes,
        }
    }

    /// Returns the bytes of `range`, a range of the blob. `None` if the tail begins behind its
    /// start.
    pub fn slice(&self, range: &Range<u64>) -> Option<Bytes> {
        let start = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (start <= end && end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }

    /// Returns only the part that is needed to read the TOC again.
    #[must_use]
    pub fn trimmed(&self) -> Self {
        let toc = self.footer().ok().and_then(|footer| footer.toc_range());
        let needed = toc.and_then(|range| self.slice(&(range.start..self.blob_size)));
        Self::new(self.blob_size, needed.unwrap_or_else(|| self.bytes.clone()))
    }

    /// Reads the footer.
    ///
    /// # Errors
    /// If there is none, or the tail is shorter than [`tail_range`].
    pub fn footer(&self) -> Result<Footer, FooterError> {
        let range = tail_range(self.blob_size);
        let end = self.slice(&range).unwrap_or_else(|| self.bytes.clone());
        Footer::parse(&end, self.blob_size)
    }
}

impl Opening {
    /// Reads the footer. `tail` contains at least the bytes of [`tail_range`], and `limits` bound
    /// the TOC.
    ///
    /// # Errors
    /// If the blob has no footer.
    pub fn new(tail: &Tail, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self {
            footer: tail.footer()?,
            limits,
        })
    }

    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Returns the blob that the compressed TOC is in, which is `layer` or the `external` TOC's
    /// blob, and the TOC's range in it. A blob is named as the caller names it, and `external`
    /// comes with its size in bytes.
    ///
    /// # Errors
    /// If the compressed TOC is longer than the limit, or in a separate blob and there is no
    /// `external`.
    pub fn section<B>(
        &self,
        layer: B,
        external: Option<(B, u64)>,
    ) -> Result<(B, Range<u64>), OpenError> {
        let (blob, range) = match (self.footer.toc_range(), external) {
            (Some(range), _) => (layer, range),
            (None, Some((external, size))) => (external, 0..size),
            (None, None) => return Err(OpenError::ExternalToc),
        };
        let limit = self.limits.max_compressed_bytes;
        if range.end - range.start > limit {
            let what = "compressed bytes";
            return Err(TocError::Limit { what, limit }.into());
        }
        Ok((blob, range))
    }

    /// Returns the compressed TOC out of a tail that contains it.
    ///
    /// # Errors
    /// As [`section`](Self::section), or if the tail begins behind the TOC.
    pub fn section_in(&self, tail: &Tail) -> Result<Bytes, OpenError> {
        let (_, range) = self.section((), None)?;
        tail.slice(&range).ok_or_else(|| {
            let (got, wanted) = (tail.bytes.len() as u64, range.end - range.start);
            TocError::WrongRange { got, wanted }.into()
        })
    }

    /// Returns the bytes of JSON that [`toc`](Self::toc) will hold, as the section claims.
    ///
    /// # Errors
    /// If the section is no TOC or over the limits.
    pub fn json_bytes(&self, section: &[u8]) -> Result<u64, OpenError> {
        let claimed = UnverifiedToc::json_bytes(section, &self.footer, &self.limits);
        Ok(claimed?)
    }

    /// Inflates the TOC. `section` is the bytes of [`section`](Self::section).
    ///
    /// # Errors
    /// If the section is no TOC or over the limits.
    pub fn toc(&self, section: &[u8]) -> Result<UnverifiedToc, OpenError> {
        let toc = UnverifiedToc::parse(section, &self.footer, &self.limits);
        Ok(toc?)
    }

    /// Inflates and verifies the TOC.
    ///
    /// # Errors
    /// As [`toc`](Self::toc) and [`TocDigest::verify`].
    pub fn verified(&self, section: &[u8], expected: &TocDigest) -> Result<Toc, OpenError> {
        expected.verify(self.toc(section)?)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use estargz::pool::Pool;
    use estargz::write::{Options, TocPlacement, Written, write};

    use super::*;
    use crate::layers::digest::from_format;

    fn blob(options: &Options) -> (Bytes, Written) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        tar.append_data(&mut header, "file", &b"bytes"[..]).unwrap();
        let (tar, mut blob) = (tar.into_inner().unwrap(), Vec::new());
        let pool = Pool::new(NonZeroUsize::MIN, 8 << 20);
        let written = write(tar.as_slice(), &mut blob, options, &pool).unwrap();
        (blob.into(), written)
    }

    fn tail(blob: &Bytes, length: usize) -> Tail {
        Tail::new(
            blob.len() as u64,
            blob.slice(blob.len().saturating_sub(length)..),
        )
    }

    fn digest(of: estargz::Digest) -> TocDigest {
        TocDigest::Json(from_format(of))
    }

    #[test]
    fn a_layer_opens_from_any_tail_with_its_footer() {
        let (blob, written) = blob(&Options::default());
        for length in [72, 200, blob.len()] {
            let tail = tail(&blob, length);
            let opening = Opening::new(&tail, Limits::default()).unwrap();
            let (_, range) = opening.section((), None).unwrap();
            let whole = Tail::new(blob.len() as u64, blob.clone());
            let section = whole.slice(&range).unwrap();
            let trimmed = whole.trimmed();
            assert_eq!(trimmed.start, range.start);
            assert_eq!(opening.section_in(&trimmed).unwrap(), section);
            let shorter = Tail::new(whole.blob_size, trimmed.bytes.slice(1..));
            assert!(opening.section_in(&shorter).is_err());
            let toc = opening.verified(&section, &digest(written.toc_digest));
            assert!(toc.unwrap().lookup("file").is_some());
            let other = TocDigest::Json(Digest::sha256_of(b"other"));
            let refused = opening.verified(&section, &other);
            assert!(matches!(refused, Err(OpenError::Toc(_))), "{refused:?}");
        }
        let short = Opening::new(&tail(&blob, 71), Limits::default());
        assert!(matches!(short, Err(OpenError::Footer(_))), "{short:?}");
    }

    #[test]
    fn a_toc_over_the_limit_is_not_requested() {
        let (blob, _) = blob(&Options::default());
        let limits = Limits::default().with_max_compressed_bytes(10);
        let opening = Opening::new(&tail(&blob, 100), limits).unwrap();
        let refused = opening.section((), None);
        assert!(
            matches!(refused, Err(OpenError::Toc(TocError::Limit { .. }))),
            "{refused:?}"
        );
    }

    #[test]
    fn an_external_toc_is_in_the_other_blob() {
        let options = Options::default().with_toc(TocPlacement::External);
        let (blob, written) = blob(&options);
        let external = written.external_toc.unwrap();
        let opening = Opening::new(&tail(&blob, 72), Limits::default()).unwrap();
        assert!(matches!(
            opening.section("layer", None),
            Err(OpenError::ExternalToc)
        ));
        let size = external.len() as u64;
        let place = opening.section("layer", Some(("external", size))).unwrap();
        assert_eq!(place, ("external", 0..size));
        let toc = opening.verified(&external, &digest(written.toc_digest));
        assert!(toc.unwrap().lookup("file").is_some());
    }
}
