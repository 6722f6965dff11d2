//! A TOC whose digest has not been compared.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use super::build;
use super::error::TocError;
use super::tree::Toc;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::footer::Footer;
use crate::limits::Limits;

/// Name of the tar entry that holds the JSON.
pub(crate) const TOC_NAME: &[u8] = b"stargz.index.json";
/// A tar block.
const BLOCK: usize = 512;

/// The JSON of a TOC and its digest. It cannot be used before [`UnverifiedToc::verify`].
#[derive(Debug)]
pub struct UnverifiedToc {
    json: Vec<u8>,
    digest: Digest,
    section_digest: Digest,
    codec: Codec,
    payload_end: u64,
    limits: Limits,
}

impl UnverifiedToc {
    /// Inflates the TOC from the blob's bytes at [`Footer::toc_range`], or from the whole of an
    /// external TOC's blob.
    ///
    /// # Errors
    /// If the bytes are not a TOC or exceed the limits.
    pub fn parse(section: &[u8], footer: &Footer, limits: &Limits) -> Result<Self, TocError> {
        let mut json = Vec::new();
        inflate(section, footer, limits, &mut json)?;
        Ok(Self {
            digest: Digest::of(&json),
            section_digest: Digest::of(section),
            json,
            codec: footer.codec(),
            payload_end: footer.payload_end(),
            limits: *limits,
        })
    }

    /// Returns how many bytes of JSON [`UnverifiedToc::parse`] will hold in memory for this
    /// section, as its header or the footer claims. It inflates no more than that. The tree of the
    /// TOC takes as much again, or less.
    ///
    /// # Errors
    /// If the bytes are not a TOC or exceed the limits.
    pub fn json_bytes(section: &[u8], footer: &Footer, limits: &Limits) -> Result<u64, TocError> {
        let claimed = match footer.codec() {
            Codec::Gzip => {
                claimed_size(&mut Codec::Gzip.decoder(section).map_err(TocError::Inflate)?)?
            }
            Codec::Zstd => footer.toc_json_size().unwrap_or(limits.max_json_bytes),
        };
        within(claimed, limits)
    }

    /// Returns the digest of the JSON in this section. The JSON is inflated, but never held in
    /// memory as a whole.
    ///
    /// # Errors
    /// As [`UnverifiedToc::parse`].
    pub fn digest_of(section: &[u8], footer: &Footer, limits: &Limits) -> Result<Digest, TocError> {
        let mut hasher = HashWriter(Sha256::new());
        inflate(section, footer, limits, &mut hasher)?;
        Ok(hasher.0.into())
    }

    /// Digest of the JSON, as in the annotation `containerd.io/snapshot/stargz/toc.digest`.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Digest of the compressed bytes, as in the annotation
    /// `io.github.containers.zstd-chunked.manifest-checksum`.
    pub fn section_digest(&self) -> Digest {
        self.section_digest
    }

    /// The exact bytes of the JSON.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Returns the TOC if its JSON has the digest `expected`.
    ///
    /// # Errors
    /// If the digest differs, or the TOC contradicts itself, the blob or the limits.
    pub fn verify(self, expected: &Digest) -> Result<Toc, TocError> {
        check(self.digest, expected)?;
        self.build()
    }

    /// Returns the TOC if its compressed bytes have the digest `expected`, for zstd:chunked layers
    /// whose manifest has only that digest.
    ///
    /// # Errors
    /// As [`UnverifiedToc::verify`].
    pub fn verify_section(self, expected: &Digest) -> Result<Toc, TocError> {
        check(self.section_digest, expected)?;
        self.build()
    }

    /// Returns the TOC without comparing its digest, for a report on it or for a trusted blob.
    pub(crate) fn trust(&self) -> Result<Toc, TocError> {
        self.build()
    }

    fn build(&self) -> Result<Toc, TocError> {
        build::toc(
            &self.json,
            self.digest,
            self.codec,
            self.payload_end,
            &self.limits,
        )
    }
}

fn check(actual: Digest, expected: &Digest) -> Result<(), TocError> {
    if actual == *expected {
        Ok(())
    } else {
        Err(TocError::Digest {
            expected: *expected,
            actual,
        })
    }
}

/// Writes the JSON in `section` to `out`.
fn inflate(
    section: &[u8],
    footer: &Footer,
    limits: &Limits,
    out: &mut impl Write,
) -> Result<(), TocError> {
    let got = section.len() as u64;
    if got > limits.max_compressed_bytes {
        return Err(TocError::Limit {
            what: "compressed bytes",
            limit: limits.max_compressed_bytes,
        });
    }
    if let Some(range) = footer.toc_range()
        && range.end - range.start != got
    {
        return Err(TocError::WrongRange {
            got,
            wanted: range.end - range.start,
        });
    }
    match footer.codec() {
        Codec::Gzip => inflate_tar(section, limits, out),
        Codec::Zstd => inflate_frame(
            section,
            UnverifiedToc::json_bytes(section, footer, limits)?,
            out,
        ),
    }
}

fn inflate_tar(section: &[u8], limits: &Limits, out: &mut impl Write) -> Result<(), TocError> {
    let mut archive = Codec::Gzip.decoder(section).map_err(TocError::Inflate)?;
    let size = within(claimed_size(&mut archive)?, limits)?;
    let got = io::copy(&mut archive.take(size), out).map_err(TocError::Inflate)?;
    if got == size {
        Ok(())
    } else {
        Err(TocError::WrongRange { got, wanted: size })
    }
}

/// Returns the size of the JSON that the tar entry at the start of `archive` claims.
fn claimed_size(archive: &mut impl Read) -> Result<u64, TocError> {
    let mut header = [0; BLOCK];
    archive.read_exact(&mut header).map_err(TocError::Inflate)?;
    toc_entry_size(&header).ok_or(TocError::NotATocEntry)
}

fn within(claimed: u64, limits: &Limits) -> Result<u64, TocError> {
    let limit = limits.max_json_bytes;
    if claimed > limit {
        Err(TocError::Limit {
            what: "bytes of JSON",
            limit,
        })
    } else {
        Ok(claimed)
    }
}

/// Returns the size in a ustar header of the TOC's entry.
fn toc_entry_size(header: &[u8; BLOCK]) -> Option<u64> {
    let name = header[..100].split(|byte| *byte == 0).next()?;
    let type_flag = header[156];
    if name != TOC_NAME || !matches!(type_flag, b'0' | 0) {
        return None;
    }
    let digits = header[124..136]
        .trim_ascii()
        .strip_suffix(&[0])
        .unwrap_or(header[124..136].trim_ascii());
    let digits = std::str::from_utf8(digits).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}

/// Inflates a frame of at most `size` bytes.
fn inflate_frame(section: &[u8], size: u64, out: &mut impl Write) -> Result<(), TocError> {
    let decoder = Codec::Zstd.decoder(section).map_err(TocError::Inflate)?;
    let mut decoder = decoder.take(size.saturating_add(1));
    let got = io::copy(&mut decoder, out).map_err(TocError::Inflate)?;
    if got <= size {
        Ok(())
    } else {
        Err(TocError::WrongRange { got, wanted: size })
    }
}

/// Hashes the bytes that are written to it.
struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
