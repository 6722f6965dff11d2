//! Copies the source tar into the stream: every byte of it, or in the classic layout every entry.

use std::io::{Read, Write};

use super::blob::{Blob, Stream};
use super::sparse::{MAX_SPOOLED_BYTES, MAX_UNFOLDED_BYTES, Spool, Spooled};
use super::tail;
use super::{
    Error, Landmark, Layout, NO_PREFETCH_LANDMARK, Options, PREFETCH_LANDMARK, TOC_NAME,
    TocPlacement,
};
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::tar::{self, Header, Unfold, Walker};

/// Bytes copied at once if the content is not chunked.
const COPY_BYTES: usize = 64 * 1024;

/// The facts about the source that the tail needs.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) diff_id: Digest,
    pub(super) size: u64,
    /// Zero bytes that complete the end-of-archive marker.
    pub(super) missing: usize,
    pub(super) sparse: Vec<Spooled>,
}

#[derive(Debug)]
struct Copy<'b, 'p, R, W> {
    walker: Walker<R>,
    blob: &'b mut Blob<'p, W>,
    options: &'b Options,
    /// Header blocks and padding on their way into the stream.
    raw: Vec<u8>,
    /// The source itself, if the stream is not a copy of it.
    own_stream: Option<Stream>,
    sparse: Vec<Spooled>,
    unfolded_bytes: u64,
}

/// Copies the whole of `tar` into `blob` and lists its entries.
pub(super) fn copy<R: Read, W: Write>(
    tar: R,
    options: &Options,
    blob: &mut Blob<'_, W>,
) -> Result<Source, Error> {
    let own_stream = (options.layout == Layout::Classic).then(Stream::default);
    let walker = Walker::new(tar);
    if options.layout == Layout::Classic && options.landmark == Landmark::NoPrefetch {
        tail::landmark(blob)?;
    }
    let mut copy = Copy {
        walker,
        blob,
        options,
        raw: Vec::new(),
        own_stream,
        sparse: Vec::new(),
        unfolded_bytes: 0,
    };
    match options.layout {
        Layout::SourceFirst => copy.unchanged()?,
        Layout::Classic => copy.classic()?,
    }
    let stream = copy.own_stream.as_ref().unwrap_or(copy.blob.stream());
    Ok(Source {
        diff_id: stream.digest(),
        size: stream.size(),
        missing: copy.walker.missing(),
        sparse: copy.sparse,
    })
}

impl<R: Read, W: Write> Copy<'_, '_, R, W> {
    fn unchanged(&mut self) -> Result<(), Error> {
        while let Some(header) = self.next_header()? {
            self.blob.gap(&self.raw)?;
            if self.is_added_by_writers(&header.path) {
                self.leave_out(&header)?;
            } else if header.sparse.is_some() {
                self.spool(header)?;
            } else {
                self.list(&header)?;
            }
        }
        self.blob.gap(&self.raw)?;
        self.trailing()
    }

    /// Copies only entries: no end marker, none of the entries that the writer adds, sparse files
    /// written out.
    fn classic(&mut self) -> Result<(), Error> {
        let mut padding = 0;
        let mut is_kept = false;
        loop {
            let header = self.next_header()?;
            // The source may end within the padding of its last entry.
            self.raw.resize(self.raw.len().max(padding), 0);
            if is_kept {
                self.blob.gap(&self.raw[..padding])?;
            }
            let Some(header) = header else { break };
            is_kept = !self.is_added_by_writers(&header.path);
            if !is_kept {
                self.leave_out(&header)?;
            } else if header.sparse.is_some() {
                self.write_out(&header)?;
                is_kept = false;
            } else {
                self.blob.gap(&self.raw[padding..])?;
                self.list(&header)?;
            }
            padding = tar::padding(header.stored);
        }
        self.trailing()
    }

    fn next_header(&mut self) -> Result<Option<Header>, Error> {
        self.raw.clear();
        let header = self.walker.next_header(&mut self.raw)?;
        if let Some(own) = &mut self.own_stream {
            own.update(&self.raw);
        }
        let limit = self.options.limits.max_source_bytes;
        if self
            .walker
            .position()
            .saturating_add(self.walker.payload_left())
            > limit
        {
            return Err(Error::Limit {
                what: "bytes of source",
                limit,
            });
        }
        Ok(header)
    }

