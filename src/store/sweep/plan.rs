//! The plan of a sweep: which entries to delete, decided only from an inventory.
//!
//! | entry | deleted when |
//! |---|---|
//! | bytes without a digest record | older than the grace |
//! | an image | no manifest of it used for `max_age`, or the longest unused above `max_size` |
//! | a visible object that no kept image names | the same |
//! | bytes without a record, records of passed layers, profile data | also above `max_size` |
//! | the record of a list of layers | older than the grace, and the image's record is gone |
//! | profile data of an image | no list of layers names it, and unchanged for `max_age` |
//! | the record of signed statements | older than the grace, and its image is no visible object |
//! | a link | older than the grace, and its digest is of no visible object, layer or image |
//! | records without an object, marks, probes, leases | older than the grace |
//!
//! Above `max_size` the grace only protects entries that were used in the last minutes, and visible
//! objects without an image that were used in the last hour.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::inventory::{Inventory, Record};
use crate::oci::Digest;
use crate::store::backend::{Listed, Meta};
use crate::store::config::Retention;
use crate::store::key::Key;
use crate::store::profiles::StackRecord;
use crate::store::records::{ImageRecord, LayerOutcome, LayerRecord};
use crate::store::statements::StatementRecord;

/// The entries to delete, in this order, each with the values that must not have changed by then.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) images: Vec<Record<ImageRecord>>,
    /// Layer records that name missing objects or are outdated.
    pub(super) layers: Vec<Record<LayerRecord>>,
    pub(super) objects: Vec<DoomedObject>,
    pub(super) stacks: Vec<Record<StackRecord>>,
    /// Profile data of images, by their configurations, with the time it was written.
    pub(super) knowledge: Vec<(Digest, SystemTime)>,
    /// Bytes without a record, with the time they were written.
    pub(super) unrecorded: Vec<(Key, SystemTime)>,
    /// Records of statements, with the time they were written.
    pub(super) statements: Vec<(Key, SystemTime)>,
    /// Links, with the time they were written.
    pub(super) links: Vec<(Key, SystemTime)>,
    /// Marks and probes, on which nothing depends.
    pub(super) leftovers: Vec<Key>,
    pub(super) leases: Vec<String>,
    pub(super) kept_bytes: u64,
}

/// A visible object that is deleted with its records.
#[derive(Debug)]
pub(super) struct DoomedObject {
    pub(super) digest: Digest,
    pub(super) key: Key,
    pub(super) recorded: SystemTime,
    pub(super) used: Option<SystemTime>,
    /// Zero if the bytes are already missing.
    pub(super) size: u64,
}

/// Decides which entries to delete at `now`, and which further ones, the least recently used first,
/// until `wanted` bytes fit below the size limit.
pub(super) fn plan(
    inventory: &Inventory,
    retention: &Retention,
    now: SystemTime,
    wanted: u64,
) -> Plan {
    let limits = Limits::at(now, retention);
    let mut choice = Choice::new(inventory);
    choice.drop_aged(&limits);
    choice.unrecorded = unrecorded(inventory, &limits);
    choice.bytes -= choice
        .unrecorded
        .iter()
        .filter_map(|(key, _)| Some(inventory.objects.get(key)?.size))
        .sum::<u64>();
    if let Some(max_size) = retention.max_size {
        choice.drop_until(max_size.as_u64().saturating_sub(wanted), &limits);
    }
    let (stays, goes) = choice.stacks(&limits);
    let outlived = outlived(inventory, &stays, &limits);
    let doomed = choice.doomed;
    let gone = |digest: &Digest| doomed.contains(digest) || !inventory.visible.contains_key(digest);
    let outdated: Vec<_> = inventory
        .layers
        .iter()
        .filter(|record| limits.outdates(record, gone))
        .collect();
    let linked = links(inventory, &choice.kept, &outdated, &gone, &limits);
    let statements = statements(inventory, &gone, &limits);
    let learned: HashSet<&Digest> = outlived.iter().map(|(image, _)| image).collect();
    let learned = inventory
        .knowledge
        .iter()
        .filter(|listed| matches!(&listed.key, Key::Knowledge(image) if learned.contains(image)));
    let records = outdated
        .iter()
        .map(|record| record.size)
        .chain(goes.iter().map(|record| record.size));
    let records = records.chain(learned.map(|listed| listed.meta.size));
    let records = records.chain(statements.iter().map(|record| record.size));
    let records = records
        .chain(linked.iter().map(|listed| listed.meta.size))
        .sum();
    let links = linked
        .into_iter()
        .map(|listed| (listed.key.clone(), listed.meta.modified))
        .collect();
    let passed = choice
        .passed
        .into_iter()
        .filter(|record| !limits.is_aged(record.recorded));
    Plan {
        images: choice.dropped,
        layers: outdated.into_iter().chain(passed).cloned().collect(),
        stacks: goes.into_iter().cloned().collect(),
        knowledge: outlived.into_iter().chain(choice.knowledge).collect(),
        objects: doomed
            .iter()
            .filter_map(|digest| doomed_object(inventory, digest))
            .collect(),
        unrecorded: choice.unrecorded,
        statements: statements
            .into_iter()
            .map(|record| (record.key.clone(), record.recorded))
            .collect(),
        links,
        leftovers: leftovers(inventory, &limits),
        leases: leases(inventory, &limits),
        kept_bytes: choice.bytes.saturating_sub(records),
    }
}

