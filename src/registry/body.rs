//! A blob's bytes as a stream.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
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