    /// Whether the entry at `path` is one that a writer of eStargz adds. Those of an earlier
    /// conversion are not kept.
    fn is_added_by_writers(&self, path: &[u8]) -> bool {
        let path = tar::clean(path);
        let is_landmark =
            path == PREFETCH_LANDMARK.as_bytes() || path == NO_PREFETCH_LANDMARK.as_bytes();
        path == TOC_NAME.as_bytes()
            || (is_landmark && self.options.landmark == Landmark::NoPrefetch)
    }

    /// Copies the payload of an entry that is not listed.
    fn leave_out(&mut self, header: &Header) -> Result<(), Error> {
        self.blob.toc().leave_out(header)?;
        self.copy_payload(None)
    }

    fn list(&mut self, header: &Header) -> Result<(), Error> {
        if header.kind == EntryKind::Hardlink && self.is_added_by_writers(&header.link) {
            return Err(Error::Path {
                path: tar::lossy(&header.path),
                reason: "it is a hard link to an entry that is not listed",
            });
        }
        if header.kind != EntryKind::Reg {
            return self.blob.toc().push(header).map(drop);
        }
        let Self {
            walker,
            own_stream,
            blob,
            ..
        } = self;
        blob.file(header, |buffer| {
            let mut filled = 0;
            while filled < buffer.len() {
                filled += walker.read_payload(&mut buffer[filled..])?;
            }
            if let Some(own) = own_stream {
                own.update(buffer);
            }
            Ok(())
        })
    }

    /// Copies stored bytes into the stream and into a spool.
    fn spool(&mut self, header: Header) -> Result<(), Error> {
        if self.options.toc == TocPlacement::External {
            return Err(Error::SparseExternal);
        }
        self.count_unfolded(&header)?;
        self.blob.toc().postpone(&header)?;
        let waiting: usize = self.sparse.iter().map(Spooled::compressed_len).sum();
        let mut spool = Spool::new(MAX_SPOOLED_BYTES.saturating_sub(waiting))?;
        self.copy_payload(Some(&mut spool))?;
        self.sparse.push(spool.finish(header)?);
        Ok(())
    }

    /// Writes a sparse file into the stream as an ordinary one.
    fn write_out(&mut self, header: &Header) -> Result<(), Error> {
        self.count_unfolded(header)?;
        self.blob.gap(&tar::build::plain(header))?;
        let stored = Payload {
            walker: &mut self.walker,
            own_stream: &mut self.own_stream,
        };
        let mut content = Unfold::new(header, stored);
        self.blob
            .file(header, |buffer| content.fill(buffer).map_err(Error::Source))?;
        self.blob.gap(&[0; tar::BLOCK][..tar::padding(header.size)])
    }

    fn count_unfolded(&mut self, header: &Header) -> Result<(), Error> {
        self.unfolded_bytes = self.unfolded_bytes.saturating_add(header.size);
        if self.unfolded_bytes > MAX_UNFOLDED_BYTES {
            return Err(Error::Limit {
                what: "bytes of sparse files",
                limit: MAX_UNFOLDED_BYTES,
            });
        }
        Ok(())
    }

    fn copy_payload(&mut self, mut spool: Option<&mut Spool>) -> Result<(), Error> {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = self.walker.read_payload(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            match &mut self.own_stream {
                Some(own) => own.update(&buffer[..read]),
                None => self.blob.gap(&buffer[..read])?,
            }
            if let Some(spool) = &mut spool {
                spool.push(&buffer[..read])?;
            }
        }
    }

    /// Copies the bytes after the end marker, which belong to the source too.
    fn trailing(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = self.walker.read_trailing(&mut buffer)?;
            let limit = self.options.limits.max_source_bytes;
            if self.walker.position() > limit {
                return Err(Error::Limit {
                    what: "bytes of source",
                    limit,
                });
            }
            match &mut self.own_stream {
                _ if read == 0 => return Ok(()),
                Some(own) => own.update(&buffer[..read]),
                None => self.blob.gap(&buffer[..read])?,
            }
        }
    }
}

/// The payload of the current entry.
struct Payload<'w, R> {
    walker: &'w mut Walker<R>,
    own_stream: &'w mut Option<Stream>,
}

impl<R: Read> Read for Payload<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self
            .walker
            .read_payload(buffer)
            .map_err(std::io::Error::other)?;
        if let Some(own) = self.own_stream.as_mut() {
            own.update(&buffer[..read]);
        }
        Ok(read)
    }
}
