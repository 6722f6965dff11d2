//! A blob under construction: cuts the stream into members, has them compressed, writes them in
//! order.

use std::collections::VecDeque;
use std::io::Write;

use sha2::{Digest as _, Sha256};

use super::toc_builder::{EntryId, FinishedToc, TocBuilder};
use super::{Compression, Error, Options};
use crate::digest::Digest;
use crate::pool::{Batch, Encoder, Pool, Ticket};
use crate::tar::Header;

/// Bytes of small members that are sent to a worker together. With fewer, sending would take longer
/// than compressing.
const BATCH_BYTES: usize = 1024 * 1024;

/// A blob under construction.
///
/// Bytes that are not content of a file are a *gap*: headers, padding, end marker. Gaps are
/// separate members, so that the member of a chunk depends only on the chunk and the options.
#[derive(Debug)]
pub(super) struct Blob<'p, W> {
    pool: &'p Pool,
    compression: Compression,
    chunk_size: usize,
    min_chunk_size: usize,
    out: Out<W>,
    stream: Stream,
    current: Option<Open>,
    in_flight: VecDeque<Flight>,
    toc: TocBuilder,
}

/// A running digest and the number of its bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    hash: Sha256,
    size: u64,
}

#[derive(Debug)]
struct Out<W> {
    inner: W,
    stream: Stream,
}

/// The batch being filled.
#[derive(Debug)]
struct Open {
    batch: Batch,
    placements: Vec<Placement>,
}

/// A batch at the workers.
#[derive(Debug)]
struct Flight {
    ticket: Ticket,
    placements: Vec<Placement>,
}

/// The facts that an entry needs when its chunk's member is written.
#[derive(Debug)]
struct Placement {
    entry: EntryId,
    member: usize,
    inner_offset: u64,
    digest: usize,
    /// The chunk is the whole file.
    is_whole: bool,
}

impl<'p, W: Write> Blob<'p, W> {
    pub(super) fn new(out: W, options: &Options, pool: &'p Pool) -> Self {
        Self {
            pool,
            compression: options.compression,
            chunk_size: options.chunk_size as usize,
            min_chunk_size: options.min_chunk_size as usize,
            out: Out {
                inner: out,
                stream: Stream::default(),
            },
            stream: Stream::default(),
            current: None,
            in_flight: VecDeque::new(),
            toc: TocBuilder::new(&options.limits),
        }
    }

