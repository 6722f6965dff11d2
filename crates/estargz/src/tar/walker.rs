//! The walk along an archive: header by header, payloads in between.

use std::io::{BufReader, ErrorKind, Read};

use super::header::{Block, Header, text};
use super::number;
use super::pax::Records;
use super::sparse::{self, Lines, Segment, SparseMap};
use super::{BLOCK, END_MARKER, Error, MAX_EXTENSION_BYTES, MAX_HEADER_BYTES, padding};
use crate::entry::EntryKind;

/// Bytes read ahead of a header. A payload read larger than this bypasses the buffer.
const READ_AHEAD: usize = 128 * 1024;

/// Walks the archive that `source` streams.
///
/// The bytes that [`next_header`](Self::next_header) appends, the payloads and, after the last
/// entry, [`read_trailing`](Self::read_trailing) are together exactly the bytes of the source.
#[derive(Debug)]
pub struct Walker<R> {
    source: BufReader<R>,
    /// Source bytes taken so far.
    at: u64,
    payload_left: u64,
    padding_left: usize,
    missing: usize,
}

/// The extension headers in front of an entry.
#[derive(Debug, Default)]
struct Extensions {
    pax: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Walker<R> {
    pub fn new(source: R) -> Self {
        let source = BufReader::with_capacity(READ_AHEAD, source);
        Self {
            source,
            at: 0,
            payload_left: 0,
            padding_left: 0,
            missing: 0,
        }
    }

    /// Source bytes taken so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Payload bytes of this entry not read yet.
    pub fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Zero bytes that the source lacks at its end to complete the last padding and the
    /// end-of-archive marker.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Returns the next entry, or `None` at the end of the archive. The padding before it and all
    /// its header blocks, or the end marker, are appended to `raw` unchanged. The unread rest of
    /// the last payload is skipped.
    pub fn next_header(&mut self, raw: &mut Vec<u8>) -> Result<Option<Header>, Error> {
        self.skip_payload()?;
        if !self.take_padding(raw)? {
            return Ok(None);
        }
        let start = raw.len();
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.take_block(raw, start)? else {
                return Ok(None);
            };
            let header = Block::parse(&block).map_err(|what| self.malformed(what))?;
            match header.type_flag() {
                b'g' => drop(self.take_extension(&header, raw)?),
                b'x' => {
                    let records = self.take_extension(&header, raw)?;
                    extensions.pax = Records::default();
                    extensions
                        .pax
                        .parse(&records)
                        .map_err(|what| self.malformed(what))?;
                }
                b'L' => {
                    extensions.long_name = Some(text(&self.take_extension(&header, raw)?).to_vec())
                }
                b'K' => {
                    extensions.long_link = Some(text(&self.take_extension(&header, raw)?).to_vec())
                }
                _ => return self.entry(&header, extensions, raw).map(Some),
            }
            if raw.len() - start > MAX_HEADER_BYTES {
                return Err(Error::Limit {
                    what: "bytes of headers",
                    limit: MAX_HEADER_BYTES as u64,
                });
            }
        }
    }

