//! Leases: only one process at a time holds the lease on a name, until it is released, dropped or
//! lost.
//!
//! In a bucket a lease is an object `{owner, epoch, expires}`. It is created by a put that only
//! creates, and renewed and replaced by puts that only replace the version that was read. In a
//! folder it is a file under an exclusive lock, which the kernel releases with the process, so that
//! neither clocks nor timeouts matter.
//! A lease saves work, but does not protect data: two holders would write the same bytes.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::{PutMode, UpdateVersion};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::damage::report;
use super::error::Error;
use super::key::{Generation, Key};
use super::{Inner, Store, seal};
use crate::oci::Digest;
use crate::telemetry::metrics;

/// A lease on a name: as long as it is held, no other process works on the same task.
#[derive(Debug)]
pub struct Lease {
    held: Held,
}

#[derive(Debug)]
enum Held {
    File(Watched),
    Object(Renewed),
}

/// Reports whether the work under a lease makes progress. Called before every renewal.
type Moving = Box<dyn FnMut() -> bool + Send>;

/// The content of a lease object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    owner: String,
    /// The number of writes.
    epoch: u64,
    /// Milliseconds since 1970.
    expires: u64,
}

/// The lease that the conversion of a layer holds. While it is held, bytes under the layer's key
/// are not swept.
pub fn layer_lease(generation: &Generation, source: &Digest) -> String {
    format!("layer/{}/{source}", generation.0)
}

impl Store {
    /// Takes the lease on `name` for this process and renews it until it is dropped. `None` while
    /// another holder has it.
    pub async fn lease(&self, name: &str) -> Result<Option<Lease>, Error> {
        self.take_lease(name, None).await
    }

    /// As [`lease`](Self::lease), but renewed only while `moving` reports progress. `moving` is
    /// called three times in each `lease_ttl`. If it reports none, the lease is lost when it
    /// expires, and others may take it.
    pub async fn lease_while(
        &self,
        name: &str,
        moving: impl FnMut() -> bool + Send + 'static,
    ) -> Result<Option<Lease>, Error> {
        self.take_lease(name, Some(Box::new(moving))).await
    }

    /// Whether another holder has the lease on `name` now. One read of the store, for callers that
    /// wait for its end.
    pub async fn is_leased(&self, name: &str) -> Result<bool, Error> {
        let key = Key::Lease(name.to_owned());
        match self.inner.backend.root() {
            Some(root) => LockedFile::is_locked(root, &key).await,
            None => Renewed::is_held(&self.inner, &key).await,
        }
    }

    async fn take_lease(&self, name: &str, moving: Option<Moving>) -> Result<Option<Lease>, Error> {
        let key = Key::Lease(name.to_owned());
        let held = match self.inner.backend.root() {
            Some(root) => {
                let file = LockedFile::take(root, &key).await?;
                file.map(|file| Held::File(Watched::new(file, moving, self.inner.config.lease_ttl)))
            }
            None => Renewed::take(&self.inner, key, moving)
                .await?
                .map(Held::Object),
        };
        let outcome = if held.is_some() { "taken" } else { "held" };
        metrics()
            .leases
            .get_or_create(&[("outcome", outcome)])
            .inc();
        Ok(held.map(|held| Lease { held }))
    }

