//! The folder or bucket of the store, addressed by keys.
//!
//! Everything goes through `object_store`. A local folder has three special cases: reads in larger
//! pieces, locks instead of conditional updates, and a search for the staging files that a killed
//! process leaves behind.

use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    GetOptions, GetRange, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt as _,
    PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use tracing::Instrument as _;

use super::buffers::Buffers;
use super::error::Error;
use super::folder;
use super::key::Key;
use crate::telemetry::metrics;
use crate::telemetry::traces::child_span;

/// The largest record or lease that is read. An index of a thousand images stays far below.
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// A place for objects.
#[derive(Debug)]
pub(super) struct Backend {
    objects: Arc<dyn ObjectStore>,
    /// The prefix of every key.
    prefix: Path,
    /// Set if the objects are local files.
    folder: Option<PathBuf>,
    /// Whether no object outlives the process.
    is_scratch: bool,
    signer: Option<Arc<dyn Signer>>,
    buffers: Buffers,
}

/// The result of a listing or a HEAD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

/// An object in a listing.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) key: Key,
    pub(super) meta: Meta,
}

/// A small object with the version that a conditional update names.
#[derive(Debug)]
pub(super) struct Versioned {
    pub(super) bytes: Bytes,
    pub(super) version: UpdateVersion,
}

/// A body to be read, with the size of the whole object.
pub(super) struct Body {
    pub(super) object_size: u64,
    pub(super) stream: BoxStream<'static, Result<Bytes, object_store::Error>>,
}

impl Backend {
    /// Stores the objects as files in `root`, which is created if missing. Files are synced before
    /// they become visible.
    pub(super) fn folder(root: &FilePath) -> Result<Self, Error> {
        Self::files(root, false)
    }

    /// As [`folder`](Self::folder), for objects that are not needed after a crash: they are not
    /// synced.
    pub(super) fn scratch(root: &FilePath) -> Result<Self, Error> {
        Self::files(root, true)
    }

    fn files(root: &FilePath, is_scratch: bool) -> Result<Self, Error> {
        let refused = |source: std::io::Error| {
            Error::Config(format!("cannot write to {}: {source}", root.display()))
        };
        std::fs::create_dir_all(root).map_err(refused)?;
        let root = root.canonicalize().map_err(refused)?;
        let files = LocalFileSystem::new_with_prefix(&root)
            .map_err(|source| Error::Backend {
                what: format!("opening {}", root.display()),
                source,
            })?
            .with_fsync(!is_scratch);
        Ok(Self {
            objects: Arc::new(files),
            prefix: Path::default(),
            folder: Some(root),
            is_scratch,
            signer: None,
            buffers: Buffers::default(),
        })
    }

    /// Stores the objects in a bucket, which must support conditional puts.
    pub(super) fn bucket(
        objects: Arc<dyn ObjectStore>,
        prefix: Path,
        signer: Option<Arc<dyn Signer>>,
    ) -> Self {
        Self {
            objects,
            prefix,
            folder: None,
            is_scratch: false,
            signer,
            buffers: Buffers::default(),
        }
    }

    /// The folder of the objects, if they are files.
    pub(super) fn root(&self) -> Option<&FilePath> {
        self.folder.as_deref()
    }

    /// The file of `key`, if the objects are local files.
    pub(super) fn file(&self, key: &Key) -> Option<PathBuf> {
        let root = self.folder.as_ref()?;
        Some(root.join(self.path(key).as_ref()))
    }

    /// The file of `key`, if it does not outlive this process.
    pub(super) fn scratch_file(&self, key: &Key) -> Option<PathBuf> {
        self.file(key).filter(|_| self.is_scratch)
    }