/// The times that the plan depends on.
struct Limits {
    /// Younger entries stay unless the store is above its size.
    grace: SystemTime,
    /// Entries used since then stay in any case.
    idle: SystemTime,
    /// Objects without an image that were used since then stay in any case.
    abandoned: SystemTime,
    /// Entries used since then stay. `None` if there is no limit on age.
    age: Option<SystemTime>,
}

impl Limits {
    fn at(now: SystemTime, retention: &Retention) -> Self {
        let before = |age: Duration| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let grace = before(retention.grace);
        Self {
            grace,
            idle: before(retention.idle()),
            abandoned: before(retention.abandoned()),
            age: retention.max_age.map(|age| before(age).min(grace)),
        }
    }

    fn is_aged(&self, last_use: SystemTime) -> bool {
        self.age.is_some_and(|age| last_use < age)
    }

    fn outdates(&self, record: &Record<LayerRecord>, gone: impl Fn(&Digest) -> bool) -> bool {
        match &record.content.outcome {
            LayerOutcome::PassedThrough { .. } => self.is_aged(record.recorded),
            LayerOutcome::Converted(_) => {
                record.recorded < self.idle && record.content.objects().any(gone)
            }
        }
    }
}

/// An entry that may be deleted to make room.
enum Unit<'a> {
    Image(&'a Record<ImageRecord>),
    /// A visible object that no image names.
    Object(&'a Digest),
    /// Bytes without a record.
    Bytes(&'a Key, &'a Meta),
    /// A layer that is served unchanged.
    Passed(&'a Record<LayerRecord>),
    /// Profile data of an image that is not kept.
    Knowledge(&'a Listed),
}

/// The images and visible objects that are kept so far.
struct Choice<'a> {
    inventory: &'a Inventory,
    kept: Vec<&'a Record<ImageRecord>>,
    dropped: Vec<Record<ImageRecord>>,
    /// The number of kept images, and of statements on images, that name each digest.
    named: HashMap<&'a Digest, usize>,
    doomed: HashSet<Digest>,
    unrecorded: Vec<(Key, SystemTime)>,
    passed: Vec<&'a Record<LayerRecord>>,
    knowledge: Vec<(Digest, SystemTime)>,
    /// The size of everything that is kept.
    bytes: u64,
}

impl<'a> Choice<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let mut named = HashMap::new();
        let images = inventory.images.iter();
        // The objects of a statement stay for one sweep after its image.
        let statements = inventory.current_statements();
        for digest in images
            .flat_map(|image| &image.content.objects)
            .chain(statements.flat_map(|record| record.content.objects()))
        {
            *named.entry(digest).or_default() += 1;
        }
        Self {
            inventory,
            kept: inventory.images.iter().collect(),
            dropped: Vec::new(),
            named,
            doomed: HashSet::new(),
            unrecorded: Vec::new(),
            passed: Vec::new(),
            knowledge: Vec::new(),
            bytes: inventory.bytes(),
        }
    }

    fn object_use(&self, digest: &Digest) -> Option<SystemTime> {
        let visible = self.inventory.visible.get(digest)?;
        Some(self.inventory.last_use(digest, visible.recorded))
    }

    fn drop_aged(&mut self, limits: &Limits) {
        let inventory = self.inventory;
        for image in inventory
            .images
            .iter()
            .filter(|image| limits.is_aged(inventory.last_image_use(image)))
        {
            self.drop_image(image);
        }
        for digest in inventory.visible.keys() {
            let last_use = self.object_use(digest);
            if !self.is_named(digest) && last_use.is_some_and(|last_use| limits.is_aged(last_use)) {
                self.doom(digest);
            }
        }
        for (digest, visible) in &inventory.visible {
            if !inventory.objects.contains_key(&visible.key) && visible.recorded < limits.grace {
                self.doom(digest);
            }
        }
    }

    /// Drops the least recently used entries until `max` bytes are left.
    fn drop_until(&mut self, max: u64, limits: &Limits) {
        if self.bytes <= max {
            return;
        }
        let mut units = self.units(limits);
        units.sort_by_key(|(last_use, _)| *last_use);
        for (last_use, unit) in units {
            if self.bytes <= max {
                return;
            }
            match unit {
                Unit::Object(digest) => self.doom(digest),
                Unit::Image(image) => self.drop_with_objects(image, limits),
                Unit::Bytes(key, meta) => {
                    self.unrecorded.push((key.clone(), last_use));
                    self.bytes = self.bytes.saturating_sub(meta.size);
                }
                Unit::Passed(record) => {
                    self.passed.push(record);
                    self.bytes = self.bytes.saturating_sub(record.size);
                }
                Unit::Knowledge(listed) => {
                    if let Key::Knowledge(image) = &listed.key {
                        self.knowledge.push((image.clone(), last_use));
                        self.bytes = self.bytes.saturating_sub(listed.meta.size);
                    }
                }
            }
        }
    }

    /// Everything that may be deleted to make room, with its last use.
    fn units(&self, limits: &Limits) -> Vec<(SystemTime, Unit<'a>)> {
        let inventory = self.inventory;
        let images = self
            .kept
            .iter()
            .map(|image| (inventory.last_image_use(image), Unit::Image(image)));
        let images = images.filter(|(last_use, _)| *last_use < limits.idle);
        let lone = inventory
            .visible
            .keys()
            .filter(|digest| !self.is_named(digest) && !self.doomed.contains(*digest));
        let lone = lone.filter_map(|digest| Some((self.object_use(digest)?, Unit::Object(digest))));
        let lone = lone.filter(|(last_use, _)| *last_use < limits.abandoned);
        let bare = bare(inventory, limits.idle).filter(|(_, meta)| meta.modified >= limits.grace);
        let bare = bare.map(|(key, meta)| (meta.modified, Unit::Bytes(key, meta)));
        let passed = inventory
            .layers
            .iter()
            .filter(|record| record.recorded < limits.idle);
        let passed = passed
            .filter(|record| matches!(record.content.outcome, LayerOutcome::PassedThrough { .. }));
        let passed = passed.map(|record| (record.recorded, Unit::Passed(record)));
        let sources: HashSet<&Digest> = self
            .kept
            .iter()
            .map(|image| &image.content.source)
            .collect();
        let kept = inventory
            .stacks
            .iter()
            .filter(|stack| sources.contains(&stack.content.source));
        let kept: HashSet<Key> = kept
            .map(|stack| Key::Knowledge(stack.content.config.clone()))
            .collect();
        let until = limits.age.unwrap_or(limits.grace);
        let learned = inventory
            .knowledge
            .iter()
            .filter(|listed| (until..limits.idle).contains(&listed.meta.modified));
        let learned = learned.filter(|listed| !kept.contains(&listed.key));
        let learned = learned.map(|listed| (listed.meta.modified, Unit::Knowledge(listed)));
        images
            .chain(lone)
            .chain(bare)
            .chain(passed)
            .chain(learned)
            .collect()
    }

    fn drop_with_objects(&mut self, image: &'a Record<ImageRecord>, limits: &Limits) {
        self.drop_image(image);
        for digest in &image.content.objects {
            let is_idle = self
                .object_use(digest)
                .is_some_and(|last_use| last_use < limits.idle);
            if is_idle && !self.is_named(digest) {
                self.doom(digest);
            }
        }
    }

    /// The lists of layers whose image is kept or that are young, and the others.
    fn stacks(
        &self,
        limits: &Limits,
    ) -> (Vec<&'a Record<StackRecord>>, Vec<&'a Record<StackRecord>>) {
        let sources: HashSet<&Digest> = self
            .kept
            .iter()
            .map(|image| &image.content.source)
            .collect();
        let stays = |stack: &&Record<StackRecord>| {
            stack.recorded >= limits.grace || sources.contains(&stack.content.source)
        };
        self.inventory.stacks.iter().partition(stays)
    }

    fn is_named(&self, digest: &Digest) -> bool {
        self.named.get(digest).is_some_and(|images| *images > 0)
    }

    fn drop_image(&mut self, image: &'a Record<ImageRecord>) {
        self.kept.retain(|kept| kept.key != image.key);
        for digest in &image.content.objects {
            if let Some(images) = self.named.get_mut(digest) {
                *images = images.saturating_sub(1);
            }
        }
        self.bytes = self.bytes.saturating_sub(image.size);
        self.dropped.push(image.clone());
    }

    fn doom(&mut self, digest: &Digest) {
        if self.doomed.insert(digest.clone())
            && let Some(visible) = self.inventory.visible.get(digest)
        {
            let size = self
                .inventory
                .objects
                .get(&visible.key)
                .map_or(0, |meta| meta.size);
            self.bytes = self.bytes.saturating_sub(size + visible.record_size);
        }
    }
}

