//! Reads and writes eStargz and zstd:chunked layers.
//!
//! Such a layer is a tar whose files can be read one by one, each piece checked by its digest, without fetching the
//! rest. Ordinary tools unpack it as any `tar.gz` or `tar.zst`.
//!
//! No async, no network, no clock and no thread that outlives a call's arguments: readers say which bytes they need
//! and take them, writers go from a [`std::io::Read`] to a [`std::io::Write`].
//!
//! ```text
//! write:  tar ─▶ write::write ─▶ blob, digests
//! read:   tail ─▶ Footer ─ toc_range ─▶ UnverifiedToc ─ verify(digest) ─▶ Toc ─ lookup ─▶ Chunk ─ decode ─▶ content
//! check:  blob ─▶ verify::blob ─▶ findings
//! ```
//!
//! # Reading one file
//!
//! Each step names the range of bytes it needs; here they come from memory, elsewhere from a registry. The digest of
//! the TOC comes from the manifest, and nothing in a TOC can be used before it was compared.
//!
//! ```
//! use std::ops::Range;
//!
//! use estargz::toc::Limits;
//! use estargz::{Digest, Footer, UnverifiedToc, footer};
//!
//! fn read(blob: &[u8], toc_digest: &Digest, path: &str) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let fetch = |range: Range<u64>| &blob[range.start as usize..range.end as usize];
//!     let size = blob.len() as u64;
//!
//!     let footer = Footer::parse(fetch(footer::tail_range(size)), size)?;
//!     let section = fetch(footer.toc_range().ok_or("the TOC is another blob")?);
//!     let toc = UnverifiedToc::parse(section, &footer, &Limits::default())?.verify(toc_digest)?;
//!
//!     let mut content = Vec::new();
//!     for chunk in toc.lookup(path).ok_or("no such file")?.chunks() {
//!         content.extend(chunk.decode(fetch(chunk.range.clone()))?);
//!     }
//!     Ok(content)
//! }
//!
//! // Made by the reference, `ctr-remote image convert --estargz`.
//! let blob = include_bytes!("../tests/golden/estargz.blob");
//! let toc_digest = "sha256:5effdf8faa1f535583b20d7d45b142a52d72b873fd2492b1649da4bdc67272de".parse()?;
//! assert_eq!(read(blob, &toc_digest, "dir/hello.txt")?, b"hello\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod archive;
pub mod chunk;
pub mod codec;
pub mod digest;
pub mod entry;
pub mod footer;
mod limits;
#[cfg(feature = "write")]
pub mod pool;
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
pub use time::Time;
pub use toc::{Toc, UnverifiedToc};
#[cfg(feature = "write")]
pub use write::Writer;
