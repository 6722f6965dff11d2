//! The snapshots of a node: names, parents, labels and directories, with the semantics of
//! containerd's overlay snapshotter, and committed snapshots whose content is a lazily mounted
//! layer.
//!
//! ```text
//! <root>/metadata.db        names, parents, labels, kinds, usage; records and ends of lazy layers
//! <root>/snapshots/<id>/    fs and work of an ordinary snapshot
//! <root>/erofs/<number>, <root>/lazy/<number>, <root>/lazy-noxattr/<number>
//!                           the content of a lazy snapshot: mounted and unmounted by the caller
//! ```
//! Every call blocks.

mod directories;
#[cfg(test)]
mod disk_tests;
mod error;
pub(crate) mod filter;
mod id_map;
mod metadata;
mod overlay;
mod record;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::{HashMap, HashSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use self::filter::Filter;
use crate::agent::layer_mount::LayerMount;
use crate::agent::numbers::LayerNumber;
use directories::Directories;
pub(crate) use error::{Error, MAX_LABEL_LEN};
use metadata::Metadata;
pub(crate) use overlay::{Mount, needs_user_attributes};
use overlay::{Overlay, Paths};
pub(crate) use record::{Info, Kind, Labels, LazyLayer, StoredLayer, Usage};
use record::{Lower, Record};

/// The label with the target snapshot of a Prepare.
pub(crate) const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

#[derive(Debug)]
pub(crate) struct Snapshots {
    metadata: Metadata,
    directories: Directories,
    overlay: Overlay,
}

/// A committed snapshot below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub labels: Labels,
    /// The number of the lazily mounted layer that is its content.
    pub lazy: Option<LayerNumber>,
}

/// The disk usage of a snapshot, or the layer that knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    Usage(Usage),
    /// The usage of the lazily mounted layer with this number.
    Lazy(LayerNumber),
}

/// Whether the target snapshot of a Prepare exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Committed,
    /// It does not exist, and this name is free for it.
    Free(String),
    /// It does not exist, and its names belong to other snapshots.
    Taken,
}

impl Snapshots {
    /// Opens the snapshots under `root`, which is created if need be. Only one process at a time
    /// can have them open.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(root).map_err(Error::at(root))?;
        // The options of an overlay mount separate paths by these characters.
        if root
            .to_str()
            .is_none_or(|text| text.contains([',', ':', '\\']))
        {
            return Err(Error::Root(root));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(Error::at(&root))?;
        let directories = Directories::open(&root)?;
        let metadata = Metadata::open(&root.join("metadata.db"))?;
        Ok(Self {
            metadata,
            directories,
            overlay: Overlay::detect(&root),
        })
    }