/// The profile data of images that no list of layers names any more.
fn outlived(
    inventory: &Inventory,
    stacks: &[&Record<StackRecord>],
    limits: &Limits,
) -> Vec<(Digest, SystemTime)> {
    let named: HashSet<&Digest> = stacks.iter().map(|stack| &stack.content.config).collect();
    let until = limits.age.unwrap_or(limits.grace);
    let old = inventory
        .knowledge
        .iter()
        .filter(|listed| listed.meta.modified < until);
    let images = old.filter_map(|listed| match &listed.key {
        Key::Knowledge(image) => Some((image.clone(), listed.meta.modified)),
        _ => None,
    });
    images.filter(|(image, _)| !named.contains(image)).collect()
}

/// The old links whose digest is of nothing that is kept: no visible object, no source of a layer
/// or of an image.
fn links<'a>(
    inventory: &'a Inventory,
    images: &[&Record<ImageRecord>],
    outdated: &[&Record<LayerRecord>],
    gone: &impl Fn(&Digest) -> bool,
    limits: &Limits,
) -> Vec<&'a Listed> {
    let goes: HashSet<&Key> = outdated.iter().map(|record| &record.key).collect();
    let layers = inventory
        .layers
        .iter()
        .filter(|record| !goes.contains(&record.key));
    let sources: HashSet<&Digest> = layers
        .map(|record| &record.content.source)
        .chain(images.iter().map(|image| &image.content.source))
        .collect();
    let is_idle = |listed: &&Listed| match &listed.key {
        Key::Link { digest, .. } => gone(digest) && !sources.contains(digest),
        _ => false,
    };
    let old = inventory
        .links
        .iter()
        .filter(|listed| listed.meta.modified < limits.grace);
    old.filter(is_idle).collect()
}

