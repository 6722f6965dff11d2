//! The sweep: deletes unneeded objects and records, concurrently with conversions and other sweeps.
//!
//! ```text
//! inventory ▶ plan (pure) ▶ check each entry again
//!                           └▶ delete: image, layer record, digest record, bytes
//! ```
//! A writer that builds on something old notes its use before it checks whether it still exists,
//! and checks again after its commit. A sweep checks for the note right before it deletes. One of
//! the two sees the other.

mod inventory;
mod plan;

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::oci::Digest;
use crate::store::error::Error;
use crate::store::key::Key;
use crate::store::records::ImageRecord;
use crate::store::{Lease, Store, folder, layer_lease};
use inventory::{Inventory, Record};
use plan::{DoomedObject, Plan};

/// The lease that keeps replicas from sweeping at the same time.
const SWEEP: &str = "sweep";

/// The result of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct SweepReport {
    /// Another replica is sweeping, so nothing was done.
    pub busy: bool,
    pub images: u64,
    pub layer_records: u64,
    /// Layers, manifests and other objects that had a record.
    pub objects: u64,
    /// Bytes of uploads that were never committed, staging files included.
    pub unrecorded: u64,
    /// Profile data of images.
    pub profiles: u64,
    /// Links to what is gone.
    pub links: u64,
    /// Use marks, probes and old leases.
    pub leftovers: u64,
    pub freed_bytes: u64,
    /// The size of everything that is left.
    pub kept_bytes: u64,
}

impl Store {
    /// Deletes everything that the retention releases at `now`: unused for too long, above the size
    /// limit, or never committed.
    ///
    /// Safe beside running conversions and other sweeps. After an error the rest is left for the
    /// next sweep.
    pub async fn sweep(&self, now: SystemTime) -> Result<SweepReport, Error> {
        let report = self.sweep_for(now, 0).await;
        self.forget_size().await;
        report
    }

    /// As [`sweep`](Self::sweep), but makes room for `wanted` bytes below the size limit.
    pub(super) async fn sweep_for(
        &self,
        now: SystemTime,
        wanted: u64,
    ) -> Result<SweepReport, Error> {
        let Some(lease) = self.lease(SWEEP).await? else {
            return Ok(SweepReport {
                busy: true,
                ..SweepReport::default()
            });
        };
        let inventory = Inventory::take(self).await?;
        let retention = &self.inner.config.retention;
        let plan = plan::plan(&inventory, retention, now, wanted);
        let mut sweep = Sweep {
            store: self,
            lease: &lease,
            report: SweepReport::default(),
        };
        sweep.run(&inventory, plan).await?;
        sweep
            .staging_files(
                now.checked_sub(retention.abandoned())
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            )
            .await?;
        let report = sweep.report;
        lease.release().await;
        Ok(report)
    }
}

struct Sweep<'a> {
    store: &'a Store,
    lease: &'a Lease,
    report: SweepReport,
}

