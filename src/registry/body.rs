//! A blob's bytes as a stream.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;

use super::error::Error;
use super::origin::Origin;
use super::peer::Peer;

/// A blob's bytes as a stream, and the host that sends them.
pub struct Body {
    /// The length of the whole blob.
    pub blob_size: u64,
    /// The part of the blob that the stream holds.
    pub range: Range<u64>,
    /// Ends with [`Error::WrongDigest`] instead of its last bytes if it is a whole blob with
    /// another digest.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
    /// The Starlift server that sends it, if it is one.
    pub peer: Option<Peer>,
    /// The registry host that sends it; `None` for a layout or an empty range.
    pub origin: Option<Origin>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("blob_size", &self.blob_size)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Body {
    /// Reads all bytes of the range. The buffer grows with the bytes that arrive.
    ///
    /// # Errors
    /// If the range has more than `limit` bytes, more bytes arrive than it has, or the stream
    /// fails.
    pub async fn read(mut self, limit: u64) -> Result<Bytes, Error> {
        let length = self.range.end.saturating_sub(self.range.start);
        if length > limit {
            return Err(Error::TooLarge { limit });
        }
        let mut bytes = Vec::new();
        while let Some(piece) = self.stream.try_next().await? {
            if (bytes.len() + piece.len()) as u64 > length {
                let problem = "more bytes received than requested";
                return Err(Error::Malformed(problem.to_owned()));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }
}