    /// Buffers for the bytes of files.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub(super) fn signer(&self) -> Option<&Arc<dyn Signer>> {
        self.signer.as_ref()
    }

    /// The path of `key` in the bucket.
    pub(super) fn path(&self, key: &Key) -> Path {
        // A key's path holds no character that `Path` would change, so that the layout is the one
        // in `Key`.
        Path::from_iter(
            self.prefix
                .parts()
                .chain(Path::from(key.to_string()).parts()),
        )
    }

    fn failed(what: &str, key: &Key) -> impl FnOnce(object_store::Error) -> Error {
        let what = format!("{what} {key}");
        |source| Error::Backend { what, source }
    }

    pub(super) async fn put(&self, key: &Key, payload: impl Into<PutPayload>) -> Result<(), Error> {
        let path = self.path(key);
        let stored = watched("put", key, self.objects.put(&path, payload.into())).await;
        stored.map(drop).map_err(Self::failed("writing", key))
    }

    /// Writes if `mode`'s condition holds. The error distinguishes a failed condition from other
    /// failures.
    pub(super) async fn put_if(
        &self,
        key: &Key,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<PutResult, object_store::Error> {
        let path = self.path(key);
        let options = PutOptions::from(mode);
        let put = self.objects.put_opts(&path, bytes.into(), options);
        watched("put-if", key, put).await
    }

    pub(super) async fn multipart(&self, key: &Key) -> Result<Box<dyn MultipartUpload>, Error> {
        let path = self.path(key);
        let started = watched("multipart", key, self.objects.put_multipart(&path)).await;
        started.map_err(Self::failed("starting the upload of", key))
    }

    /// A whole record or lease, or `None` if there is none.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Versioned>, Error> {
        let path = self.path(key);
        let found = match watched("get", key, self.objects.get(&path)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(Self::failed("reading", key)(source)),
        };
        if found.meta.size > MAX_RECORD_BYTES {
            return Err(Error::Record {
                key: key.to_string(),
                reason: format!("{} bytes are too long", found.meta.size),
            });
        }
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let bytes = found.bytes().await.map_err(Self::failed("reading", key))?;
        Ok(Some(Versioned { bytes, version }))
    }

    pub(super) async fn head(&self, key: &Key) -> Result<Option<Meta>, Error> {
        let path = self.path(key);
        match watched("head", key, self.objects.head(&path)).await {
            Ok(meta) => Ok(Some(Meta {
                size: meta.size,
                modified: meta.last_modified.into(),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(Self::failed("looking for", key)(source)),
        }
    }

    /// The bytes of `range`, which must not be empty, or `None` if there is no such object.
    pub(super) async fn open(&self, key: &Key, range: Range<u64>) -> Result<Option<Body>, Error> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let path = self.path(key);
        let found = match watched("get", key, self.objects.get_opts(&path, options)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(Self::failed("reading", key)(source)),
        };
        let object_size = found.meta.size;
        let stream = match found.payload {
            GetResultPayload::File(file, path) => {
                folder::stream(file, &path, found.range, &self.buffers)
            }
            GetResultPayload::Stream(stream) => stream,
        };
        Ok(Some(Body {
            object_size,
            stream,
        }))
    }

    /// Deletes the object. It may already be missing.
    pub(super) async fn delete(&self, key: &Key) -> Result<(), Error> {
        let path = self.path(key);
        match watched("delete", key, self.objects.delete(&path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Self::failed("deleting", key)(source)),
        }
    }

    /// Every valid key under `top`. Foreign objects are skipped.
    pub(super) fn list(&self, top: &str) -> BoxStream<'_, Result<Listed, Error>> {
        let (depth, name) = (self.prefix.parts_count(), top.to_owned());
        let place = Path::from_iter(self.prefix.parts().chain(Path::from(top).parts()));
        self.objects
            .list(Some(&place))
            .map_err(move |source| Error::Backend {
                what: format!("listing {name}"),
                source,
            })
            .try_filter_map(move |meta| async move {
                let path = Path::from_iter(meta.location.parts().skip(depth));
                let key = path.as_ref().parse().ok();
                let meta = Meta {
                    size: meta.size,
                    modified: meta.last_modified.into(),
                };
                Ok(key.map(|key| Listed { key, meta }))
            })
            .boxed()
    }
}

/// Waits for an operation, in a span of its own within a trace, and counts it.
async fn watched<T>(
    operation: &'static str,
    key: &Key,
    work: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T, object_store::Error> {
    let span = child_span!("store", operation, key = %key);
    counted(operation, work.instrument(span).await)
}

/// Counts an operation by its outcome. A missing object or a condition that does not hold is an
/// answer, not a failure.
fn counted<T>(
    operation: &'static str,
    result: Result<T, object_store::Error>,
) -> Result<T, object_store::Error> {
    let outcome = match &result {
        Ok(_) => "done",
        Err(object_store::Error::NotFound { .. }) => "missing",
        Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        ) => "refused",
        Err(_) => "failed",
    };
    metrics()
        .store_operations
        .get_or_create(&[("operation", operation), ("outcome", outcome)])
        .inc();
    result
}