impl Sweep<'_> {
    async fn run(&mut self, inventory: &Inventory, plan: Plan) -> Result<(), Error> {
        self.report.kept_bytes = plan.kept_bytes;
        let (mut spared, mut spared_images) = (HashSet::new(), HashSet::new());
        for image in plan.images {
            if !self.image(inventory, &image).await? {
                self.report.kept_bytes += image.size;
                spared.extend(image.content.objects);
                spared_images.insert(image.content.source);
            }
        }
        spared.extend(self.named_since(inventory).await?);
        for record in plan.layers {
            let is_needed = record
                .content
                .objects()
                .any(|digest| spared.contains(digest));
            if is_needed {
                self.report.kept_bytes += record.size;
            } else {
                self.report.layer_records +=
                    u64::from(self.unchanged(&record.key, record.recorded).await?);
            }
        }
        for object in plan.objects {
            if spared.contains(&object.digest) {
                self.report.kept_bytes += object.size;
            } else {
                self.object(&object).await?;
            }
        }
        let (kept, stacks): (Vec<_>, Vec<_>) = plan
            .stacks
            .into_iter()
            .partition(|stack| spared_images.contains(&stack.content.source));
        for stack in stacks {
            self.unchanged(&stack.key, stack.recorded).await?;
        }
        for (image, written) in plan.knowledge {
            if !kept.iter().any(|stack| stack.content.config == image) {
                let gone = self.unchanged(&Key::Knowledge(image), written).await?;
                self.report.profiles += u64::from(gone);
            }
        }
        for (key, written) in plan.unrecorded {
            let size = inventory.objects.get(&key).map_or(0, |meta| meta.size);
            if self.unchanged(&key, written).await? {
                self.report.unrecorded += 1;
                self.report.freed_bytes += size;
            }
        }
        for (key, written) in plan.statements {
            self.unchanged(&key, written).await?;
        }
        for (key, written) in plan.links {
            self.link(&key, written).await?;
        }
        for key in plan.leftovers {
            self.store.inner.backend.delete(&key).await?;
            self.report.leftovers += 1;
        }
        for name in plan.leases {
            self.report.leftovers += u64::from(self.store.remove_old_lease(&name).await?);
        }
        Ok(())
    }

    /// Deletes the image's record unless it was written or used since the inventory. Returns
    /// whether it did.
    async fn image(
        &mut self,
        inventory: &Inventory,
        image: &Record<ImageRecord>,
    ) -> Result<bool, Error> {
        for manifest in inventory.manifests(&image.content) {
            if self
                .used_since(manifest, inventory.used.get(manifest).copied())
                .await?
            {
                return Ok(false);
            }
        }
        let deleted = self.unchanged(&image.key, image.recorded).await?;
        if deleted {
            self.store.inner.images.invalidate(&image.key).await;
            self.report.images += 1;
        }
        Ok(deleted)
    }

    /// The objects named by image records that were written since the inventory.
    async fn named_since(&self, inventory: &Inventory) -> Result<Vec<Digest>, Error> {
        let known: HashMap<&Key, SystemTime> = inventory
            .images
            .iter()
            .map(|image| (&image.key, image.recorded))
            .collect();
        let images = inventory::images(self.store).await?;
        let new = images
            .into_iter()
            .filter(|image| known.get(&image.key) != Some(&image.recorded));
        Ok(new.flat_map(|image| image.content.objects).collect())
    }

    /// Deletes a visible object. Its records are deleted first, so that no record ever names an
    /// unreadable object.
    ///
    /// The record is deleted before the last check of the mark: a writer that marked the object
    /// before that check looks for the record after it, and finds it deleted or restored.
    async fn object(&mut self, object: &DoomedObject) -> Result<(), Error> {
        let record = Key::DigestRecord(object.digest.clone());
        let shown = self.store.digest_record(&object.digest).await?;
        let used = self.used_since(&object.digest, object.used).await?;
        if used || !self.unchanged(&record, object.recorded).await? {
            self.report.kept_bytes += object.size;
            return Ok(());
        }
        self.store.forget(&object.digest).await;
        if let Some(shown) = shown
            && self.used_since(&object.digest, object.used).await?
        {
            self.report.kept_bytes += object.size;
            return self.store.record_object(&shown).await;
        }
        if !self.bytes(&object.key, &object.digest).await? {
            self.report.kept_bytes += object.size;
            return Ok(());
        }
        self.store
            .inner
            .backend
            .delete(&Key::Used(object.digest.clone()))
            .await?;
        self.report.objects += 1;
        self.report.freed_bytes += object.size;
        Ok(())
    }

    /// Deletes bytes whose record was deleted, unless they are being made again or were: a layer's
    /// conversion holds its lease from before the upload until its record is written.
    async fn bytes(&self, key: &Key, digest: &Digest) -> Result<bool, Error> {
        let lease = match key {
            Key::Layer { generation, source } => {
                match self.store.lease(&layer_lease(generation, source)).await? {
                    Some(lease) => Some(lease),
                    None => return Ok(false),
                }
            }
            _ => None,
        };
        let is_free = self.store.digest_record(digest).await?.is_none();
        if is_free {
            self.store.inner.backend.delete(key).await?;
        }
        if let Some(lease) = lease {
            lease.release().await;
        }
        Ok(is_free)
    }

    async fn link(&mut self, key: &Key, written: SystemTime) -> Result<(), Error> {
        if self.unchanged(key, written).await? {
            self.report.links += 1;
            if let Key::Link { holder, digest } = key {
                self.store.forget_link(holder, digest).await;
            }
        }
        Ok(())
    }

    async fn used_since(&self, digest: &Digest, known: Option<SystemTime>) -> Result<bool, Error> {
        let mark = self
            .store
            .inner
            .backend
            .head(&Key::Used(digest.clone()))
            .await?;
        Ok(mark.is_some_and(|mark| known.is_none_or(|known| is_later(mark.modified, known))))
    }

    /// Deletes the object unless it was written again since `written`. Returns whether it did.
    async fn unchanged(&self, key: &Key, written: SystemTime) -> Result<bool, Error> {
        if self.lease.is_lost() {
            return Ok(false);
        }
        let there = self.store.inner.backend.head(key).await?;
        let unchanged = there.is_some_and(|meta| !is_later(meta.modified, written));
        if unchanged {
            self.store.inner.backend.delete(key).await?;
        }
        Ok(unchanged)
    }

    /// Deletes the staging files of killed uploads in a folder. In a bucket, its own lifecycle rule
    /// deletes such parts.
    async fn staging_files(&mut self, before: SystemTime) -> Result<(), Error> {
        let Some(root) = self.store.inner.backend.root().map(ToOwned::to_owned) else {
            return Ok(());
        };
        let failed = |source| Error::Folder {
            what: "deleting the remains of uploads".to_owned(),
            source,
        };
        let deleted =
            tokio::task::spawn_blocking(move || folder::delete_stale_staging_files(&root, before))
                .await;
        let (files, bytes) = deleted
            .map_err(|ended| failed(ended.into()))?
            .map_err(failed)?;
        self.report.unrecorded += files;
        self.report.freed_bytes += bytes;
        Ok(())
    }
}

/// Whether `seen` is a later time than `known`. One of the two may be truncated to seconds, as
/// HTTP's are.
fn is_later(seen: SystemTime, known: SystemTime) -> bool {
    let since = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    };
    let (seen, known) = (since(seen), since(known));
    if seen.subsec_nanos() == 0 || known.subsec_nanos() == 0 {
        seen.as_secs() > known.as_secs()
    } else {
        seen > known
    }
}
