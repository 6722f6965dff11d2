//! A layer as an archive: its entries, and readers of its files.
//!
//! ```text
//! Source ─ Archive::open(digest) ─▶ Archive ─ entry(path) ─▶ ArchiveEntry ─ reader() ─▶ FileReader
//! ```
//!
//! This is the convenient way to read a blob. A program that schedules its own requests uses the
//! types below it: [`Footer`], [`UnverifiedToc`], [`Toc`] and [`Chunk`](crate::Chunk).

mod open;
mod reader;
mod source;

pub use open::OpenError;
pub(crate) use open::{open, read_range};
pub use reader::{FileReader, ReadError};
pub use source::Source;

use crate::digest::Digest;
use crate::footer::Footer;
use crate::limits::Limits;
use crate::tar;
use crate::toc::{Kind, Node, Toc, UnverifiedToc};
use crate::verify::{self, Expected, Report, VerifyError};

/// An eStargz or zstd:chunked layer that is open for reading.
///
/// It can be shared among threads: entries and readers borrow it.
#[derive(Debug)]
pub struct Archive {
    source: Source,
    footer: Footer,
    toc: Toc,
    external_toc: Option<Vec<u8>>,
}

/// Options for opening an [`Archive`].
///
/// ```
/// # use estargz::archive::{OpenOptions, Source};
/// use estargz::Limits;
///
/// let limits = Limits::default().with_max_json_bytes(1 << 20);
/// # let blob: &[u8] = include_bytes!("../../tests/golden/estargz.blob");
/// # let digest = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de".parse()?;
/// let archive = OpenOptions::new().limits(limits).open(Source::bytes(blob), &digest)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    limits: Limits,
    external_toc: Option<Vec<u8>>,
}

/// An entry of an [`Archive`].
#[derive(Debug, Clone)]
pub struct ArchiveEntry<'a> {
    archive: &'a Archive,
    path: Vec<u8>,
    node: Node<'a>,
}

impl Archive {
    /// Opens the layer in `source`, if its TOC has the digest `toc_digest`.
    ///
    /// The digest is the annotation `containerd.io/snapshot/stargz/toc.digest` in the manifest of
    /// an image.
    ///
    /// # Errors
    /// If the source fails, the blob is not such a layer, its TOC has another digest or exceeds the
    /// default [`Limits`].
    pub fn open(source: Source, toc_digest: &Digest) -> Result<Self, OpenError> {
        OpenOptions::new().open(source, toc_digest)
    }

    /// Opens the layer in `source` and trusts its TOC without comparing its digest.
    ///
    /// Only for a blob that comes from a trusted place. The content of files is still verified, but
    /// only against this TOC.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn open_unverified(source: Source) -> Result<Self, OpenError> {
        OpenOptions::new().open_unverified(source)
    }

    /// The bytes of the blob.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The footer of the blob.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The TOC: the tree of files, and where their chunks are.
    pub fn toc(&self) -> &Toc {
        &self.toc
    }

    /// The entry at `path`, which may begin with `/` or `./`. Symbolic links are not followed,
    /// because their targets may be in other layers.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] if there is none.
    pub fn entry(&self, path: impl AsRef<[u8]>) -> Result<ArchiveEntry<'_>, ReadError> {
        let path = path.as_ref();
        let node = self.toc.lookup(path).ok_or_else(|| ReadError::NotFound {
            path: tar::lossy(path),
        })?;
        Ok(ArchiveEntry {
            archive: self,
            path: path.to_vec(),
            node,
        })
    }

    /// Every entry below the root, parents before their children, siblings in order of their bytes.
    pub fn entries(&self) -> impl Iterator<Item = ArchiveEntry<'_>> {
        self.toc.entries().map(|located| ArchiveEntry {
            archive: self,
            path: located.path,
            node: located.node,
        })
    }

    /// Reads the whole blob and compares it with its TOC.
    ///
    /// # Errors
    /// If the blob cannot be read or compared. A difference is not an error but a finding of the
    /// report.
    pub fn verify(&self) -> Result<Report, VerifyError> {
        self.verify_with(&Expected::default())
    }

    /// Reads the whole blob and compares it with its TOC and with `expected`, whose limits it
    /// keeps. The digest of the TOC and an external TOC are those of this archive, unless
    /// `expected` has its own.
    ///
    /// # Errors
    /// As [`Archive::verify`].
    pub fn verify_with(&self, expected: &Expected<'_>) -> Result<Report, VerifyError> {
        let mut expected = expected.clone();
        expected.toc_digest = expected.toc_digest.or(Some(self.toc.digest()));
        expected.external_toc = expected.external_toc.or(self.external_toc.as_deref());
        verify::blob(self.source.cursor(), &expected)
    }
}

impl OpenOptions {
    /// The default limits, and no external TOC.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the bounds on the TOC.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the blob of the TOC, for layers that have it in a blob of its own.
    #[must_use]
    pub fn external_toc(mut self, blob: impl Into<Vec<u8>>) -> Self {
        self.external_toc = Some(blob.into());
        self
    }

    /// Opens the layer in `source`, if the JSON of its TOC has the digest `toc_digest`.
    ///
    /// # Errors
    /// As [`Archive::open`], with these limits.
    pub fn open(self, source: Source, toc_digest: &Digest) -> Result<Archive, OpenError> {
        let (footer, toc) = self.unverified(&source)?;
        Ok(self.archive(source, footer, toc.verify(toc_digest)?))
    }

    /// Opens the layer in `source`, if its compressed TOC has the digest `section_digest`, which is
    /// the annotation `io.github.containers.zstd-chunked.manifest-checksum`.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_section(
        self,
        source: Source,
        section_digest: &Digest,
    ) -> Result<Archive, OpenError> {
        let (footer, toc) = self.unverified(&source)?;
        Ok(self.archive(source, footer, toc.verify_section(section_digest)?))
    }

    /// Opens the layer in `source` and trusts its TOC; see [`Archive::open_unverified`].
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_unverified(self, source: Source) -> Result<Archive, OpenError> {
        let (footer, toc) = self.unverified(&source)?;
        Ok(self.archive(source, footer, toc.trust()?))
    }

    fn unverified(&self, source: &Source) -> Result<(Footer, UnverifiedToc), OpenError> {
        open(
            &mut source.cursor(),
            self.external_toc.as_deref(),
            &self.limits,
        )
    }

    fn archive(self, source: Source, footer: Footer, toc: Toc) -> Archive {
        Archive {
            source,
            footer,
            toc,
            external_toc: self.external_toc,
        }
    }
}

impl<'a> ArchiveEntry<'a> {
    /// The path relative to the root, as bytes, because a path in a tar need not be UTF-8.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The type of the entry.
    pub fn kind(&self) -> Kind {
        self.node.kind()
    }

    /// Bytes of a regular file; 0 for everything else.
    pub fn size(&self) -> u64 {
        self.node.size()
    }

    /// All metadata: owner, mode, times, extended attributes, link target, chunks.
    pub fn node(&self) -> Node<'a> {
        self.node
    }

    /// A reader of the file's content that verifies it chunk by chunk. A hard link reads the
    /// content it shares.
    ///
    /// # Errors
    /// [`ReadError::NotAFile`] if the entry is not a regular file. Nothing is read before the first
    /// read.
    pub fn reader(&self) -> Result<FileReader<'a>, ReadError> {
        if self.kind() == Kind::File {
            Ok(FileReader::new(self.archive, self.path.clone(), self.node))
        } else {
            Err(ReadError::NotAFile {
                path: tar::lossy(&self.path),
                kind: self.kind(),
            })
        }
    }
}
