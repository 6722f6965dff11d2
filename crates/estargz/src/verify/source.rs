//! The file tree of a source tar, cut into the same chunks as another tree's so that the two can be
//! compared.

use std::borrow::Cow;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Expected;
use super::against::AgainstError;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::tar::{self, Header, Unfold, Walker};
use crate::toc::build::Builder;
use crate::toc::json::RawEntry;
use crate::toc::{Kind, Toc, TocError};

/// Most bytes of one chunk if the other tree has no file of several chunks.
const PIECE: u64 = 4 << 20;

/// Builds the tree that `source` unpacks to. Files whose size is the same in `other` have chunks of
/// the same sizes.
pub(super) fn tree<S: Read>(
    source: S,
    other: &Toc,
    expected: &Expected<'_>,
) -> Result<Toc, AgainstError> {
    let mut walker = Walker::new(source);
    let mut builder = Builder::of_tar(&expected.limits);
    let piece = piece(other);
    let limit = expected.limits.max_stream_bytes;
    let mut total: u64 = 0;
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let Some(header) = walker.next_header(&mut raw)? else {
            break;
        };
        let mut entry = entry(&header);
        if header.kind != EntryKind::Reg || header.size == 0 {
            builder.entry(&entry)?;
            continue;
        }
        total = total.saturating_add(header.size);
        if total > limit {
            return Err(TocError::Limit {
                what: "bytes of files",
                limit,
            }
            .into());
        }
        let sizes = chunk_sizes(&header, other, piece);
        let mut content = Content::new(&header, &mut walker);
        let mut chunk = chunk(&header);
        let mut at = 0;
        for size in sizes {
            let next = if at == 0 { &mut entry } else { &mut chunk };
            next.chunk_offset = at;
            next.chunk_size = size;
            content.describe(size, next)?;
            builder.entry(next)?;
            at += size;
        }
    }
    Ok(builder.finish(Digest::of(b""), Codec::Gzip)?)
}

/// The size of every chunk except the last of a file, according to the other tree.
fn piece(other: &Toc) -> u64 {
    let mut size = 0;
    for entry in other
        .entries()
        .filter(|entry| entry.node.chunks().len() > 1)
    {
        size = entry
            .node
            .chunks()
            .map(|chunk| chunk.size)
            .fold(size, u64::max);
    }
    if size == 0 { PIECE } else { size }
}

fn chunk_sizes(header: &Header, other: &Toc, piece: u64) -> Box<dyn Iterator<Item = u64>> {
    let node = other
        .lookup(&header.path)
        .filter(|node| node.kind() == Kind::File && node.size() == header.size);
    match node {
        Some(node) => Box::new(
            node.chunks()
                .map(|chunk| chunk.size)
                .collect::<Vec<_>>()
                .into_iter(),
        ),
        None => {
            let size = header.size;
            Box::new((0..size.div_ceil(piece)).map(move |index| (size - index * piece).min(piece)))
        }
    }
}

/// The content of an entry, including holes.
enum Content<'c, R> {
    Plain(Payload<'c, R>),
    Sparse(Unfold<'c, Payload<'c, R>>),
}

impl<'c, R: Read> Content<'c, R> {
    fn new(header: &'c Header, walker: &'c mut Walker<R>) -> Self {
        let payload = Payload { walker };
        if header.sparse.is_some() {
            Self::Sparse(Unfold::new(header, payload))
        } else {
            Self::Plain(payload)
        }
    }

    /// Reads the next `size` bytes and sets their digest in `chunk`.
    fn describe(&mut self, size: u64, chunk: &mut RawEntry<'_>) -> Result<(), AgainstError> {
        let mut bytes = Vec::new();
        match self {
            Self::Plain(payload) => {
                payload
                    .take(size)
                    .read_to_end(&mut bytes)
                    .map_err(AgainstError::Source)?;
            }
            Self::Sparse(content) => {
                let length = usize::try_from(size).unwrap_or(usize::MAX);
                bytes.resize(length, 0);
                content.fill(&mut bytes).map_err(AgainstError::Source)?;
            }
        }
        chunk.chunk_digest = Digest::of(&bytes).to_string().into();
        Ok(())
    }
}

struct Payload<'w, R> {
    walker: &'w mut Walker<R>,
}

impl<R: Read> Read for Payload<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.walker.read_payload(buffer).map_err(io::Error::other)
    }
}

fn chunk(header: &Header) -> RawEntry<'static> {
    RawEntry {
        kind: EntryKind::Chunk,
        ..named(header)
    }
}

fn entry(header: &Header) -> RawEntry<'static> {
    let is_device = matches!(header.kind, EntryKind::Char | EntryKind::Block);
    let xattrs = header
        .xattrs
        .iter()
        .map(|(name, value)| (tar::lossy(name), Some(STANDARD.encode(value))));
    RawEntry {
        kind: header.kind,
        size: if header.kind == EntryKind::Reg {
            header.size
        } else {
            0
        },
        mod_time: header.mod_time.rfc3339().into(),
        link_name: tar::lossy(&header.link).into(),
        mode: header.mode,
        uid: header.uid,
        gid: header.gid,
        user_name: tar::lossy(&header.user_name).into(),
        group_name: tar::lossy(&header.group_name).into(),
        dev_major: if is_device { header.dev_major } else { 0 },
        dev_minor: if is_device { header.dev_minor } else { 0 },
        xattrs: Some(xattrs.collect()),
        raw_link_name: exact(&header.link),
        ..named(header)
    }
}

fn named(header: &Header) -> RawEntry<'static> {
    RawEntry {
        name: tar::lossy(&header.path).into(),
        raw_name: exact(&header.path),
        ..RawEntry::default()
    }
}

fn exact(name: &[u8]) -> Option<Cow<'static, str>> {
    std::str::from_utf8(name)
        .is_err()
        .then(|| STANDARD.encode(name).into())
}

/// Whether a chunk of zeros and a hole are the same content.
pub(super) fn is_zeros(digest: Digest, size: u64) -> bool {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    let zeros = [0; 4096];
    let mut left = size;
    while left > 0 {
        let step = usize::try_from(left)
            .unwrap_or(zeros.len())
            .min(zeros.len());
        hash.update(&zeros[..step]);
        left -= step as u64;
    }
    Digest::from(hash) == digest
}
