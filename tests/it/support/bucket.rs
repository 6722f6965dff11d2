//! An object store in memory that breaks on command: operations fail, lose their answer, or wait at
//! a gate.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test helper fails the test"
)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Semaphore;

/// An operation before it happens.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// Counts from zero since the bucket was broken.
    pub(crate) number: usize,
    /// `put`, `multipart`, `part`, `complete`, `abort`, `get`, `delete` or `list`.
    pub(crate) kind: &'static str,
    pub(crate) path: String,
}

/// The fate of an operation.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Pass,
    /// The operation fails and has no effect.
    Fail,
    /// The operation happens, and its answer is lost.
    LoseAnswer,
    /// The operation waits until the gate is opened.
    Wait(Gate),
}

/// A gate that stops operations.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    reached: Arc<Semaphore>,
    opened: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            reached: Arc::new(Semaphore::new(0)),
            opened: Arc::new(Semaphore::new(0)),
        }
    }

    /// Waits until an operation is at the gate.
    pub(crate) async fn reached(&self) {
        self.reached.acquire().await.unwrap().forget();
    }

    /// Lets all operations through, including later ones.
    pub(crate) fn open(&self) {
        self.opened.close();
    }

    async fn pass(&self) {
        self.reached.add_permits(1);
        assert!(
            self.opened.acquire().await.is_err(),
            "a gate is opened by closing"
        );
    }
}

type Rule = Arc<dyn Fn(&Operation) -> Fate + Send + Sync>;

/// A bucket in memory. Clones share the objects and the count of operations.
#[derive(Clone)]
pub(crate) struct Bucket {
    objects: Arc<InMemory>,
    rule: Rule,
    count: Arc<AtomicUsize>,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        Self {
            objects: Arc::default(),
            rule: Arc::new(|_| Fate::Pass),
            count: Arc::default(),
        }
    }

    /// Returns the same bucket, in which `rule` decides the fate of every operation.
    pub(crate) fn broken(&self, rule: impl Fn(&Operation) -> Fate + Send + Sync + 'static) -> Self {
        Self {
            objects: Arc::clone(&self.objects),
            rule: Arc::new(rule),
            count: Arc::default(),
        }
    }

    /// Returns the bucket as after a crash: operations from `number` on have no effect.
    pub(crate) fn dead_from(&self, number: usize) -> Self {
        self.broken(move |operation| {
            if operation.number >= number {
                Fate::Fail
            } else {
                Fate::Pass
            }
        })
    }

    /// Returns the number of operations so far.
    pub(crate) fn operations(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Returns the path of every object, in order.
    pub(crate) async fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self
            .objects
            .list(None)
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .unwrap();
        paths.sort();
        paths
    }

    fn fate(&self, kind: &'static str, path: &Path) -> Fate {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        (self.rule)(&Operation {
            number,
            kind,
            path: path.to_string(),
        })
    }

    async fn run<T>(
        &self,
        kind: &'static str,
        path: &Path,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.fate(kind, path) {
            Fate::Pass => work.await,
            Fate::Fail => Err(broken(kind, path)),
            Fate::LoseAnswer => work.await.and_then(|_| Err(broken(kind, path))),
            Fate::Wait(gate) => {
                gate.pass().await;
                work.await
            }
        }
    }
}

fn broken(kind: &str, path: &Path) -> Error {
    Error::Generic {
        store: "broken",
        source: format!("{kind} {path} failed on command").into(),
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.run("put", path, self.objects.put_opts(path, payload, options))
            .await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self
            .run(
                "multipart",
                path,
                self.objects.put_multipart_opts(path, options),
            )
            .await?;
        Ok(Box::new(Upload {
            bucket: self.clone(),
            path: path.clone(),
            upload,
        }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.run("get", path, self.objects.get_opts(path, options))
            .await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.run("get", path, self.objects.get_ranges(path, ranges))
            .await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let bucket = self.clone();
        paths
            .and_then(move |path| {
                let bucket = bucket.clone();
                async move {
                    use object_store::ObjectStoreExt as _;
                    bucket
                        .run("delete", &path, bucket.objects.delete(&path))
                        .await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = prefix.cloned().unwrap_or_default();
        let (bucket, listed) = (self.clone(), self.objects.list(prefix));
        let listing = async move { bucket.run("list", &path, async { Ok(listed) }).await };
        futures::stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run("copy", from, self.objects.copy_opts(from, to, options))
            .await
    }
}

#[derive(Debug)]
struct Upload {
    bucket: Bucket,
    path: Path,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (bucket, path, part) = (
            self.bucket.clone(),
            self.path.clone(),
            self.upload.put_part(data),
        );
        async move { bucket.run("part", &path, part).await }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.bucket
            .run("complete", &self.path, self.upload.complete())
            .await
    }

    async fn abort(&mut self) -> Result<()> {
        self.bucket
            .run("abort", &self.path, self.upload.abort())
            .await
    }
}