    /// Returns the decompressed stream so far.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn toc(&mut self) -> &mut TocBuilder {
        &mut self.toc
    }

    /// Appends bytes that no entry refers to.
    pub(super) fn gap(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.update(bytes);
        for piece in bytes.chunks(BATCH_BYTES) {
            self.make_room(piece.len())?;
            if let Some(open) = &mut self.current {
                open.batch.push(piece);
            }
        }
        Ok(())
    }

    /// Adds a file to the TOC and appends its content, which `fill` supplies piece by piece.
    pub(super) fn file(
        &mut self,
        header: &Header,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let first = self.toc.push(header)?;
        let chunk_size = self.chunk_size as u64;
        let mut whole = (header.size > chunk_size).then(Sha256::new);
        let mut at = 0;
        while at < header.size {
            let size = chunk_size.min(header.size - at);
            let entry = if at == 0 {
                first
            } else {
                self.toc.push_chunk(header)?
            };
            if let Some(place) = self.toc.place_mut(entry) {
                place.chunk_offset = at;
                place.chunk_size = if size == chunk_size { size } else { 0 };
            }
            self.chunk(
                entry,
                usize::try_from(size).unwrap_or(self.chunk_size),
                whole.as_mut(),
                &mut fill,
            )?;
            at += size;
        }
        if let (Some(whole), Some(place)) = (whole, self.toc.place_mut(first)) {
            place.file_digest = Some(whole.into());
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        entry: EntryId,
        size: usize,
        whole: Option<&mut Sha256>,
        fill: &mut impl FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let min_chunk_size = self.min_chunk_size;
        self.make_room(size)?;
        let Self {
            current: Some(open),
            stream,
            ..
        } = self
        else {
            return Err(Error::Worker);
        };
        let Open { batch, placements } = open;
        if batch.member_len() >= min_chunk_size {
            batch.end_member();
        }
        let (member, inner_offset) = (batch.member(), batch.member_len() as u64);
        let data = batch.extend(size);
        fill(data)?;
        stream.update(data);
        let is_whole = whole.is_none();
        if let Some(whole) = whole {
            whole.update(&*data);
        }
        let digest = batch.add_chunk(size);
        placements.push(Placement {
            entry,
            member,
            inner_offset,
            digest,
            is_whole,
        });
        if min_chunk_size == 0 {
            batch.end_member();
        }
        if batch.len() >= BATCH_BYTES.max(min_chunk_size) {
            self.submit()?;
        }
        Ok(())
    }

    /// Compresses and writes everything appended so far, then `member` unchanged: part of the blob,
    /// not of the stream.
    pub(super) fn verbatim(&mut self, member: &[u8]) -> Result<(), Error> {
        self.flush()?;
        self.out.write(member)
    }

    /// Compresses and writes `bytes` as one member. Returns where it begins.
    pub(super) fn member(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        self.flush()?;
        self.stream.update(bytes);
        let offset = self.out.stream.size;
        let member = Encoder::new(self.compression)?.encode_text(bytes)?;
        self.out.write(&member)?;
        Ok(offset)
    }

    /// Waits until everything appended is written. Returns the size of the blob so far.
    pub(super) fn flush(&mut self) -> Result<u64, Error> {
        self.submit()?;
        while let Some(flight) = self.in_flight.pop_front() {
            self.write(flight)?;
        }
        Ok(self.out.stream.size)
    }

    /// Writes everything appended so far and returns the TOC.
    pub(super) fn finish_toc(&mut self) -> Result<FinishedToc, Error> {
        self.flush()?;
        let limits = *self.toc.limits();
        std::mem::replace(&mut self.toc, TocBuilder::new(&limits)).finish()
    }

    /// Flushes the output. Returns digests and sizes of the blob and the stream.
    pub(super) fn finish(mut self) -> Result<(Stream, Stream), Error> {
        self.flush()?;
        self.out.inner.flush().map_err(Error::Output)?;
        Ok((self.out.stream, self.stream))
    }

    /// Makes sure that the current batch has room for `bytes` more. The ends of batches depend only
    /// on the stream.
    fn make_room(&mut self, bytes: usize) -> Result<(), Error> {
        if self
            .current
            .as_ref()
            .is_some_and(|open| open.batch.room() >= bytes)
        {
            return Ok(());
        }
        self.submit()?;
        let bytes = bytes.max(BATCH_BYTES).max(self.min_chunk_size);
        let batch = loop {
            let has_enough = self.in_flight.len() >= self.pool.enough_batches();
            if !has_enough && let Some(batch) = self.pool.try_open(bytes) {
                break batch;
            }
            match self.in_flight.pop_front() {
                Some(oldest) => self.write(oldest)?,
                None => break self.pool.open(bytes),
            }
        };
        self.current = Some(Open {
            batch,
            placements: Vec::new(),
        });
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Error> {
        if let Some(Open { batch, placements }) = self.current.take() {
            let ticket = self.pool.submit(batch, self.compression);
            self.in_flight.push_back(Flight { ticket, placements });
        }
        while self
            .in_flight
            .front()
            .is_some_and(|flight| flight.ticket.is_ready())
        {
            if let Some(flight) = self.in_flight.pop_front() {
                self.write(flight)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, flight: Flight) -> Result<(), Error> {
        let compressed = flight.ticket.wait()?;
        let base = self.out.stream.size;
        for placement in &flight.placements {
            let Some(place) = self.toc.place_mut(placement.entry) else {
                continue;
            };
            place.offset = base + compressed.member_start(placement.member) as u64;
            place.inner_offset = placement.inner_offset;
            place.chunk_digest = compressed.digest(placement.digest);
            if placement.is_whole {
                place.file_digest = place.chunk_digest;
            }
        }
        self.out.write(compressed.bytes())?;
        self.pool.recycle(compressed);
        Ok(())
    }
}

impl<W: Write> Out<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.write_all(bytes).map_err(Error::Output)?;
        self.stream.update(bytes);
        Ok(())
    }
}

impl Stream {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn digest(&self) -> Digest {
        self.hash.clone().into()
    }
}
