//! Verifies a whole blob: compares its TOC with its tar.
//!
//! ```text
//! blob ▶ members (starts, hashes) ▶ tar walk ▶ each entry against the TOC's ▶ findings
//! ```
//!
//! One pass over the blob; memory grows with the TOC, not with the content.

mod against;
mod compare;
mod finding;
mod members;
mod moved;
mod source;
mod toc_entries;
mod walk;

use std::cell::RefCell;
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;

pub use against::{AgainstError, against};
pub use finding::Finding;

use self::members::{Log, Members};
use self::walk::Walk;
pub use crate::archive::OpenError as VerifyError;
use crate::archive::open;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::footer::Form;
use crate::limits::Limits;

/// Most findings of a report. A broken blob could have one for each entry.
const MAX_FINDINGS: usize = 1000;

/// Facts about a blob from elsewhere, such as its manifest, that the blob must agree with.
///
/// ```
/// use estargz::Digest;
/// use estargz::verify::Expected;
///
/// let expected = Expected::default().with_diff_id(Digest::of(b"the decompressed blob"));
/// assert_eq!(expected.toc_digest, None);
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Expected<'a> {
    /// Digest of the TOC's JSON.
    pub toc_digest: Option<Digest>,
    /// The blob of the TOC, if the TOC is in a separate blob.
    pub external_toc: Option<&'a [u8]>,
    /// Digest of the decompressed blob.
    pub diff_id: Option<Digest>,
    /// Digest of the source tar, the first `source_size` bytes of the decompressed blob.
    pub source_diff_id: Option<Digest>,
    /// Length of the source tar.
    pub source_size: Option<u64>,
    /// Bounds on the TOC and on the decompressed blob.
    pub limits: Limits,
}

impl<'a> Expected<'a> {
    /// Sets [`toc_digest`](Self::toc_digest).
    #[must_use]
    pub fn with_toc_digest(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.toc_digest = digest.into();
        self
    }

    /// Sets [`external_toc`](Self::external_toc).
    #[must_use]
    pub fn with_external_toc(mut self, blob: impl Into<Option<&'a [u8]>>) -> Self {
        self.external_toc = blob.into();
        self
    }

    /// Sets [`diff_id`](Self::diff_id).
    #[must_use]
    pub fn with_diff_id(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.diff_id = digest.into();
        self
    }

    /// Sets [`source_diff_id`](Self::source_diff_id).
    #[must_use]
    pub fn with_source_diff_id(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.source_diff_id = digest.into();
        self
    }

    /// Sets [`source_size`](Self::source_size).
    #[must_use]
    pub fn with_source_size(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.source_size = bytes.into();
        self
    }

    /// Sets [`limits`](Self::limits).
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// The result of verifying a blob: findings and facts.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The differences, at most 1000; empty if the blob is good.
    pub findings: Vec<Finding>,
    /// Whether there were more findings than these.
    pub truncated: bool,
    /// The form of the footer.
    pub form: Form,
    /// Digest of the TOC's JSON.
    pub toc_digest: Digest,
    /// Digest of the decompressed blob.
    pub diff_id: Digest,
    /// Bytes of the decompressed blob.
    pub uncompressed_size: u64,
    /// Digest of the first `source_size` bytes of the decompressed blob, if a size was given and
    /// there are so many.
    pub source_diff_id: Option<Digest>,
    /// Entries of the TOC that are not continued chunks.
    pub entries: u64,
    /// Chunks of file content.
    pub chunks: u64,
}

impl Report {
    /// Whether there are no findings.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Compares `blob` with its TOC and with `expected`.
///
/// # Errors
/// If the blob cannot be read, or has no usable footer or TOC. A difference is not an error but a
/// finding of the report.
pub fn blob<B: Read + Seek>(mut blob: B, expected: &Expected<'_>) -> Result<Report, VerifyError> {
    let (footer, unverified) = open(&mut blob, expected.external_toc, &expected.limits)?;
    let toc = unverified.trust()?;
    blob.seek(SeekFrom::Start(0)).map_err(VerifyError::Read)?;

    let log = Rc::new(RefCell::new(Log::new(
        expected.source_size,
        expected.limits.max_stream_bytes,
    )));
    let content_end = match footer.codec() {
        Codec::Gzip => u64::MAX,
        Codec::Zstd => footer.payload_end(),
    };
    let members = Members::new(
        blob.by_ref().take(content_end),
        footer.codec(),
        Rc::clone(&log),
    );
    let mut walk = Walk::new(
        unverified.json(),
        &footer,
        unverified.digest(),
        Rc::clone(&log),
    )?;
    walk.stream(members, expected.source_size);
    let moved = moved::check(&mut blob, &footer, &toc, &walk.moved(), expected)?;
    let (mut findings, entries) = walk.finish();
    findings.extend(moved);
    let mut log = log.borrow_mut();
    if let Some(error) = log.failed.take() {
        return Err(VerifyError::Read(error));
    }
    let report = Report {
        truncated: findings.len() > MAX_FINDINGS,
        form: footer.form(),
        toc_digest: unverified.digest(),
        diff_id: log.digest(),
        uncompressed_size: log.inflated(),
        source_diff_id: log.source_digest(),
        entries,
        chunks: toc.chunk_count() as u64,
        findings: Vec::new(),
    };
    findings.splice(0..0, digests(&report, expected));
    findings.truncate(MAX_FINDINGS);
    Ok(Report { findings, ..report })
}

/// Formats an error and its causes on one line, for findings, which are text.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns the differences from the digests that the caller expects.
fn digests(report: &Report, expected: &Expected<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut compare =
        |what, expected: Option<Digest>, actual: Option<Digest>| match (expected, actual) {
            (Some(expected), Some(actual)) if expected != actual => {
                findings.push(Finding::Digest {
                    what,
                    expected,
                    actual,
                });
            }
            _ => {}
        };
    compare("the TOC", expected.toc_digest, Some(report.toc_digest));
    compare(
        "the decompressed blob",
        expected.diff_id,
        Some(report.diff_id),
    );
    compare(
        "the source tar",
        expected.source_diff_id,
        report.source_diff_id,
    );
    if let Some(size) = expected.source_size
        && size > report.uncompressed_size
    {
        findings.push(Finding::SourceSize {
            size,
            stream: report.uncompressed_size,
        });
    }
    findings
}
