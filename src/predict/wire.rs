//! The protocol between a predictor's process and its parent, on its standard input and output.
//!
//! ```text
//! child: Ready ▶           parent: Task ▶
//! child: Read(pieces) ▶    parent: a frame for each piece ▶    (any number of times)
//! child: Done | Failed ▶
//! ```
//! A frame is its length in four bytes, most significant first, and then that many bytes. The child
//! is not trusted: the parent bounds everything that it receives and sends.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::Prediction;
use super::blobs::Piece;

/// The longest frame of the child: a full list of files with long paths.
pub(super) const MAX_SAID: usize = 8 << 20;
/// The longest frame of the parent: a piece of a blob, or a task with the largest configuration.
pub(super) const MAX_GIVEN: usize = 64 << 20;

/// A message of the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    /// The limits are set. The child has read nothing of the image yet.
    Ready {
        /// Whether its system calls are filtered.
        is_filtered: bool,
    },
    Read(Vec<Piece>),
    Done(Prediction),
    Failed(String),
}

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&length(bytes)?)?;
    to.write_all(bytes)?;
    to.flush()
}

/// Reads a frame of at most `most` bytes. The buffer grows only with the bytes that arrive.
pub(super) fn read(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = checked(length, most)?;
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() == length {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Returns the encoded length of a frame with these bytes.
pub(super) fn length(bytes: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    Ok(length.to_be_bytes())
}

/// Decodes the length of a frame, and checks it against `most`.
pub(super) fn checked(length: [u8; 4], most: usize) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length <= most {
        Ok(length)
    } else {
        Err(io::Error::other(format!(
            "frame of {length} bytes, over {most}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_round_trips_and_a_long_or_truncated_one_is_rejected() {
        let mut pipe = Vec::new();
        write(&mut pipe, b"four").unwrap();
        assert_eq!(read(&mut pipe.as_slice(), 4).unwrap(), b"four");
        assert!(read(&mut pipe.as_slice(), 3).is_err());
        assert!(read(&mut &pipe[..7], 4).is_err());
        assert!(read(&mut &[0xff; 8][..], MAX_GIVEN).is_err());
    }
}