    /// Deletes the remains of an earlier holder, unless the lease is held now.
    pub(super) async fn remove_old_lease(&self, name: &str) -> Result<bool, Error> {
        match self.lease(name).await? {
            Some(lease) => {
                lease.release().await;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Lease {
    /// Whether another process may hold the lease by now.
    pub fn is_lost(&self) -> bool {
        match &self.held {
            Held::File(watched) => watched.is_lost(),
            Held::Object(renewed) => renewed.lost.load(Ordering::Acquire),
        }
    }

    /// Releases the lease and waits until others can take it. Dropping it does the same in the
    /// background.
    pub async fn release(self) {
        match self.held {
            Held::File(watched) => drop(watched),
            Held::Object(mut renewed) => {
                if let Some(task) = renewed.stop() {
                    // Only a panic would be an error here, and then the lease expires by itself.
                    let _ended = task.await;
                }
            }
        }
    }
}

/// A locked file, unlocked early if the work makes no progress.
#[derive(Debug)]
struct Watched {
    file: Arc<Mutex<Option<LockedFile>>>,
    watch: Option<JoinHandle<()>>,
}

impl Watched {
    fn new(file: LockedFile, moving: Option<Moving>, ttl: Duration) -> Self {
        let file = Arc::new(Mutex::new(Some(file)));
        let watch = moving.map(|mut moving| {
            let file = Arc::clone(&file);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(ttl / 3).await;
                    if !moving() {
                        metrics().leases.get_or_create(&[("outcome", "lost")]).inc();
                        drop(file.lock().take());
                        return;
                    }
                }
            })
        });
        Self { file, watch }
    }

    fn is_lost(&self) -> bool {
        self.file.lock().is_none()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
        // The aborted task may live a moment longer than this drop.
        drop(self.file.lock().take());
    }
}

/// A file whose lock this process holds. It is deleted and unlocked on drop.
#[derive(Debug)]
struct LockedFile {
    path: std::path::PathBuf,
    _file: File,
}

impl LockedFile {
    async fn take(root: &Path, key: &Key) -> Result<Option<Self>, Error> {
        let path = root.join(key.to_string());
        off_worker(format!("locking {key}"), move || Self::try_lock(path)).await
    }

    async fn is_locked(root: &Path, key: &Key) -> Result<bool, Error> {
        let path = root.join(key.to_string());
        let look = move || {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            // Shared, so that those who only look do not keep each other from it.
            match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        off_worker(format!("looking at {key}"), look).await
    }

    fn try_lock(path: std::path::PathBuf) -> std::io::Result<Option<Self>> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The last holder may have deleted the file between the open and the lock. A lock on a
        // deleted file protects nothing.
        if !is_still_at(&file, &path) {
            return Ok(None);
        }
        Ok(Some(Self { path, _file: file }))
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Deleted while still locked, so that no other process can have locked this file.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "lease file not deleted");
        }
    }
}

/// Runs a few calls on files on a blocking thread.
async fn off_worker<T: Send + 'static>(
    what: String,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(Error::Folder { what, source }),
        Err(ended) => Err(Error::Folder {
            what,
            source: ended.into(),
        }),
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(mine), Ok(there)) => mine.ino() == there.ino() && mine.dev() == there.dev(),
        _ => false,
    }
}

/// A lease object and the task that renews it.
#[derive(Debug)]
struct Renewed {
    lost: Arc<AtomicBool>,
    /// Dropping the sender makes the task release the lease.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

/// The state of the renewing task.
struct Renewal {
    inner: Arc<Inner>,
    key: Key,
    claim: Claim,
    version: UpdateVersion,
    /// The expiry of the lease, unless it is renewed.
    until: Instant,
    lost: Arc<AtomicBool>,
    moving: Option<Moving>,
}

impl Renewed {
    async fn is_held(inner: &Inner, key: &Key) -> Result<bool, Error> {
        let found = inner.backend.get(key).await?;
        let claim = found.and_then(|found| seal::unseal::<Claim>(key, &found.bytes).ok());
        Ok(claim.is_some_and(|claim| claim.expires > now()))
    }