/// The old records of statements on images that are not kept.
fn statements<'a>(
    inventory: &'a Inventory,
    gone: &impl Fn(&Digest) -> bool,
    limits: &Limits,
) -> Vec<&'a Record<StatementRecord>> {
    let is_idle = |record: &&Record<StatementRecord>| match &record.key {
        Key::StatementRecord(converted) => gone(converted),
        _ => false,
    };
    let old = inventory
        .statements
        .iter()
        .filter(|record| record.recorded < limits.grace);
    old.filter(is_idle).collect()
}

fn doomed_object(inventory: &Inventory, digest: &Digest) -> Option<DoomedObject> {
    let visible = inventory.visible.get(digest)?;
    Some(DoomedObject {
        digest: digest.clone(),
        key: visible.key.clone(),
        recorded: visible.recorded,
        used: inventory.used.get(digest).copied(),
        size: inventory
            .objects
            .get(&visible.key)
            .map_or(0, |meta| meta.size),
    })
}

fn unrecorded(inventory: &Inventory, limits: &Limits) -> Vec<(Key, SystemTime)> {
    bare(inventory, limits.grace)
        .map(|(key, meta)| (key.clone(), meta.modified))
        .collect()
}

/// The bytes without a record that were written before `until`.
fn bare(inventory: &Inventory, until: SystemTime) -> impl Iterator<Item = (&Key, &Meta)> {
    let recorded: HashSet<&Key> = inventory
        .visible
        .values()
        .map(|visible| &visible.key)
        .collect();
    inventory.objects.iter().filter(move |(key, meta)| {
        meta.modified < until && !recorded.contains(key) && !inventory.is_leased(key)
    })
}