    /// Reads payload into `buffer`; 0 at the payload's end.
    pub fn read_payload(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let wanted = usize::try_from(self.payload_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.read_some(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(Error::Truncated { at: self.at });
        }
        self.payload_left -= read as u64;
        Ok(read)
    }

    /// Reads the bytes after the end-of-archive marker; 0 at the end of the source.
    pub fn read_trailing(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.read_some(buffer)
    }

    fn entry(
        &mut self,
        block: &Block<'_>,
        extensions: Extensions,
        raw: &mut Vec<u8>,
    ) -> Result<Header, Error> {
        let Extensions {
            pax,
            long_name,
            long_link,
        } = extensions;
        let kind = self.kind(block.type_flag())?;
        let mut header = block
            .header(kind, &pax, long_name, long_link)
            .map_err(|what| self.malformed(what))?;
        // Archives older than ustar mark a directory only by its slash.
        if block.type_flag() == 0 && header.path.ends_with(b"/") {
            header.kind = EntryKind::Dir;
        }
        if header.kind == EntryKind::Reg {
            self.file(block, &pax, &mut header, raw)?;
        }
        header.check_paths().map_err(|(what, limit)| Error::Limit {
            what,
            limit: limit as u64,
        })?;
        self.payload_left = header.stored;
        self.padding_left = padding(header.stored);
        Ok(header)
    }

    fn kind(&self, type_flag: u8) -> Result<EntryKind, Error> {
        match type_flag {
            // A contiguous file ('7') and an old sparse file ('S') are regular files to their
            // readers.
            0 | b'0' | b'7' | b'S' => Ok(EntryKind::Reg),
            b'1' => Ok(EntryKind::Hardlink),
            b'2' => Ok(EntryKind::Symlink),
            b'3' => Ok(EntryKind::Char),
            b'4' => Ok(EntryKind::Block),
            b'5' => Ok(EntryKind::Dir),
            b'6' => Ok(EntryKind::Fifo),
            kind => Err(Error::Kind { kind, at: self.at }),
        }
    }

    /// Sets the sizes of a regular file and, if it is sparse, its map.
    fn file(
        &mut self,
        block: &Block<'_>,
        pax: &Records,
        header: &mut Header,
        raw: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let in_archive = match pax.get("size") {
            Some(value) => {
                decimal_size(value).ok_or_else(|| self.malformed("a malformed pax size"))?
            }
            None => block.size().map_err(|what| self.malformed(what))?,
        };
        if in_archive > i64::MAX.cast_unsigned() - BLOCK as u64 {
            return Err(self.malformed("a size that overflows"));
        }
        let before_map = raw.len();
        let (size, segments) = match self.sparse_segments(block, pax, header, raw, in_archive)? {
            Some((size, segments)) => (size, segments),
            None => {
                header.size = in_archive;
                header.stored = in_archive;
                return Ok(());
            }
        };
        // Only the map of version 1.0 is part of the payload; the blocks of an old header are not
        // counted by it.
        let map_bytes = if block.type_flag() == b'S' {
            0
        } else {
            (raw.len() - before_map) as u64
        };
        let stored = in_archive
            .checked_sub(map_bytes)
            .ok_or_else(|| self.malformed("a sparse map beyond its payload"))?;
        let map = SparseMap::new(segments, size, stored).map_err(|what| self.malformed(what))?;
        header.size = size;
        header.stored = stored;
        header.sparse = Some(map);
        Ok(())
    }

    /// Returns size and segments of a sparse file in any of the four formats; `None` for an
    /// ordinary file.
    fn sparse_segments(
        &mut self,
        block: &Block<'_>,
        pax: &Records,
        header: &mut Header,
        raw: &mut Vec<u8>,
        in_archive: u64,
    ) -> Result<Option<(u64, Vec<Segment>)>, Error> {
        if block.type_flag() == b'S' {
            return self.old_sparse(block, raw).map(Some);
        }
        let version = (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor"));
        let map = pax.get("GNU.sparse.map");
        let is_in_payload = version == (Some(&b"1"[..]), Some(&b"0"[..]));
        if !is_in_payload && map.is_none() {
            return Ok(None);
        }
        if let Some(name) = pax.get("GNU.sparse.name") {
            header.path = name.to_vec();
        }
        let size = match pax
            .get("GNU.sparse.size")
            .or_else(|| pax.get("GNU.sparse.realsize"))
        {
            Some(value) => {
                decimal_size(value).ok_or_else(|| self.malformed("a malformed sparse size"))?
            }
            None => in_archive,
        };
        let segments = match map {
            Some(map) if !is_in_payload => {
                sparse::parse_record(map).map_err(|error| self.place(error))?
            }
            _ => self.sparse_lines(raw, in_archive)?,
        };
        Ok(Some((size, segments)))
    }

    fn old_sparse(
        &mut self,
        block: &Block<'_>,
        raw: &mut Vec<u8>,
    ) -> Result<(u64, Vec<Segment>), Error> {
        let (list, mut is_extended, size) =
            block.old_sparse().map_err(|what| self.malformed(what))?;
        let mut segments = Vec::new();
        let start = raw.len();
        let mut goes_on =
            sparse::push_old(list, &mut segments).map_err(|error| self.place(error))?;
        while is_extended {
            let more = self.take_exact_block(raw)?;
            if goes_on {
                goes_on = sparse::push_old(&more[..504], &mut segments)
                    .map_err(|error| self.place(error))?;
            } else if raw.len() - start > MAX_HEADER_BYTES {
                return Err(Error::Limit {
                    what: "bytes of headers",
                    limit: MAX_HEADER_BYTES as u64,
                });
            }
            is_extended = more[504] != 0;
        }
        Ok((size, segments))
    }

    fn sparse_lines(&mut self, raw: &mut Vec<u8>, in_archive: u64) -> Result<Vec<Segment>, Error> {
        let mut lines = Lines::default();
        for _ in 0..in_archive / BLOCK as u64 {
            let block = self.take_exact_block(raw)?;
            if let Some(segments) = lines
                .push_block(&block)
                .map_err(|error| self.place(error))?
            {
                return Ok(segments);
            }
        }
        Err(self.malformed("a sparse map beyond its payload"))
    }

    fn skip_payload(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8 * BLOCK];
        while self.payload_left > 0 {
            self.read_payload(&mut buffer)?;
        }
        Ok(())
    }

    /// Returns false if the source ends within the padding. Every reader accepts that after the
    /// last entry.
    fn take_padding(&mut self, raw: &mut Vec<u8>) -> Result<bool, Error> {
        let mut block = [0; BLOCK];
        let wanted = std::mem::take(&mut self.padding_left);
        let read = self.read_full(&mut block[..wanted])?;
        raw.extend_from_slice(&block[..read]);
        if read < wanted {
            self.missing = wanted - read + END_MARKER.len();
        }
        Ok(read == wanted)
    }

    /// Returns the next header block; `None` at the end marker or, between entries, at the end of
    /// the source.
    fn take_block(
        &mut self,
        raw: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let read = self.read_full(&mut block)?;
        raw.extend_from_slice(&block[..read]);
        let is_zero = block.iter().all(|byte| *byte == 0);
        if read == BLOCK && !is_zero {
            return Ok(Some(block));
        }
        let is_between_entries = raw.len() - read == start;
        if !is_between_entries || !is_zero {
            return Err(Error::Truncated { at: self.at });
        }
        self.missing = END_MARKER.len() - read;
        if read == BLOCK {
            let read = self.read_full(&mut block)?;
            raw.extend_from_slice(&block[..read]);
            if block.iter().any(|byte| *byte != 0) {
                return Err(self.malformed("a single zero block before it"));
            }
            self.missing -= read;
        }
        Ok(None)
    }

    /// Returns the payload of an extension header.
    fn take_extension(&mut self, block: &Block<'_>, raw: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        let size = block.size().map_err(|what| self.malformed(what))?;
        if size > MAX_EXTENSION_BYTES {
            return Err(Error::Limit {
                what: "bytes of an extended header",
                limit: MAX_EXTENSION_BYTES,
            });
        }
        let start = raw.len();
        let size = usize::try_from(size).unwrap_or(0);
        raw.resize(start + size + padding(size as u64), 0);
        if self.read_full(&mut raw[start..])? < raw.len() - start {
            return Err(Error::Truncated { at: self.at });
        }
        Ok(raw[start..start + size].to_vec())
    }

    fn take_exact_block(&mut self, raw: &mut Vec<u8>) -> Result<[u8; BLOCK], Error> {
        let mut block = [0; BLOCK];
        if self.read_full(&mut block)? < BLOCK {
            return Err(Error::Truncated { at: self.at });
        }
        raw.extend_from_slice(&block);
        Ok(block)
    }

    /// Fills `buffer`, or less of it if the source ends.
    fn read_full(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.source.read(buffer) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
    }

    fn malformed(&self, what: &'static str) -> Error {
        Error::Header { what, at: self.at }
    }

    /// Adds the position in the stream to an error that was made without it.
    fn place(&self, error: Error) -> Error {
        match error {
            Error::Header { what, .. } => self.malformed(what),
            other => other,
        }
    }
}

fn decimal_size(text: &[u8]) -> Option<u64> {
    u64::try_from(number::decimal(text)?).ok()
}