    async fn take(
        inner: &Arc<Inner>,
        key: Key,
        moving: Option<Moving>,
    ) -> Result<Option<Self>, Error> {
        let mut claim = Claim {
            owner: format!("{:032x}", rand::random::<u128>()),
            epoch: 0,
            expires: 0,
        };
        let found = inner.backend.get(&key).await?;
        let mode = match &found {
            None => PutMode::Create,
            Some(found) => {
                // A damaged claim holds nothing, because a changed date could hold for ever.
                let theirs = seal::unseal::<Claim>(&key, &found.bytes)
                    .inspect_err(|damage| report(&key, *damage))
                    .ok();
                if theirs.as_ref().is_some_and(|theirs| theirs.expires > now()) {
                    return Ok(None);
                }
                claim.epoch = theirs.map_or(0, |theirs| theirs.epoch.wrapping_add(1));
                PutMode::Update(found.version.clone())
            }
        };
        let started = Instant::now();
        let Some(version) = write(inner, &key, &mut claim, mode).await? else {
            return Ok(None);
        };
        let lost = Arc::new(AtomicBool::new(false));
        let until = started + inner.config.lease_ttl;
        let (renewed, lost_here) = (Arc::clone(inner), Arc::clone(&lost));
        let renewal = Renewal {
            inner: renewed,
            key,
            claim,
            version,
            until,
            lost: lost_here,
            moving,
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(renewal.run(stopped));
        Ok(Some(Self {
            lost,
            stop: Some(stop),
            task: Some(task),
        }))
    }

    fn stop(&mut self) -> Option<JoinHandle<()>> {
        drop(self.stop.take());
        self.task.take()
    }
}

impl Renewal {
    async fn run(mut self, mut stopped: tokio::sync::oneshot::Receiver<()>) {
        let third = self.inner.config.lease_ttl / 3;
        loop {
            tokio::select! {
                _ = &mut stopped => return self.release().await,
                () = tokio::time::sleep(third) => {}
            }
            let is_moving = self.moving.as_mut().is_none_or(|moving| moving());
            if !(is_moving && self.renew().await) {
                self.lost.store(true, Ordering::Release);
                metrics().leases.get_or_create(&[("outcome", "lost")]).inc();
                tracing::warn!(lease = %self.key, "a lease was lost");
                return;
            }
        }
    }

    /// Renews the lease. Returns whether it is still held.
    async fn renew(&mut self) -> bool {
        let started = Instant::now();
        let mut claim = self.claim.clone();
        claim.epoch = claim.epoch.wrapping_add(1);
        let mode = PutMode::Update(self.version.clone());
        let until_end = self.until.saturating_duration_since(started);
        match tokio::time::timeout(until_end, write(&self.inner, &self.key, &mut claim, mode)).await
        {
            Ok(Ok(Some(version))) => {
                self.version = version;
                self.claim = claim;
                self.until = started + self.inner.config.lease_ttl;
                true
            }
            Ok(Ok(None)) | Err(_) => false,
            Ok(Err(error)) => {
                tracing::debug!(lease = %self.key, %error, "lease not renewed, trying again");
                Instant::now() < self.until
            }
        }
    }

    async fn release(self) {
        // Shortly before its expiry the lease is left to expire, because the deletion might hit the
        // next holder's lease.
        if Instant::now() + self.inner.config.lease_ttl / 3 > self.until {
            return;
        }
        if let Err(error) = self.inner.backend.delete(&self.key).await {
            tracing::debug!(lease = %self.key, %error, "lease not released, it expires by itself");
        }
    }
}

/// Writes the claim with a new expiry. `None` if another holder was faster.
async fn write(
    inner: &Inner,
    key: &Key,
    claim: &mut Claim,
    mode: PutMode,
) -> Result<Option<UpdateVersion>, Error> {
    let ttl = u64::try_from(inner.config.lease_ttl.as_millis()).unwrap_or(u64::MAX);
    claim.expires = now().saturating_add(ttl);
    let failed = match inner
        .backend
        .put_if(key, seal::seal(key, claim)?, mode)
        .await
    {
        Ok(put) => return Ok(Some(put.into())),
        Err(failed) => failed,
    };
    // The answer to a successful put may have been lost and its repetition refused. Therefore read
    // the current claim.
    let there = inner.backend.get(key).await?;
    if let Some(there) = there
        && seal::unseal::<Claim>(key, &there.bytes).is_ok_and(|theirs| theirs == *claim)
    {
        return Ok(Some(there.version));
    }
    match failed {
        object_store::Error::AlreadyExists { .. }
        | object_store::Error::Precondition { .. }
        | object_store::Error::NotFound { .. } => Ok(None),
        source => Err(Error::Backend {
            what: format!("writing {key}"),
            source,
        }),
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
