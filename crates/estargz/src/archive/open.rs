//! Opening a blob: from its last bytes to its TOC.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::footer::{self, Footer, FooterError};
use crate::limits::Limits;
use crate::toc::{TocError, UnverifiedToc};

/// Why a blob cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The reader of the blob failed.
    #[error("blob cannot be read")]
    Read(#[source] io::Error),
    /// The blob has no usable footer.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// The blob has no usable TOC, or one with another digest.
    #[error(transparent)]
    Toc(#[from] TocError),
    /// The blob has its TOC in a separate blob, and that was not given.
    #[error("TOC of the blob is a separate blob, which was not given")]
    NoExternalToc,
}

/// Reads the footer and the TOC of a blob.
pub(crate) fn open<B: Read + Seek>(
    blob: &mut B,
    external_toc: Option<&[u8]>,
    limits: &Limits,
) -> Result<(Footer, UnverifiedToc), OpenError> {
    let size = blob.seek(SeekFrom::End(0)).map_err(OpenError::Read)?;
    let footer = Footer::parse(&read_range(blob, footer::tail_range(size))?, size)?;
    let Some(range) = footer.toc_range() else {
        let section = external_toc.ok_or(OpenError::NoExternalToc)?;
        let toc = UnverifiedToc::parse(section, &footer, limits)?;
        return Ok((footer, toc));
    };
    let limit = limits.max_compressed_bytes;
    if range.end - range.start > limit {
        return Err(TocError::Limit {
            what: "compressed bytes",
            limit,
        }
        .into());
    }
    let toc = UnverifiedToc::parse(&read_range(blob, range)?, &footer, limits)?;
    Ok((footer, toc))
}

/// Reads the bytes of `range`, or fewer if the blob ends before.
pub(crate) fn read_range<B: Read + Seek>(
    blob: &mut B,
    range: Range<u64>,
) -> Result<Vec<u8>, OpenError> {
    let mut bytes = Vec::new();
    blob.seek(SeekFrom::Start(range.start))
        .map_err(OpenError::Read)?;
    blob.take(range.end - range.start)
        .read_to_end(&mut bytes)
        .map_err(OpenError::Read)?;
    Ok(bytes)
}
