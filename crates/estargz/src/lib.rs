//! Reads, writes and verifies eStargz and zstd:chunked layers.
//!
//! Such a layer is a tar of a container image whose files can be read one by one, without fetching
//! the rest. Each piece of a file, a *chunk*, is compressed separately and has its own digest. A
//! table of contents, the *TOC*, lists the entries and their chunks. Ordinary tools unpack the
//! layer as any `tar.gz` or `tar.zst`.
//!
//! ```text
//! read:    Source ─ Archive::open ─▶ Archive ─ entry(path) ─▶ ArchiveEntry ─ reader() ─▶ content
//! write:   tar ─ Writer::write ─▶ blob, digests
//! verify:  Archive ─ verify() ─▶ Report
//! ```
//!
//! The crate has no async code, no network, no clock, and no thread that outlives a value of its
//! own.
//!
//! # Reading
//!
//! An [`Archive`] reads a blob by position: a file, bytes in memory, or a closure that fetches
//! ranges from elsewhere. The digest of the TOC comes from the manifest of the image. Everything
//! that a reader returns is verified: the TOC against that digest, each chunk against the TOC.
//!
//! ```
//! use estargz::Archive;
//! use estargz::archive::Source;
//!
//! // Made by the reference implementation, `ctr-remote image convert --estargz`.
//! # let blob: &[u8] = include_bytes!("../tests/golden/estargz.blob");
//! let source = Source::bytes(blob);
//! // From the manifest of the image.
//! let toc_digest = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de".parse()?;
//!
//! let archive = Archive::open(source, &toc_digest)?;
//! for entry in archive.entries() {
//!     println!("{:?} {}", entry.kind(), String::from_utf8_lossy(entry.path()));
//! }
//! let text = std::io::read_to_string(archive.entry("dir/hello.txt")?.reader()?)?;
//! assert_eq!(text, "hello\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All footers in use are read: eStargz, the older stargz, eStargz with an external TOC, and
//! zstd:chunked with and without tar-split data.
//!
//! # Reading range by range
//!
//! A program that schedules its own requests, caches chunks or is asynchronous uses the types below
//! the archive. Each names the range of bytes that it needs and takes the bytes from the caller.
//!
//! ```text
//! tail ─▶ Footer ─ toc_range ─▶ UnverifiedToc ─ verify(digest) ─▶ Toc
//! Toc ─ lookup ─▶ Node ─ chunks ─▶ Chunk ─ range, decode ─▶ content
//! ```
//!
//! ```
//! use std::ops::Range;
//!
//! use estargz::{Digest, Footer, Limits, UnverifiedToc, footer};
//!
//! type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
//!
//! fn read(blob: &[u8], toc_digest: &Digest, path: &str) -> Result<Vec<u8>> {
//!     let fetch = |range: Range<u64>| &blob[range.start as usize..range.end as usize];
//!     let size = blob.len() as u64;
//!
//!     let footer = Footer::parse(fetch(footer::tail_range(size)), size)?;
//!     let section = fetch(footer.toc_range().ok_or("external TOC")?);
//!     let toc = UnverifiedToc::parse(section, &footer, &Limits::default())?.verify(toc_digest)?;
//!
//!     let mut content = Vec::new();
//!     for chunk in toc.lookup(path).ok_or("no such file")?.chunks() {
//!         content.extend(chunk.decode(fetch(chunk.range.clone()))?);
//!     }
//!     Ok(content)
//! }
//!
//! # let blob = include_bytes!("../tests/golden/estargz.blob");
//! # let toc_digest = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de".parse()?;
//! assert_eq!(read(blob, &toc_digest, "dir/hello.txt")?, b"hello\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An unverified TOC is another type than a verified one, and a chunk's content is returned only
//! with the digest of the TOC, so verification cannot be forgotten.
//!
//! # Writing
//!
//! A [`Writer`] compresses a tar in parallel. The bytes depend only on the tar and
//! the [`Options`](write::Options), not on threads, time or machine. In the default
//! [layout](write::Layout::SourceFirst) the decompressed blob begins with the source tar, unchanged
//! to its last byte, so its digest can be checked against the image that it came from.
//!
#![cfg_attr(feature = "write", doc = "```")]
#![cfg_attr(not(feature = "write"), doc = "```ignore")]
//! use estargz::write::{Options, Writer};
//!
//! # let mut tar = tar::Builder::new(Vec::new());
//! # let mut header = tar::Header::new_ustar();
//! # header.set_size(6);
//! # tar.append_data(&mut header, "hello.txt", &b"hello\n"[..])?;
//! # let tar = tar.into_inner()?;
//! let mut blob = Vec::new();
//! let written = Writer::new(Options::default()).write(tar.as_slice(), &mut blob)?;
//! println!("{} {}", written.blob_digest, written.toc_digest);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Verifying
//!
//! [`Archive::verify`] reads a whole blob in one pass and compares it with its TOC.
//! [`verify::against`] compares the file tree of a blob with the tar that it was made from. Both
//! return the differences as typed [findings](verify::Finding).
//!
//! # Limits
//!
//! Hostile input is an error, never a crash or an allocation of the size that it claims. [`Limits`]
//! has the bounds; each is checked before anything is sized by it. All readers are fuzzed.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `zstd` | yes | reading zstd:chunked; compiles libzstd, which is C |
//! | `write` | yes | [`mod@write`]; needs `zstd`, and compiles libdeflate, which is C |
//!
//! Without default features the crate reads and verifies gzip layers and compiles no C.

#![warn(missing_docs)]

pub mod archive;
pub mod chunk;
pub mod codec;
pub mod digest;
pub mod entry;
pub mod footer;
mod limits;
#[cfg(feature = "write")]
pub mod pool;
#[doc(hidden)]
pub mod tar;
mod time;
pub mod toc;
pub mod verify;
#[cfg(feature = "write")]
pub mod write;

pub use archive::{Archive, ArchiveEntry};
pub use chunk::Chunk;
pub use digest::Digest;
pub use entry::{Entry, EntryKind};
pub use footer::Footer;
pub use limits::Limits;
#[doc(inline)]
pub use tar::Error as TarError;
pub use time::Time;
pub use toc::{Toc, UnverifiedToc};
#[cfg(feature = "write")]
pub use write::Writer;