    /// Creates a writable snapshot, on top of the committed snapshot `parent` or of nothing.
    pub(crate) fn prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.create(Kind::Active, key, parent, labels)
    }

    /// Creates a read-only snapshot.
    pub(crate) fn view(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.create(Kind::View, key, parent, labels)
    }

    fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        record::checked_name(key)?;
        let labels = record::checked(labels)?;
        let mapped = id_map::owner(&labels)?;
        let maps = id_map::options(&labels);
        // Read before the change begins, because a lazy parent answers through FUSE, which may take
        // long.
        let owner = match parent {
            Some(parent) => {
                let top = self.committed(parent)?.lower();
                Some((top, self.directories.owner(top)?))
            }
            None => None,
        };
        let change = self.metadata.change()?;
        let lowers = change.lowers(parent)?;
        if let (Some(parent), Some((top, _))) = (parent, owner)
            && lowers.first() != Some(&top)
        {
            return Err(Error::NotFound(parent.to_owned()));
        }
        if change.exists(key)? {
            return Err(Error::AlreadyExists(key.to_owned()));
        }
        let id = change.next_id()?;
        change.insert(key, &Record::new(id, kind, parent, labels))?;
        self.directories
            .create(id, kind, mapped.or(owner.map(|(_, owner)| owner)))?;
        if let Err(error) = change.commit() {
            self.forget(key, id);
            return Err(error);
        }
        Ok(self.mounts_of(id, kind, &lowers, maps))
    }

    /// Deletes the directory of a snapshot whose change could not be committed, unless the change
    /// was made all the same or its state is unknown.
    fn forget(&self, key: &str, id: u64) {
        let record = self
            .metadata
            .reopen()
            .and_then(|()| self.metadata.record(key));
        let is_unknown = match record {
            Ok(record) => record.id != id,
            Err(Error::NotFound(_)) => true,
            // If it belongs to no snapshot, the next clean-up finds it.
            Err(_) => false,
        };
        if is_unknown {
            self.directories.remove(id);
        }
    }

    fn committed(&self, name: &str) -> Result<Record, Error> {
        let record = self.metadata.record(name)?;
        if record.kind == Kind::Committed {
            Ok(record)
        } else {
            Err(Error::ParentNotCommitted(name.to_owned()))
        }
    }

    /// Returns the mounts of an active snapshot or a view.
    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let (record, lowers) = self.metadata.with_lowers(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::NotMountable(key.to_owned()));
        }
        Ok(self.mounts_of(
            record.id,
            record.kind,
            &lowers,
            id_map::options(&record.labels),
        ))
    }

    fn mounts_of(&self, id: u64, kind: Kind, lowers: &[Lower], maps: Vec<String>) -> Vec<Mount> {
        let lazy: Vec<LazyLayer> = lowers
            .iter()
            .filter_map(|lower| match lower {
                Lower::Lazy(layer) => Some(*layer),
                Lower::Own(_) => None,
            })
            .collect();
        let erofs = lazy.iter().filter(|layer| layer.is_erofs).count();
        let trees = || lazy.iter().filter(|layer| !layer.is_erofs);
        // All from one mount: over two file systems without a UUID, overlayfs would not find the
        // lower file of a copied file again (kernel, fs/overlayfs/super.c, `ovl_lower_uuid_ok`).
        let mount = if trees().any(|layer| layer.has_xattrs) {
            LayerMount::Full
        } else {
            LayerMount::NoXattr
        };
        let paths = Paths {
            upper: self.directories.upper(id),
            work: self.directories.work(id),
            lowers: lowers
                .iter()
                .map(|&lower| self.directories.lower(lower, mount))
                .collect(),
            lazy: trees().count(),
            erofs,
            maps,
        };
        vec![self.overlay.mount(kind, &paths)]
    }

    /// Makes the active snapshot `key` the committed snapshot `name`. Labels are replaced, not
    /// inherited.
    ///
    /// An active snapshot without a parent gets `parent` if there is one: clients that unpack
    /// layers in parallel prepare them without a parent and name it only at the end.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<(), Error> {
        record::checked_name(name)?;
        let labels = record::checked(labels)?;
        let active = self.metadata.record(key)?;
        let usage = match active.kind {
            Kind::Active => Some(usage::measure(&self.directories.upper(active.id))?),
            Kind::View | Kind::Committed => None,
        };
        let change = self.metadata.change()?;
        if change.exists(name)? {
            return Err(Error::AlreadyExists(name.to_owned()));
        }
        let record = change.record(key)?;
        if record.kind != Kind::Active {
            return Err(Error::NotActive(key.to_owned()));
        }
        if record.id != active.id {
            return Err(Error::NotFound(key.to_owned()));
        }
        let parent = match (record.parent.as_deref(), parent) {
            (None, Some(parent)) => {
                change.lowers(Some(parent))?;
                change.link(parent, record.id)?;
                Some(parent)
            }
            (Some(own), Some(parent)) if own != parent => {
                return Err(Error::ParentChanged(key.to_owned()));
            }
            (own, _) => own,
        };
        let committed = Record::new(record.id, Kind::Committed, parent, labels);
        change.rename(key, name, &Record { usage, ..committed })?;
        change.commit()
    }

    /// Creates a committed snapshot `name` whose content is the lazily mounted `layer`, instead of
    /// the requested active snapshot `key`. Both it and `stored` are durable afterwards.
    pub(crate) fn commit_lazy(
        &self,
        key: &str,
        name: &str,
        parent: Option<&str>,
        labels: Labels,
        layer: LazyLayer,
        stored: &StoredLayer,
    ) -> Result<(), Error> {
        record::checked_name(key)?;
        record::checked_name(name)?;
        let labels = record::checked(labels)?;
        let change = self.metadata.change()?;
        change.lowers(parent)?;
        if let Some(taken) = [name, key]
            .into_iter()
            .find_map(|name| match change.exists(name) {
                Ok(false) => None,
                Ok(true) => Some(Error::AlreadyExists(name.to_owned())),
                Err(error) => Some(error),
            })
        {
            return Err(taken);
        }
        let record = Record::new(change.next_id()?, Kind::Committed, parent, labels);
        change.store(record.id, stored)?;
        change.insert(
            name,
            &Record {
                lazy: Some(layer.number),
                noxattr: !layer.has_xattrs,
                erofs: layer.is_erofs,
                ..record
            },
        )?;
        change.commit()
    }

    /// Returns the ancestors of a child of `parent`, bottom first.
    pub(crate) fn parents(&self, parent: Option<&str>) -> Result<Vec<Parent>, Error> {
        let chain = self.metadata.chain(parent)?.into_iter().rev();
        Ok(chain
            .map(|record| Parent {
                labels: record.labels,
                lazy: record.lazy,
            })
            .collect())
    }

    /// Returns whether a snapshot for `target` on top of `parent` is committed, or else the name
    /// that is free for it.
    ///
    /// containerd looks for it by label and parent. The same target may exist on different parents,
    /// because another namespace may have unpacked the lower layers on its own.
    pub(crate) fn target(&self, target: &str, parent: Option<&str>) -> Result<Target, Error> {
        let parent_id = parent
            .map(|parent| self.committed(parent))
            .transpose()?
            .map_or(0, |parent| parent.id);
        let fits = |record: &Record| {
            record.kind == Kind::Committed
                && record.parent.as_deref() == parent
                && record
                    .labels
                    .get(TARGET_LABEL)
                    .is_some_and(|label| label == target)
        };
        for name in [target.to_owned(), format!("{target}@{parent_id}")] {
            match self.metadata.record(&name) {
                Ok(record) if fits(&record) => return Ok(Target::Committed),
                Err(Error::NotFound(_)) => return Ok(Target::Free(name)),
                Ok(_) | Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Target::Taken)
    }

    pub(crate) fn stat(&self, name: &str) -> Result<Info, Error> {
        Ok(self.metadata.record(name)?.info(name))
    }

    /// Replaces the labels that `paths` name (`labels`, `labels.KEY`), or all labels if `paths` is
    /// empty.
    pub(crate) fn update(
        &self,
        name: &str,
        mut labels: Labels,
        paths: &[String],
    ) -> Result<Info, Error> {
        let change = self.metadata.change()?;
        let mut record = change.record(name)?;
        if paths.is_empty() {
            record.labels = std::mem::take(&mut labels);
        }
        for path in paths {
            if let Some(key) = path.strip_prefix("labels.") {
                record
                    .labels
                    .insert(key.to_owned(), labels.get(key).cloned().unwrap_or_default());
            } else if path == "labels" {
                record.labels.clone_from(&labels);
            } else {
                return Err(Error::NoSuchField(path.clone()));
            }
        }
        record.labels = record::checked(record.labels)?;
        record.updated = record::now();
        change.replace(name, &record)?;
        change.commit()?;
        Ok(record.info(name))
    }

    /// Deletes a snapshot that has no children, and its directory.
    ///
    /// Returns the number of the layer that was its content if it was lazy. The caller must unmount
    /// that layer.
    pub(crate) fn remove(&self, name: &str) -> Result<Option<LayerNumber>, Error> {
        let change = self.metadata.change()?;
        let id = change.id(name)?;
        if change.has_children(id)? {
            return Err(Error::HasChildren(name.to_owned()));
        }
        // A damaged record has lost the number. Layers that belong to no snapshot are unmounted at
        // the next start.
        let lazy = change.record(name).ok().and_then(|record| record.lazy);
        change.remove(name, id)?;
        change.commit()?;
        if lazy.is_none() {
            self.directories.remove(id);
        }
        Ok(lazy)
    }

    /// Returns the snapshot's disk usage. Walks the directory of an active snapshot.
    pub(crate) fn usage(&self, name: &str) -> Result<Measured, Error> {
        let record = self.metadata.record(name)?;
        match (record.lazy, record.kind) {
            (Some(number), _) => Ok(Measured::Lazy(number)),
            (None, Kind::Active) => Ok(Measured::Usage(usage::measure(
                &self.directories.upper(record.id),
            )?)),
            (None, Kind::View | Kind::Committed) => {
                Ok(Measured::Usage(record.usage.unwrap_or_default()))
            }
        }
    }

    /// Returns the snapshots that match `filter`, in the order of names.
    pub(crate) fn list(&self, filter: &Filter) -> Result<Vec<Info>, Error> {
        let (all, _damaged) = self.metadata.all()?;
        let all = all.into_iter().map(|(name, record)| record.info(&name));
        Ok(all
            .filter(|info| filter.matches(|path| info.field(path)))
            .collect())
    }

    /// Returns the numbers of the lazily mounted layers of all snapshots, or `None` if a damaged
    /// record may have had another.
    pub(crate) fn lazy_numbers(&self) -> Result<Option<HashSet<LayerNumber>>, Error> {
        let (all, damaged) = self.metadata.all()?;
        Ok((damaged == 0).then(|| {
            all.into_iter()
                .filter_map(|(_, record)| record.lazy)
                .collect()
        }))
    }

    /// Calls `look` with each layer that was stored with its snapshot, one in memory at a time.
    pub(crate) fn for_each_layer(&self, mut look: impl FnMut(StoredLayer)) -> Result<(), Error> {
        for id in self.metadata.layers()? {
            self.metadata.layer(id)?.into_iter().for_each(&mut look);
        }
        Ok(())
    }

    /// Returns the numbers of the lazily mounted layers below active snapshots and views: containers
    /// may have them mounted. `None` if a damaged record may have had another.
    pub(crate) fn lazy_numbers_in_use(&self) -> Result<Option<HashSet<LayerNumber>>, Error> {
        let (all, damaged) = self.metadata.all()?;
        if damaged > 0 {
            return Ok(None);
        }
        let by_name: HashMap<&str, &Record> = all
            .iter()
            .map(|(name, record)| (name.as_str(), record))
            .collect();
        let (mut seen, mut numbers) = (HashSet::new(), HashSet::new());
        for (_, record) in &all {
            let mut next = match record.kind {
                Kind::Active | Kind::View => record.parent.as_deref(),
                Kind::Committed => None,
            };
            while let Some(name) = next.filter(|name| seen.insert(*name)) {
                let parent = by_name.get(name);
                numbers.extend(parent.and_then(|parent| parent.lazy));
                next = parent.and_then(|parent| parent.parent.as_deref());
            }
        }
        Ok(Some(numbers))
    }

    /// Deletes directories that belong to no snapshot.
    pub(crate) fn cleanup(&self) -> Result<(), Error> {
        // Inside a change, so that no directory is between its creation and its commit.
        let change = self.metadata.change()?;
        let orphans = self.directories.set_orphans_aside(&change.ids()?)?;
        drop(change);
        for orphan in orphans {
            directories::remove(&orphan);
            tracing::info!(path = %orphan.display(), "orphan deleted");
        }
        Ok(())
    }
}
