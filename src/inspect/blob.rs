//! Reads ranges of a blob, which is in a file or behind an endpoint. Other bytes are not read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use estargz::footer::{FooterError, Form};
use estargz::toc::{Limits, UnverifiedToc};

use crate::failure::Failure;
use crate::layers::open::{OpenError, Opening, Tail, tail_range};
use crate::oci::Descriptor;
use crate::transport::Endpoint;

/// The end of a layer's blob.
#[derive(Debug, Default)]
pub(crate) struct BlobIndex {
    /// `None` if the blob has no footer.
    pub(crate) form: Option<Form>,
    /// `None` if the blob has no footer, or its TOC is in another blob.
    pub(crate) toc: Option<UnverifiedToc>,
}

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
    async fn read(&self, range: Range<u64>) -> Result<Bytes, Failure> {
        let length = range.end.saturating_sub(range.start);
        match self {
            Self::File { file, .. } => {
                let mut bytes = vec![0; usize::try_from(length).map_err(Failure::from_error)?];
                file.read_exact_at(&mut bytes, range.start)
                    .map_err(Failure::when("blob cannot be read"))?;
                Ok(bytes.into())
            }
            Self::Remote { endpoint, layer } => {
                let what = || Failure::when(format!("reading {}", layer.digest));
                let body = endpoint
                    .source
                    .blob(&endpoint.repository, &layer.digest, Some(range))
                    .await;
                body.map_err(what())?.read(length).await.map_err(what())
            }
        }
    }

    /// Reads the footer and the TOC.
    pub(crate) async fn index(&self) -> Result<BlobIndex, Failure> {
        let tail = self.read(tail_range(self.size())).await?;
        let opening = match Opening::new(&Tail::new(self.size(), tail), Limits::default()) {
            Ok(opening) => opening,
            Err(OpenError::Footer(FooterError::NotAFooter)) => return Ok(BlobIndex::default()),
            Err(error) => return Err(Failure::from_error(error)),
        };
        let toc = match opening.section((), None) {
            Ok(((), range)) => {
                let section = self.read(range).await?;
                Some(opening.toc(&section).map_err(Failure::from_error)?)
            }
            Err(OpenError::ExternalToc) => None,
            Err(error) => return Err(Failure::from_error(error)),
        };
        Ok(BlobIndex {
            form: Some(opening.footer().form()),
            toc,
        })
    }
}
