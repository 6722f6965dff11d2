//! Images in files: an OCI layout in a directory (image-spec, image-layout.md), or a tar as written
//! by `docker save` and skopeo. Nothing is unpacked: objects are read in place. Only a compressed
//! tar is inflated first.

mod docker;
mod files;
mod images;
mod inflate;
mod io_error;
mod open;
mod tar_index;

use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use self::files::{Extent, Files};
use self::images::Images;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::registry::{Body, Error, Tags, verified};

/// A directory or a tar with images.
#[derive(Debug)]
pub(crate) struct Layout(Place);

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Archive {
        path: PathBuf,
        held: Mutex<Option<(Identity, Arc<Images>)>>,
    },
}

/// The identity of a file's version, which shows whether an archive changed since it was indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Layout {
    /// Returns the layout that an `oci:DIR` or `docker-archive:FILE` names; `None` for every other
    /// URL.
    pub(crate) fn from_url(url: &str) -> Option<Self> {
        if let Some(path) = url.strip_prefix("oci:") {
            return Some(Self(Place::Directory(path.into())));
        }
        let path = url.strip_prefix("docker-archive:")?;
        Some(Self(Place::Archive {
            path: path.into(),
            held: Mutex::default(),
        }))
    }

    pub(crate) async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        let (repository, reference) = (repository.clone(), reference.clone());
        self.with_images(move |images| images.manifest(&repository, &reference))
            .await
    }

    pub(crate) async fn blob_size(self: &Arc<Self>, digest: &Digest) -> Result<u64, Error> {
        self.extent(digest).await.map(|extent| extent.size())
    }

    pub(crate) async fn blob(
        self: &Arc<Self>,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<Body, Error> {
        let extent = self.extent(digest).await?;
        let blob_size = extent.size();
        let range = match range {
            None => 0..blob_size,
            Some(range) if range.is_empty() => range.start..range.start,
            Some(range) if range.start < blob_size => range.start..range.end.min(blob_size),
            Some(_) => {
                return Err(Error::RangeNotSatisfiable {
                    size: Some(blob_size),
                });
            }
        };
        Ok(body(extent, digest, range))
    }

    /// Returns the last `length` bytes of a blob, or all of it if it is shorter.
    pub(crate) async fn blob_tail(
        self: &Arc<Self>,
        digest: &Digest,
        length: u64,
    ) -> Result<Body, Error> {
        let extent = self.extent(digest).await?;
        let range = extent.size().saturating_sub(length)..extent.size();
        Ok(body(extent, digest, range))
    }

    pub(crate) async fn tags(
        self: &Arc<Self>,
        repository: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<Tags, Error> {
        let (repository, last) = (repository.clone(), last.unwrap_or_default().to_owned());
        let mut tags = self
            .with_images(move |images| Ok(images.tags(&repository)))
            .await?;
        tags.retain(|tag| *tag > last);
        let more = n.is_some_and(|n| tags.len() > n);
        tags.truncate(n.unwrap_or(usize::MAX));
        Ok(Tags { tags, more })
    }

    pub(crate) async fn referrers(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, Error> {
        let digest = digest.clone();
        self.with_images(move |images| images.referrers(&digest))
            .await
    }

    /// Returns the location of a blob's bytes.
    async fn extent(self: &Arc<Self>, digest: &Digest) -> Result<Extent, Error> {
        let digest = digest.clone();
        self.blocking(move |layout| match &layout.0 {
            // A blob is found by its path, without the index.
            Place::Directory(path) => Images::new(Files::directory(path)?).open(&digest),
            Place::Archive { path, held } => archive(path, held)?.open(&digest),
        })
        .await
    }

    /// Calls `ask` with the current images: a directory is read each time, an archive if it has
    /// changed.
    async fn with_images<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Images) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.blocking(move |layout| match &layout.0 {
            Place::Directory(path) => ask(&open::directory(Files::directory(path)?)?),
            Place::Archive { path, held } => ask(&*archive(path, held)?),
        })
        .await
    }

    /// Calls `work` on a thread that may block.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let layout = Arc::clone(self);
        let worked = tokio::task::spawn_blocking(move || work(&layout)).await;
        worked.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
    }
}

fn body(extent: Extent, digest: &Digest, range: Range<u64>) -> Body {
    let blob_size = extent.size();
    let stream = extent.stream(range.clone());
    let is_whole = range == (0..blob_size);
    let stream = if is_whole {
        verified(stream, digest.clone(), blob_size)
    } else {
        stream
    };
    Body {
        blob_size,
        range,
        stream,
        peer: None,
        origin: None,
    }
}

fn archive(
    path: &Path,
    held: &Mutex<Option<(Identity, Arc<Images>)>>,
) -> Result<Arc<Images>, Error> {
    let unreadable = |error: std::io::Error| {
        Error::Unavailable(format!("the archive {}: {error}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    // Held while the archive is read, so that concurrent requests read it once.
    let mut held = held.lock();
    if let Some((known, images)) = &*held
        && *known == identity
    {
        return Ok(Arc::clone(images));
    }
    let images = Arc::new(open::archive(Files::archive(file)?)?);
    *held = Some((identity, Arc::clone(&images)));
    Ok(images)
}