fn leftovers(inventory: &Inventory, limits: &Limits) -> Vec<Key> {
    let marks = inventory
        .used
        .iter()
        .filter(|(digest, _)| !inventory.visible.contains_key(digest));
    let marks = marks
        .filter(|(_, used)| **used < limits.grace)
        .map(|(digest, _)| Key::Used(digest.clone()));
    let probes = inventory
        .probes
        .iter()
        .filter(|probe| probe.meta.modified < limits.grace);
    marks.chain(probes.map(|probe| probe.key.clone())).collect()
}

fn leases(inventory: &Inventory, limits: &Limits) -> Vec<String> {
    let old = inventory
        .leases
        .iter()
        .filter(|lease| lease.meta.modified < limits.grace);
    old.filter_map(|lease| match &lease.key {
        Key::Lease(name) => Some(name.clone()),
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;
    use crate::store::StoredStatement;
    use crate::store::key::Generation;
    use crate::store::lease::layer_lease;
    use crate::store::sweep::inventory::Visible;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn day(number: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * number
    }

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    impl Inventory {
        /// A blob of 100 bytes, made visible on a day.
        fn object(mut self, name: &str, recorded: u32) -> Self {
            let key = Key::Blob(digest(name));
            self.objects.insert(
                key.clone(),
                Meta {
                    size: 100,
                    modified: day(recorded),
                },
            );
            self.visible.insert(
                digest(name),
                Visible {
                    key,
                    recorded: day(recorded),
                    is_manifest: false,
                    record_size: 0,
                },
            );
            self
        }

        fn manifest(mut self, name: &str, recorded: u32) -> Self {
            self = self.object(name, recorded);
            self.visible
                .entry(digest(name))
                .and_modify(|visible| visible.is_manifest = true);
            self
        }

        /// An image whose converted image has its name, with its further objects.
        fn image(mut self, name: &str, objects: &[&str], recorded: u32) -> Self {
            let source = digest(&format!("source of {name}"));
            let content = ImageRecord {
                source: source.clone(),
                converted: digest(name),
                media_type: String::new(),
                size: 100,
                translated: None,
                platforms: Vec::new(),
                objects: std::iter::once(&name)
                    .chain(objects)
                    .map(|name| digest(name))
                    .collect(),
                passed_through: Vec::new(),
                limits: Vec::new(),
                order: None,
                origin: None,
            };
            let key = Key::ImageRecord {
                generation: Generation("g".to_owned()),
                source,
            };
            self.images.push(Record {
                key,
                recorded: day(recorded),
                size: 0,
                content,
            });
            self.object(name, recorded)
        }

        /// The record of a statement on an image, and the object of the statement.
        fn statement(mut self, image: &str, object: &str, recorded: u32) -> Self {
            let statement = StoredStatement {
                key: String::new(),
                listed: Descriptor::plain(String::new(), digest(object), 100),
                objects: vec![digest(object)],
            };
            self.statements.push(Record {
                key: Key::StatementRecord(digest(image)),
                recorded: day(recorded),
                size: 10,
                content: StatementRecord {
                    statements: vec![statement],
                },
            });
            self.object(object, recorded)
        }

        fn used(mut self, name: &str, when: u32) -> Self {
            self.used.insert(digest(name), day(when));
            self
        }

        /// Those of the given names whose objects are kept at day 100.
        fn keeps<'n>(&self, retention: &Retention, names: &[&'n str]) -> Vec<&'n str> {
            let plan = plan(self, retention, day(100), 0);
            let doomed: HashSet<_> = plan.objects.iter().map(|object| &object.digest).collect();
            names
                .iter()
                .copied()
                .filter(|name| !doomed.contains(&digest(name)))
                .collect()
        }
    }

    impl Inventory {
        /// The list of layers of an image, recorded on a day.
        fn stack(mut self, name: &str, recorded: u32) -> Self {
            let content = StackRecord {
                config: digest(&format!("configuration of {name}")),
                source: digest(&format!("source of {name}")),
                layers: vec![digest(name)],
            };
            let key = Key::StackRecord(content.stack());
            self.stacks.push(Record {
                key,
                recorded: day(recorded),
                size: 0,
                content,
            });
            self
        }

        fn learned(mut self, name: &str, written: u32) -> Self {
            let key = Key::Knowledge(digest(&format!("configuration of {name}")));
            self.knowledge.push(Listed {
                key,
                meta: Meta {
                    size: 10,
                    modified: day(written),
                },
            });
            self
        }
    }

    #[test]
    fn a_link_is_deleted_after_everything_that_it_can_mean() {
        let link = |name: &str| Key::Link {
            holder: digest("holder"),
            digest: digest(name),
        };
        let mut inventory = Inventory::default()
            .image("old", &["layer"], 10)
            .image("used", &["base"], 10)
            .used("used", 95)
            .object("layer", 10)
            .object("base", 10);
        inventory.layers.push(Record {
            key: Key::LayerRecord {
                generation: Generation("g".to_owned()),
                source: digest("source layer"),
            },
            recorded: day(10),
            size: 0,
            content: LayerRecord {
                source: digest("source layer"),
                outcome: LayerOutcome::PassedThrough {
                    reason: String::new(),
                    limit: None,
                },
            },
        });
        let written = [
            ("layer", 10),
            ("base", 10),
            ("source of old", 10),
            ("source of used", 10),
            ("source layer", 10),
            ("unknown", 10),
            ("unknown and young", 100),
        ];
        for (name, when) in written {
            inventory.links.push(Listed {
                key: link(name),
                meta: Meta {
                    size: 10,
                    modified: day(when),
                },
            });
        }
        let deleted = |age| {
            let mut names = Vec::new();
            for (key, _) in plan(&inventory, &retention(age, None), day(100), 0).links {
                names.extend(written.into_iter().find(|(name, _)| link(name) == key));
            }
            names
        };
        assert_eq!(deleted(None), [("unknown", 10)]);
        // The record of a layer that passes through is as old as its image.
        let names = ["layer", "source of old", "source layer", "unknown"];
        assert_eq!(deleted(Some(30)), names.map(|name| (name, 10)));
    }

    #[test]
    fn profile_data_is_deleted_after_its_image() {
        let inventory = Inventory::default()
            .image("old", &[], 10)
            .stack("old", 10)
            .learned("old", 10)
            .image("used", &[], 10)
            .used("used", 95)
            .stack("used", 10)
            .learned("used", 10)
            .stack("to come", 100)
            .learned("to come", 10)
            .learned("of lately", 80);
        let plan = plan(&inventory, &retention(Some(30), None), day(100), 0);
        let stacks: Vec<_> = plan
            .stacks
            .iter()
            .map(|stack| &stack.content.source)
            .collect();
        assert_eq!(stacks, [&digest("source of old")]);
        assert_eq!(plan.knowledge, [(digest("configuration of old"), day(10))]);
    }

    fn retention(max_age: Option<u32>, max_size: Option<u64>) -> Retention {
        Retention {
            max_age: max_age.map(|days| DAY * days),
            max_size: max_size.map(bytesize::ByteSize::b),
            grace: DAY,
        }
    }

    #[test]
    fn an_image_unused_for_too_long_is_deleted_with_its_own_objects() {
        let inventory = Inventory::default()
            .object("base", 10)
            .object("app", 10)
            .image("old", &["base", "app"], 10)
            .image("read", &["base"], 10)
            .used("read", 95)
            .object("alone", 10)
            .object("lately read alone", 10)
            .used("lately read alone", 95);
        let names = ["base", "app", "old", "read", "alone", "lately read alone"];
        assert_eq!(
            inventory.keeps(&retention(Some(30), None), &names),
            ["base", "read", "lately read alone"]
        );
        assert_eq!(inventory.keeps(&retention(None, None), &names), names);
        assert_eq!(
            plan(&inventory, &retention(Some(30), None), day(100), 0).kept_bytes,
            300
        );
    }

    #[test]
    fn a_layer_that_is_still_read_outlives_its_image() {
        let inventory = Inventory::default()
            .object("layer", 10)
            .used("layer", 99)
            .image("old", &["layer"], 10);
        assert_eq!(
            inventory.keeps(&retention(Some(30), None), &["old", "layer"]),
            ["layer"]
        );
    }

    #[test]
    fn a_statement_and_its_objects_stay_as_long_as_the_image() {
        let signed = || {
            Inventory::default()
                .image("app", &[], 10)
                .statement("app", "envelope", 10)
        };
        let (month, names) = (retention(Some(30), None), ["app", "envelope"]);
        let pulled = signed().used("app", 95);
        assert_eq!(pulled.keeps(&month, &names), names);
        assert_eq!(
            pulled.keeps(&retention(None, Some(1)), &names),
            ["envelope"]
        );
        assert!(plan(&pulled, &month, day(100), 0).statements.is_empty());
        // The record goes with the image, and the objects at the next sweep.
        let first = plan(&signed(), &month, day(100), 0);
        assert_eq!(first.statements.len(), 1);
        assert_eq!(first.kept_bytes, 100, "the envelope");
        assert_eq!(signed().keeps(&month, &names), ["envelope"]);
        let rest = Inventory::default().statement("app", "envelope", 10);
        assert_eq!(rest.keeps(&month, &["envelope"]), [""; 0]);
    }

    #[test]
    fn an_image_is_used_under_any_of_its_digests() {
        let image = || {
            Inventory::default()
                .object("layer", 10)
                .manifest("translated", 10)
        };
        let image = || image().image("converted", &["layer", "translated"], 10);
        let (names, month) = (
            ["layer", "translated", "converted"],
            retention(Some(30), None),
        );
        assert_eq!(image().keeps(&month, &names), [""; 0]);
        assert_eq!(image().used("translated", 95).keeps(&month, &names), names);
        assert_eq!(image().used("layer", 95).keeps(&month, &names), ["layer"]);
    }

    #[test]
    fn above_the_size_the_least_recently_used_images_are_deleted_first() {
        let inventory = Inventory::default()
            .object("shared", 10)
            .image("first", &["shared"], 10)
            .image("second", &["shared"], 20)
            .image("third", &["shared"], 30)
            .used("first", 50);
        let names = ["shared", "first", "second", "third"];
        assert_eq!(inventory.keeps(&retention(None, Some(400)), &names), names);
        assert_eq!(
            inventory.keeps(&retention(None, Some(399)), &names),
            ["shared", "first", "third"]
        );
        assert_eq!(
            inventory.keeps(&retention(None, Some(200)), &names),
            ["shared", "first"]
        );
        assert_eq!(inventory.keeps(&retention(None, Some(0)), &names), [""; 0]);
    }

    #[test]
    fn no_size_limit_deletes_objects_in_use() {
        let inventory = Inventory::default()
            .image("in use", &["layer"], 10)
            .object("layer", 10)
            .used("in use", 100);
        assert_eq!(
            inventory.keeps(&retention(None, Some(0)), &["in use", "layer"]),
            ["in use", "layer"]
        );
        let young = Inventory::default().image("young", &[], 100);
        assert_eq!(
            young.keeps(&retention(Some(0), Some(0)), &["young"]),
            ["young"]
        );
    }

    #[test]
    fn above_the_size_only_a_use_in_the_last_minutes_protects() {
        let now = day(100);
        let ago = |minutes: u64| now - Duration::from_secs(60 * minutes);
        let mut inventory = Inventory::default();
        for (name, minutes) in [("idle", 11), ("in use", 9)] {
            inventory = inventory.image(name, &[], 100);
            inventory.images.last_mut().unwrap().recorded = ago(minutes);
            inventory.visible.get_mut(&digest(name)).unwrap().recorded = ago(minutes);
        }
        let lone = |name: &str| Visible {
            recorded: ago(11),
            ..inventory.visible[&digest(name)].clone()
        };
        let (key, visible) = (digest("layer of an image to come"), lone("idle"));
        inventory.visible.insert(key, visible);
        assert_eq!(
            inventory.keeps(&retention(None, Some(1 << 20)), &["idle", "in use"]),
            ["idle", "in use"]
        );
        let names = ["idle", "in use", "layer of an image to come"];
        assert_eq!(
            inventory.keeps(&retention(None, Some(0)), &names),
            ["in use", "layer of an image to come"]
        );
        assert_eq!(inventory.keeps(&retention(None, None), &names), names);
    }

    #[test]
    fn above_the_size_bytes_without_a_record_are_deleted_unless_leased() {
        let layer = |name: &str| Key::Layer {
            generation: Generation("g".to_owned()),
            source: digest(name),
        };
        let now = day(100);
        let meta = |minutes: u64| Meta {
            size: 5,
            modified: now - Duration::from_secs(60 * minutes),
        };
        let mut inventory = Inventory::default();
        inventory.objects.insert(layer("left"), meta(11));
        inventory.objects.insert(layer("fresh"), meta(9));
        inventory.objects.insert(layer("converted now"), meta(11));
        let lease = Key::Lease(layer_lease(
            &Generation("g".to_owned()),
            &digest("converted now"),
        ));
        inventory.leases.push(Listed {
            key: lease,
            meta: meta(11),
        });
        let left =
            |max_size, wanted| plan(&inventory, &retention(None, max_size), now, wanted).unrecorded;
        assert_eq!(left(None, 0), []);
        assert_eq!(left(Some(15), 0), []);
        assert_eq!(left(Some(15), 1), [(layer("left"), meta(11).modified)]);
        assert_eq!(left(Some(0), 0), [(layer("left"), meta(11).modified)]);
    }

    #[test]
    fn bytes_without_a_record_are_deleted_after_the_grace() {
        let layer = |name: &str| Key::Layer {
            generation: Generation("g".to_owned()),
            source: digest(name),
        };
        let mut inventory = Inventory::default().object("visible", 10);
        inventory.objects.insert(
            layer("left"),
            Meta {
                size: 5,
                modified: day(98),
            },
        );
        inventory.objects.insert(
            layer("under way"),
            Meta {
                size: 5,
                modified: day(100),
            },
        );
        let plan = plan(&inventory, &retention(None, None), day(100), 0);
        assert_eq!(plan.unrecorded, [(layer("left"), day(98))]);
        assert!(plan.objects.is_empty());
    }

    #[test]
    fn a_record_without_its_bytes_is_deleted() {
        let mut inventory = Inventory::default().object("lost", 10).object("there", 10);
        inventory.objects.remove(&Key::Blob(digest("lost")));
        assert_eq!(
            inventory.keeps(&retention(None, None), &["lost", "there"]),
            ["there"]
        );
    }
}
