//! Reads ranges of a blob, which is in a file or behind an endpoint. Other bytes are not read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use estargz::footer::{self, Footer, FooterError};
use estargz::toc::{Limits, UnverifiedToc};
use futures::TryStreamExt as _;

use crate::failure::Failure;
use crate::oci::Descriptor;
use crate::transport::Endpoint;

/// A layer's blob.
#[derive(Debug)]
pub(crate) enum Blob<'a> {
    File {
        file: File,
        size: u64,
    },
    Remote {
        endpoint: &'a Endpoint,
        layer: &'a Descriptor,
    },
}

impl Blob<'_> {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let what = || Failure::when(format!("{} cannot be read", path.display()));
        let file = File::open(path).map_err(what())?;
        let size = file.metadata().map_err(what())?.len();
        Ok(Self::File { file, size })
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Remote { layer, .. } => layer.size,
        }
    }

    /// Returns the bytes of `range`.
    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        let wanted =
            usize::try_from(range.end.saturating_sub(range.start)).map_err(Failure::from_error)?;
        match self {
            Self::File { file, .. } => {
                let mut bytes = vec![0; wanted];
                file.read_exact_at(&mut bytes, range.start)
                    .map_err(Failure::when("blob cannot be read"))?;
                Ok(bytes)
            }
            Self::Remote { endpoint, layer } => {
                let what = || Failure::when(format!("reading {}", layer.digest));
                let body = endpoint
                    .source
                    .blob(&endpoint.repository, &layer.digest, Some(range))
                    .await;
                let mut stream = body.map_err(what())?.stream;
                let mut bytes = Vec::new();
                while let Some(piece) = stream.try_next().await.map_err(what())? {
                    bytes.extend_from_slice(&piece);
                    if bytes.len() > wanted {
                        return Err(Failure::new(format!(
                            "{}: more bytes than requested",
                            layer.digest
                        )));
                    }
                }
                Ok(bytes)
            }
        }
    }

    /// Returns the footer, or `None` if the blob has none.
    pub(crate) async fn footer(&self) -> Result<Option<Footer>, Failure> {
        let tail = self.read(footer::tail_range(self.size())).await?;
        match Footer::parse(&tail, self.size()) {
            Ok(footer) => Ok(Some(footer)),
            Err(FooterError::NotAFooter) => Ok(None),
            Err(error) => Err(Failure::from_error(error)),
        }
    }

    /// Returns the TOC that `footer` points at, or `None` if it is in another blob.
    pub(crate) async fn toc(&self, footer: &Footer) -> Result<Option<UnverifiedToc>, Failure> {
        let limits = Limits::default();
        let Some(range) = footer.toc_range() else {
            return Ok(None);
        };
        if range.end - range.start > limits.max_compressed_bytes {
            return Err(Failure::new(format!(
                "TOC longer than {} bytes",
                limits.max_compressed_bytes
            )));
        }
        let section = self.read(range).await?;
        UnverifiedToc::parse(&section, footer, &limits)
            .map(Some)
            .map_err(Failure::from_error)
    }
}
