//! A blob as one decompressed stream, with a log of where each member begins.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::GzDecoder;
use sha2::{Digest as _, Sha256};

use crate::codec::Codec;
#[cfg(feature = "zstd")]
use crate::codec::ZSTD_WINDOW_LOG_MAX;
use crate::digest::Digest;

/// The facts about the stream so far.
#[derive(Debug)]
pub(super) struct Log {
    /// The offsets in the blob whose members are looked up. A blob can have a member for every
    /// twenty bytes, so no others are kept.
    wanted: HashSet<u64>,
    /// Where the wanted members begin: in the blob, and in the stream.
    starts: Vec<(u64, u64)>,
    last_start: Option<u64>,
    inflated: u64,
    limit: u64,
    hash: Sha256,
    source_size: Option<u64>,
    source: Option<Digest>,
    /// The first error of the blob's reader, as opposed to broken content.
    pub(super) failed: Option<io::Error>,
}

impl Log {
    pub(super) fn new(source_size: Option<u64>, limit: u64) -> Self {
        let hash = Sha256::new();
        let source = (source_size == Some(0)).then(|| Digest::from(hash.clone()));
        Self {
            wanted: HashSet::new(),
            starts: Vec::new(),
            last_start: None,
            inflated: 0,
            limit,
            hash,
            source_size,
            source,
            failed: None,
        }
    }

    /// Sets the offsets for [`start_of`](Self::start_of), before the stream is read.
    pub(super) fn want(&mut self, offsets: HashSet<u64>) {
        self.wanted = offsets;
    }

    fn begin_member(&mut self, offset: u64) {
        self.last_start = Some(offset);
        if self.wanted.contains(&offset) {
            self.starts.push((offset, self.inflated));
        }
    }

    /// Returns the place in the stream of the member that begins at `offset` of the blob, if that
    /// is a wanted offset.
    pub(super) fn start_of(&self, offset: u64) -> Option<u64> {
        let index = self
            .starts
            .binary_search_by_key(&offset, |(start, _)| *start)
            .ok()?;
        Some(self.starts[index].1)
    }

    pub(super) fn last_start(&self) -> Option<u64> {
        self.last_start
    }

    pub(super) fn inflated(&self) -> u64 {
        self.inflated
    }

    pub(super) fn digest(&self) -> Digest {
        self.hash.clone().into()
    }

    pub(super) fn source_digest(&self) -> Option<Digest> {
        self.source
    }

    fn took(&mut self, bytes: &[u8]) -> io::Result<()> {
        let until_source_ends = self
            .source_size
            .and_then(|size| size.checked_sub(self.inflated))
            .unwrap_or(u64::MAX);
        let split = usize::try_from(until_source_ends)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let (source, rest) = bytes.split_at(split);
        self.hash.update(source);
        self.inflated += bytes.len() as u64;
        if source.len() as u64 == until_source_ends && self.source.is_none() {
            self.source = Some(self.hash.clone().into());
        }
        self.hash.update(rest);
        if self.inflated > self.limit {
            return Err(io::Error::other(format!(
                "decompressed blob exceeds the limit of {} bytes",
                self.limit
            )));
        }
        Ok(())
    }
}

/// Reads members one after the other.
pub(super) struct Members<R: Read> {
    state: Option<State<R>>,
    codec: Codec,
    log: Rc<RefCell<Log>>,
}

enum State<R: Read> {
    Between(Counted<R>),
    Gzip(Box<GzDecoder<Counted<R>>>),
    #[cfg(feature = "zstd")]
    Zstd(zstd::stream::read::Decoder<'static, Counted<R>>),
}

impl<R: Read> Members<R> {
    pub(super) fn new(blob: R, codec: Codec, log: Rc<RefCell<Log>>) -> Self {
        let input = Counted {
            inner: BufReader::new(blob),
            at: 0,
            log: Rc::clone(&log),
        };
        Self {
            state: Some(State::Between(input)),
            codec,
            log,
        }
    }

    fn begin(&self, input: Counted<R>) -> io::Result<State<R>> {
        self.log.borrow_mut().begin_member(input.at);
        Ok(match self.codec {
            Codec::Gzip => State::Gzip(Box::new(GzDecoder::new(input))),
            #[cfg(not(feature = "zstd"))]
            Codec::Zstd => return Err(crate::codec::no_zstd()),
            #[cfg(feature = "zstd")]
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                State::Zstd(decoder)
            }
        })
    }
}

impl<R: Read> Read for Members<R> {
    /// After an error the stream has ended.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(state) = self.state.take() {
            let (read, state) = match state {
                State::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        self.state = Some(State::Between(input));
                        return Ok(0);
                    }
                    (0, self.begin(input)?)
                }
                State::Gzip(mut decoder) => match decoder.read(buffer)? {
                    0 => (0, State::Between(decoder.into_inner())),
                    read => (read, State::Gzip(decoder)),
                },
                #[cfg(feature = "zstd")]
                State::Zstd(mut decoder) => match decoder.read(buffer)? {
                    0 => (0, State::Between(decoder.finish())),
                    read => (read, State::Zstd(decoder)),
                },
            };
            self.state = Some(state);
            if read > 0 {
                self.log.borrow_mut().took(&buffer[..read])?;
                return Ok(read);
            }
        }
        Ok(0)
    }
}

/// Counts consumed bytes, so that the end of a member is known.
struct Counted<R> {
    inner: BufReader<R>,
    at: u64,
    log: Rc<RefCell<Log>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf().inspect_err(|error| {
            let copy = io::Error::new(error.kind(), error.to_string());
            self.log.borrow_mut().failed.get_or_insert(copy);
        })
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount as u64;
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_starts_are_kept() {
        let member = crate::footer::external();
        let blob = member.repeat(1000);
        let (wanted, last) = (500 * member.len() as u64, 999 * member.len() as u64);
        let log = Rc::new(RefCell::new(Log::new(None, u64::MAX)));
        log.borrow_mut().want([wanted, wanted + 1].into());
        let mut members = Members::new(&blob[..], Codec::Gzip, Rc::clone(&log));
        assert_eq!(members.read(&mut [0; 10]).unwrap(), 0);
        let log = log.borrow();
        assert_eq!(log.starts, [(wanted, 0)]);
        assert_eq!(
            (log.start_of(wanted), log.start_of(0), log.last_start()),
            (Some(0), None, Some(last))
        );
    }
}
