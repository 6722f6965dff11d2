//! Sparse files: the offsets of the stored bytes in the file.

use super::number;
use super::{BLOCK, Error, MAX_SPARSE_SEGMENTS};

/// A run of stored bytes. Between segments is a hole of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// The segments of a sparse file, ascending and inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks the order, the bounds and that the segments hold exactly the `stored` bytes.
    pub(super) fn new(
        segments: Vec<Segment>,
        size: u64,
        stored: u64,
    ) -> Result<Self, &'static str> {
        let mut end = 0;
        let mut sum = 0_u64;
        for segment in &segments {
            let segment_end = segment
                .offset
                .checked_add(segment.length)
                .ok_or("a sparse segment that overflows")?;
            if segment.offset < end || segment_end > size {
                return Err("sparse segments out of order or beyond the file");
            }
            end = segment_end;
            sum += segment.length;
        }
        if sum != stored {
            return Err("sparse segments that do not add up to the stored bytes");
        }
        Ok(Self { segments })
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// Bytes of one segment in an old GNU header: two numbers of twelve bytes.
const OLD_SEGMENT: usize = 24;

/// Adds the segments of an old GNU header or extension block. Returns whether the list continues.
pub(super) fn push_old(list: &[u8], segments: &mut Vec<Segment>) -> Result<bool, Error> {
    for field in list.chunks_exact(OLD_SEGMENT) {
        if field[0] == 0 {
            return Ok(false);
        }
        let segment = parse_pair(number::parse(&field[..12]), number::parse(&field[12..]));
        push(
            segments,
            segment.ok_or(Error::Header {
                what: "a malformed sparse segment",
                at: 0,
            })?,
        )?;
    }
    Ok(true)
}

/// The `GNU.sparse.map` record: `offset,length,…`.
pub(super) fn parse_record(text: &[u8]) -> Result<Vec<Segment>, Error> {
    let malformed = Error::Header {
        what: "a malformed sparse map",
        at: 0,
    };
    let numbers: Option<Vec<i64>> = text
        .split(|byte| *byte == b',')
        .map(number::decimal)
        .collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len().is_multiple_of(2)) else {
        return Err(malformed);
    };
    let mut segments = Vec::new();
    for pair in numbers.chunks_exact(2) {
        let Some(segment) = parse_pair(Some(pair[0]), Some(pair[1])) else {
            return Err(malformed);
        };
        push(&mut segments, segment)?;
    }
    Ok(segments)
}

/// The map of version 1.0: lines of decimal numbers before the data, padded to a block.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    wanted: Option<usize>,
    numbers: Vec<i64>,
}

impl Lines {
    /// Adds one block. Returns the segments once the map is complete.
    pub(super) fn push_block(
        &mut self,
        block: &[u8; BLOCK],
    ) -> Result<Option<Vec<Segment>>, Error> {
        let malformed = || Error::Header {
            what: "a malformed sparse map",
            at: 0,
        };
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let number = number::decimal(&self.line).ok_or_else(malformed)?;
            self.line.clear();
            match self.wanted {
                None => self.wanted = Some(count(number)?),
                Some(_) => self.numbers.push(number),
            }
            if self
                .wanted
                .is_some_and(|wanted| self.numbers.len() == 2 * wanted)
            {
                let pairs = self
                    .numbers
                    .chunks_exact(2)
                    .map(|pair| parse_pair(Some(pair[0]), Some(pair[1])));
                return pairs.collect::<Option<_>>().map(Some).ok_or_else(malformed);
            }
        }
        if self.line.len() > BLOCK {
            return Err(malformed());
        }
        Ok(None)
    }
}

fn count(number: i64) -> Result<usize, Error> {
    usize::try_from(number)
        .ok()
        .filter(|count| *count <= MAX_SPARSE_SEGMENTS)
        .ok_or_else(too_many)
}

fn parse_pair(offset: Option<i64>, length: Option<i64>) -> Option<Segment> {
    Some(Segment {
        offset: u64::try_from(offset?).ok()?,
        length: u64::try_from(length?).ok()?,
    })
}

fn push(segments: &mut Vec<Segment>, segment: Segment) -> Result<(), Error> {
    if segments.len() == MAX_SPARSE_SEGMENTS {
        return Err(too_many());
    }
    segments.push(segment);
    Ok(())
}

fn too_many() -> Error {
    Error::Limit {
        what: "sparse segments",
        limit: MAX_SPARSE_SEGMENTS as u64,
    }
}
