//! A blob's bytes on their way.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;

use super::error::Error;
use super::origin::Origin;
use super::peer::Peer;

/// A blob's bytes on their way.
pub struct Body {
    /// Length of the whole blob.
    pub blob_size: u64,
    /// What of it the stream holds.
    pub range: Range<u64>,
    /// Ends with [`Error::WrongDigest`] instead of its last bytes when a whole blob is not what was asked for.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
    /// Who gives it, where that is a Starlift server.
    pub peer: Option<Peer>,
    /// The registry host it comes from; none for a layout.
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
