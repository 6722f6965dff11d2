//! The contract of containerd's snapshotters, and the recovery from a crash between two steps.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::*;

struct Node {
    root: tempfile::TempDir,
    snapshots: Snapshots,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(root.path()).unwrap();
        Self { root, snapshots }
    }

    /// Restarts the agent's snapshots, as after a stop and a start.
    fn restarted(self) -> Self {
        let Self { root, snapshots } = self;
        drop(snapshots);
        let snapshots = Snapshots::open(root.path()).unwrap();
        Self { root, snapshots }
    }

    /// Creates a committed snapshot with this name.
    fn committed(&self, name: &str, parent: Option<&str>) -> &Self {
        self.snapshots
            .prepare("committing", parent, Labels::new())
            .unwrap();
        self.snapshots
            .commit(name, "committing", None, Labels::new())
            .unwrap();
        self
    }

    /// Creates a lazy committed snapshot, as the adapter does.
    fn lazy(&self, target: &str, parent: Option<&str>, number: u64) -> &Self {
        fs::create_dir_all(self.root.path().join(format!("lazy/{number}"))).unwrap();
        self.lazy_layer(target, parent, with_xattrs(number))
    }

    fn lazy_layer(&self, target: &str, parent: Option<&str>, layer: LazyLayer) -> &Self {
        let labels = labels(&[(TARGET_LABEL, target)]);
        self.snapshots
            .commit_lazy(
                "preparing",
                target,
                parent,
                labels,
                layer,
                &StoredLayer::default(),
            )
            .unwrap();
        self
    }

    fn path(&self, below: &str) -> String {
        self.root.path().join(below).to_str().unwrap().to_owned()
    }

    fn directories(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("snapshots")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn names(&self, filters: &[&str]) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let found = self
            .snapshots
            .list(&Filter::parse(&filters).unwrap())
            .unwrap();
        found.into_iter().map(|info| info.name).collect()
    }

    /// Writes a record without any check.
    fn write_record(&self, name: &str, json: &[u8]) {
        const RECORDS: redb::TableDefinition<'_, &str, &[u8]> =
            redb::TableDefinition::new("records");
        let db = self.snapshots.metadata.database().read();
        let db = db.as_ref().unwrap();
        let transaction = db.begin_write().unwrap();
        transaction
            .open_table(RECORDS)
            .unwrap()
            .insert(name, json)
            .unwrap();
        transaction.commit().unwrap();
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn prepare(node: &Node, key: &str, parent: Option<&str>) -> Result<Vec<Mount>, Error> {
    node.snapshots.prepare(key, parent, Labels::new())
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn with_xattrs(number: u64) -> LazyLayer {
    LazyLayer {
        number: LayerNumber(number),
        has_xattrs: true,
        is_erofs: false,
    }
}

fn without_xattrs(number: u64) -> LazyLayer {
    LazyLayer {
        number: LayerNumber(number),
        has_xattrs: false,
        is_erofs: false,
    }
}

#[test]
fn layers_without_attributes_are_read_from_a_separate_mount() {
    let node = Node::new();
    node.lazy("base", None, 1)
        .lazy_layer("app", Some("base"), without_xattrs(2))
        .lazy_layer("other", None, without_xattrs(3))
        .lazy_layer("top", Some("other"), without_xattrs(4));
    fs::create_dir_all(node.root.path().join("lazy/2")).unwrap();
    fs::create_dir_all(node.root.path().join("lazy/4")).unwrap();
    let lowers = |key: &str, parent: &str| {
        let mounts = prepare(&node, key, Some(parent)).unwrap();
        let lowers = mounts[0].options.last().unwrap().clone();
        lowers.replace(node.root.path().to_str().unwrap(), "")
    };
    assert_eq!(
        lowers("a", "top"),
        "lowerdir=/lazy-noxattr/4:/lazy-noxattr/3"
    );
    // One layer has attributes, so all of them come from the one mount that shows attributes.
    assert_eq!(lowers("b", "app"), "lowerdir=/lazy/2:/lazy/1");
}

#[test]
fn the_directories_have_containerds_modes() {
    let node = Node::new();
    prepare(&node, "a", None).unwrap();
    let modes = [
        "snapshots",
        "snapshots/1",
        "snapshots/1/fs",
        "snapshots/1/work",
    ]
    .map(|dir| mode(&node.path(dir)));
    assert_eq!(
        modes.map(|mode| format!("{mode:o}")),
        ["700", "700", "755", "711"]
    );
    node.snapshots.view("v", None, Labels::new()).unwrap();
    assert!(!fs::exists(node.path("snapshots/2/work")).unwrap());
}

#[test]
fn mounts_name_the_parents_top_first_lazy_or_not() {
    let node = Node::new();
    node.committed("one", None)
        .lazy("two", Some("one"), 7)
        .committed("three", Some("two"));
    let mounts = prepare(&node, "top", Some("three")).unwrap();
    assert_eq!(mounts, node.snapshots.mounts("top").unwrap());
    let lowers = format!(
        "{}:{}:{}",
        node.path("snapshots/3/fs"),
        node.path("lazy/7"),
        node.path("snapshots/1/fs")
    );
    assert_eq!(mounts[0].kind, "overlay");
    assert_eq!(
        mounts[0].options.last().unwrap(),
        &format!("lowerdir={lowers}")
    );
    assert!(
        mounts[0]
            .options
            .contains(&format!("upperdir={}", node.path("snapshots/4/fs")))
    );

    node.lazy("alone", None, 8);
    let view = node
        .snapshots
        .view("view", Some("alone"), Labels::new())
        .unwrap();
    assert_eq!(
        (view[0].kind, view[0].source.as_str()),
        ("bind", node.path("lazy/8").as_str())
    );
}

#[test]
fn a_snapshots_root_has_its_parents_owner() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root may give files away");
        return;
    }
    let node = Node::new();
    node.lazy("lazy", None, 1);
    std::os::unix::fs::chown(node.path("lazy/1"), Some(12), Some(34)).unwrap();
    prepare(&node, "a", Some("lazy")).unwrap();
    let owner = fs::metadata(node.path("snapshots/2/fs")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (12, 34));
}

#[test]
fn an_absent_snapshot_is_not_found() {
    let node = Node::new();
    assert!(
        matches!(prepare(&node, "a", Some("none")), Err(Error::NotFound(name)) if name == "none")
    );
    assert!(matches!(
        node.snapshots.mounts("none"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.stat("none"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.usage("none"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.remove("none"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.commit("a", "none", None, Labels::new()),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.update("none", Labels::new(), &[]),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.commit_lazy(
            "k",
            "n",
            Some("none"),
            Labels::new(),
            with_xattrs(1),
            &StoredLayer::default()
        ),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        node.snapshots.target("t", Some("none")),
        Err(Error::NotFound(_))
    ));
    assert!(node.directories().is_empty());
}

#[test]
fn a_layer_is_stored_with_its_snapshot_and_goes_with_it() {
    let node = Node::new();
    let stored = |of: &str| StoredLayer {
        record: of.into(),
        tail: of.repeat(100_000).into(),
    };
    for (name, number) in [("one", 1), ("two", 2)] {
        let (layer, stored) = (with_xattrs(number), stored(name));
        node.snapshots
            .commit_lazy("k", name, None, Labels::new(), layer, &stored)
            .unwrap();
    }
    let all = || {
        let mut all = Vec::new();
        node.snapshots
            .for_each_layer(|layer| all.push(layer))
            .unwrap();
        all
    };
    assert_eq!(all(), ["one", "two"].map(stored));
    node.snapshots.remove("one").unwrap();
    assert_eq!(all(), [stored("two")]);
}

#[test]
fn metadata_of_an_earlier_version_gets_the_tables_of_layers() {
    let node = Node::new();
    node.committed("base", None);
    {
        let db = node.snapshots.metadata.database().read();
        let transaction = db.as_ref().unwrap().begin_write().unwrap();
        for table in ["layers", "tails"] {
            let table: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new(table);
            assert!(transaction.delete_table(table).unwrap());
        }
        transaction.commit().unwrap();
    }
    let Node { snapshots, root } = node;
    drop(snapshots);
    let snapshots = Snapshots::open(root.path()).unwrap();
    let layer = with_xattrs(1);
    snapshots
        .commit_lazy(
            "k",
            "n",
            Some("base"),
            Labels::new(),
            layer,
            &StoredLayer::default(),
        )
        .unwrap();
    snapshots.remove("n").unwrap();
}

#[test]
fn a_name_is_used_once() {
    let node = Node::new();
    node.committed("base", None);
    prepare(&node, "a", None).unwrap();
    let taken = |outcome: Result<(), Error>, by: &str| {
        assert!(matches!(outcome, Err(Error::AlreadyExists(name)) if name == by));
    };
    taken(prepare(&node, "a", None).map(drop), "a");
    taken(
        node.snapshots.view("base", None, Labels::new()).map(drop),
        "base",
    );
    taken(
        node.snapshots.commit("base", "a", None, Labels::new()),
        "base",
    );
    taken(
        node.snapshots.commit_lazy(
            "a",
            "lazy",
            None,
            Labels::new(),
            with_xattrs(1),
            &StoredLayer::default(),
        ),
        "a",
    );
    taken(
        node.snapshots.commit_lazy(
            "b",
            "base",
            None,
            Labels::new(),
            with_xattrs(1),
            &StoredLayer::default(),
        ),
        "base",
    );
    assert_eq!(node.names(&[]), ["a", "base"]);
    assert_eq!(node.directories(), ["1", "2"]);
}

#[test]
fn each_kind_allows_only_its_own_operations() {
    let node = Node::new();
    node.committed("base", None);
    prepare(&node, "active", None).unwrap();
    node.snapshots
        .view("view", Some("base"), Labels::new())
        .unwrap();
    assert!(matches!(
        prepare(&node, "x", Some("active")),
        Err(Error::ParentNotCommitted(_))
    ));
    assert!(matches!(
        prepare(&node, "x", Some("view")),
        Err(Error::ParentNotCommitted(_))
    ));
    assert!(matches!(
        node.snapshots.commit("x", "view", None, Labels::new()),
        Err(Error::NotActive(_))
    ));
    assert!(matches!(
        node.snapshots.commit("x", "base", None, Labels::new()),
        Err(Error::NotActive(_))
    ));
    assert!(matches!(
        node.snapshots.mounts("base"),
        Err(Error::NotMountable(_))
    ));
    assert!(matches!(prepare(&node, "", None), Err(Error::NoName)));
    assert!(matches!(
        node.snapshots.commit("", "active", None, Labels::new()),
        Err(Error::NoName)
    ));
}

#[test]
fn a_parent_stays_until_its_last_child_is_gone() {
    let node = Node::new();
    node.lazy("base", None, 5);
    prepare(&node, "child", Some("base")).unwrap();
    assert!(matches!(
        node.snapshots.remove("base"),
        Err(Error::HasChildren(_))
    ));
    node.snapshots
        .commit("grown", "child", None, Labels::new())
        .unwrap();
    assert!(matches!(
        node.snapshots.remove("base"),
        Err(Error::HasChildren(_))
    ));
    assert_eq!(node.snapshots.remove("grown").unwrap(), None);
    assert!(node.directories().is_empty());
    assert_eq!(node.snapshots.remove("base").unwrap(), Some(LayerNumber(5)));
    assert!(node.names(&[]).is_empty());
}

#[test]
fn a_snapshot_without_a_parent_gets_the_parent_that_its_commit_names() {
    let node = Node::new();
    node.lazy("base", None, 5).committed("other", None);
    prepare(&node, "layer", None).unwrap();
    let commit = |name: &str, key: &str, parent: &str| {
        node.snapshots
            .commit(name, key, Some(parent), Labels::new())
    };
    assert!(matches!(
        commit("top", "layer", "none"),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        commit("top", "layer", "layer"),
        Err(Error::ParentNotCommitted(_))
    ));
    commit("top", "layer", "base").unwrap();
    assert_eq!(
        node.snapshots.stat("top").unwrap().parent.as_deref(),
        Some("base")
    );
    assert!(matches!(
        node.snapshots.remove("base"),
        Err(Error::HasChildren(_))
    ));
    let mounts = prepare(&node, "container", Some("top")).unwrap();
    assert!(
        mounts[0]
            .options
            .iter()
            .any(|option| option.ends_with("/lazy/5")),
        "{mounts:?}"
    );

    prepare(&node, "child", Some("top")).unwrap();
    assert!(matches!(
        commit("moved", "child", "other"),
        Err(Error::ParentChanged(_))
    ));
    commit("grown", "child", "top").unwrap();
}

#[test]
fn a_pod_with_a_user_namespace_owns_its_upper_directory() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let node = Node::new();
    node.lazy("base", None, 5);
    let maps = || {
        let (users, groups) = (
            "containerd.io/snapshot/uidmapping",
            "containerd.io/snapshot/gidmapping",
        );
        labels(&[(users, "0:100000:65536"), (groups, "0:200000:65536")])
    };
    let mounts = node.snapshots.prepare("pod", Some("base"), maps()).unwrap();
    assert_eq!(
        mounts[0].options[..2],
        ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]
    );
    assert_eq!(node.snapshots.mounts("pod").unwrap(), mounts);
    let upper = mounts[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="))
        .unwrap();
    let found = fs::metadata(upper).unwrap();
    assert_eq!((found.uid(), found.gid()), (100_000, 200_000));
    let image = node.snapshots.view("image", Some("base"), maps()).unwrap();
    assert_eq!(
        image[0].options,
        [
            "uidmap=0:100000:65536",
            "gidmap=0:200000:65536",
            "ro",
            "rbind"
        ]
    );
}

#[test]
fn commit_replaces_labels_and_keeps_the_content() {
    let node = Node::new();
    node.snapshots
        .prepare("a", None, labels(&[("old", "1")]))
        .unwrap();
    fs::write(node.path("snapshots/1/fs/file"), vec![1; 10_000]).unwrap();
    fs::hard_link(
        node.path("snapshots/1/fs/file"),
        node.path("snapshots/1/fs/link"),
    )
    .unwrap();
    let Measured::Usage(active) = node.snapshots.usage("a").unwrap() else {
        panic!("the snapshot is not lazy")
    };
    assert_eq!(active.inodes, 2, "the root and one file");
    assert!((10_000..100_000).contains(&active.size), "{active:?}");
    node.snapshots
        .commit("n", "a", None, labels(&[("new", "2")]))
        .unwrap();
    let info = node.snapshots.stat("n").unwrap();
    assert_eq!(
        (info.kind, info.parent, info.labels),
        (Kind::Committed, None, labels(&[("new", "2")]))
    );
    fs::remove_file(node.path("snapshots/1/fs/link")).unwrap();
    fs::remove_file(node.path("snapshots/1/fs/file")).unwrap();
    assert_eq!(
        node.snapshots.usage("n").unwrap(),
        Measured::Usage(active),
        "the usage is stored"
    );
    assert!(matches!(node.snapshots.stat("a"), Err(Error::NotFound(_))));
}

#[test]
fn the_usage_of_a_lazy_snapshot_is_that_of_its_layer() {
    let node = Node::new();
    node.lazy("lazy", None, 9);
    assert_eq!(
        node.snapshots.usage("lazy").unwrap(),
        Measured::Lazy(LayerNumber(9))
    );
    node.snapshots
        .view("view", Some("lazy"), Labels::new())
        .unwrap();
    assert_eq!(
        node.snapshots.usage("view").unwrap(),
        Measured::Usage(Usage::default())
    );
}

#[test]
fn update_changes_only_the_named_labels() {
    let node = Node::new();
    node.snapshots
        .prepare("a", None, labels(&[("one", "1"), ("two", "2")]))
        .unwrap();
    let before = node.snapshots.stat("a").unwrap();
    let update = |new: &[(&str, &str)], paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        node.snapshots.update("a", labels(new), &paths)
    };
    let after = update(
        &[("one", "x"), ("three.3", "3")],
        &["labels.three.3", "labels.two"],
    )
    .unwrap();
    assert_eq!(
        after.labels,
        labels(&[("one", "1"), ("three.3", "3")]),
        "a label without a value is deleted"
    );
    assert_eq!(after, node.snapshots.stat("a").unwrap());
    assert!(after.updated > before.updated && after.created == before.created);
    assert_eq!(
        update(&[("x", "1"), ("empty", "")], &["labels"])
            .unwrap()
            .labels,
        labels(&[("x", "1")])
    );
    assert_eq!(
        update(&[("y", "1")], &[]).unwrap().labels,
        labels(&[("y", "1")])
    );
    assert!(
        matches!(update(&[("z", "1")], &["labels.z", "parent"]), Err(Error::NoSuchField(path)) if path == "parent")
    );
    assert_eq!(
        node.snapshots.stat("a").unwrap().labels,
        labels(&[("y", "1")]),
        "all or nothing"
    );
}

#[test]
fn labels_have_containerds_limit() {
    let node = Node::new();
    let fits = "v".repeat(MAX_LABEL_LEN - 1);
    let too_long = format!("{fits}v");
    assert!(
        node.snapshots
            .prepare("a", None, labels(&[("k", &fits)]))
            .is_ok()
    );
    let refused = |outcome: Result<(), Error>| {
        assert!(matches!(outcome, Err(Error::LabelTooLong(key)) if key == "k"))
    };
    refused(
        node.snapshots
            .prepare("b", None, labels(&[("k", &too_long)]))
            .map(drop),
    );
    refused(
        node.snapshots
            .commit("b", "a", None, labels(&[("k", &too_long)])),
    );
    refused(node.snapshots.commit_lazy(
        "b",
        "c",
        None,
        labels(&[("k", &too_long)]),
        with_xattrs(1),
        &StoredLayer::default(),
    ));
    refused(
        node.snapshots
            .update("a", labels(&[("k", &too_long)]), &[])
            .map(drop),
    );
    assert_eq!(node.names(&[]), ["a"]);
}

#[test]
fn lists_are_filtered() {
    let node = Node::new();
    node.committed("base", None)
        .lazy("sha256:target", Some("base"), 1);
    node.snapshots
        .view("view", Some("base"), labels(&[("a", "b")]))
        .unwrap();
    assert_eq!(node.names(&[]), ["base", "sha256:target", "view"]);
    assert_eq!(node.names(&["kind==committed"]), ["base", "sha256:target"]);
    assert_eq!(
        node.names(&["kind==view", "parent==\"\""]),
        ["base", "view"]
    );
    assert_eq!(node.names(&["labels.a==b"]), ["view"]);
    let containerds = "labels.\"containerd.io/snapshot.ref\"==sha256:target,parent==\"base\"";
    assert_eq!(node.names(&[containerds]), ["sha256:target"]);
}

#[test]
fn a_target_is_found_by_its_parent_too() {
    let node = Node::new();
    node.committed("default/1/base", None)
        .committed("other/2/base", None);
    let target = |parent| node.snapshots.target("sha256:top", Some(parent)).unwrap();
    assert_eq!(
        target("default/1/base"),
        Target::Free("sha256:top".to_owned())
    );
    node.lazy("sha256:top", Some("default/1/base"), 1);
    assert_eq!(target("default/1/base"), Target::Committed);
    let Target::Free(other) = target("other/2/base") else {
        panic!("the snapshot is on another parent")
    };
    let of_target = labels(&[(TARGET_LABEL, "sha256:top")]);
    node.snapshots
        .commit_lazy(
            "k",
            &other,
            Some("other/2/base"),
            of_target,
            with_xattrs(2),
            &StoredLayer::default(),
        )
        .unwrap();
    assert_eq!(target("other/2/base"), Target::Committed);
    assert_eq!(target("default/1/base"), Target::Committed);
}

#[test]
fn fifty_prepares_at_once_make_one_snapshot_for_each_key() {
    let node = Arc::new(Node::new());
    node.committed("base", None);
    let barrier = Arc::new(Barrier::new(50));
    let prepares = (0..50).map(|number| {
        let (node, barrier) = (Arc::clone(&node), Arc::clone(&barrier));
        thread::spawn(move || {
            barrier.wait();
            // Ten of the keys are requested twice.
            let outcome = prepare(&node, &format!("key-{}", number % 40), Some("base"));
            outcome.map(|mounts| mounts[0].options.clone())
        })
    });
    let prepares: Vec<_> = prepares.collect();
    let outcomes: Vec<_> = prepares
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let made: HashSet<_> = outcomes.iter().flatten().collect();
    assert_eq!(
        (
            made.len(),
            node.names(&["kind==active"]).len(),
            node.directories().len()
        ),
        (40, 40, 41)
    );
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(_) | Err(Error::AlreadyExists(_))))
    );
}

#[test]
fn one_of_many_commits_of_a_name_wins() {
    let node = Arc::new(Node::new());
    let barrier = Arc::new(Barrier::new(8));
    let commits: Vec<_> = (0..8)
        .map(|number| {
            let (node, barrier) = (Arc::clone(&node), Arc::clone(&barrier));
            thread::spawn(move || {
                let key = format!("key-{number}");
                prepare(&node, &key, None).unwrap();
                barrier.wait();
                node.snapshots
                    .commit("name", &key, None, Labels::new())
                    .is_ok()
            })
        })
        .collect();
    let won = commits
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .filter(|&won| won)
        .count();
    assert_eq!((won, node.names(&["kind==active"]).len()), (1, 7));
}

#[test]
fn all_snapshots_are_there_after_a_restart() {
    let node = Node::new();
    node.committed("base", None).lazy("lazy", Some("base"), 3);
    node.snapshots
        .prepare("a", Some("lazy"), labels(&[("k", "v")]))
        .unwrap();
    let before = (
        node.snapshots.mounts("a").unwrap(),
        node.snapshots.stat("a").unwrap(),
    );
    let node = node.restarted();
    assert_eq!(
        (
            node.snapshots.mounts("a").unwrap(),
            node.snapshots.stat("a").unwrap()
        ),
        before
    );
    assert_eq!(
        node.snapshots.lazy_numbers().unwrap(),
        Some(HashSet::from([LayerNumber(3)]))
    );
    assert!(
        matches!(node.snapshots.remove("lazy"), Err(Error::HasChildren(_))),
        "links survive"
    );
}

#[test]
fn ids_are_never_used_twice() {
    let node = Node::new();
    prepare(&node, "a", None).unwrap();
    node.snapshots.remove("a").unwrap();
    let node = node.restarted();
    prepare(&node, "a", None).unwrap();
    assert_eq!(node.directories(), ["2"]);
}

#[test]
fn two_processes_cannot_open_the_same_snapshots() {
    let node = Node::new();
    assert!(matches!(
        Snapshots::open(node.root.path()),
        Err(Error::Metadata(_))
    ));
}

#[test]
fn orphans_of_a_crash_are_deleted_and_nothing_else() {
    let node = Node::new();
    node.committed("base", None);
    prepare(&node, "a", Some("base")).unwrap();
    // Orphans from a crash between the creation of a directory and its new name, between that and
    // the commit, and between the commit of a deletion and the deletion of the directory. The last
    // one is by somebody else.
    for orphan in ["new-abc/fs", "3/fs/etc", "99/work/work", "07/fs"] {
        fs::create_dir_all(node.path(&format!("snapshots/{orphan}"))).unwrap();
    }
    fs::write(node.path("snapshots/file"), "").unwrap();
    let node = node.restarted();
    // The ID of the uncommitted directory is used again. Its content must not be the leftover.
    prepare(&node, "b", None).unwrap();
    assert!(!fs::exists(node.path("snapshots/3/fs/etc")).unwrap());
    node.snapshots.cleanup().unwrap();
    assert_eq!(node.directories(), ["1", "2", "3"]);
    assert_eq!(node.names(&[]), ["a", "b", "base"]);
}

#[test]
fn a_clean_up_spares_snapshots_that_are_being_prepared() {
    let node = Arc::new(Node::new());
    let cleaner = Arc::clone(&node);
    let barrier = Arc::new(Barrier::new(2));
    let started = Arc::clone(&barrier);
    let cleaning = thread::spawn(move || {
        started.wait();
        (0..50).for_each(|_| cleaner.snapshots.cleanup().unwrap());
    });
    barrier.wait();
    (0..50).for_each(|number| drop(prepare(&node, &number.to_string(), None).unwrap()));
    cleaning.join().unwrap();
    assert_eq!(node.directories().len(), 50);
}

#[test]
fn a_damaged_record_does_not_block_the_rest() {
    let node = Node::new();
    node.committed("good", None)
        .lazy("lazy", None, 4)
        .committed("bad", None);
    node.write_record("bad", b"{\"id\": 3, \"kind\": \"from the future\"}");
    let node = node.restarted();
    assert_eq!(node.names(&[]), ["good", "lazy"]);
    assert_eq!(
        node.snapshots.lazy_numbers().unwrap(),
        None,
        "the damaged snapshot may have been lazy"
    );
    assert!(
        matches!(node.snapshots.stat("bad"), Err(Error::Damaged { name, .. }) if name == "bad")
    );
    node.snapshots.cleanup().unwrap();
    assert_eq!(
        node.directories(),
        ["1", "3"],
        "the directory of the damaged snapshot may be mounted"
    );
    prepare(&node, "a", Some("good")).unwrap();
    node.snapshots.remove("bad").unwrap();
    assert_eq!(node.directories(), ["1", "4"]);
}

#[test]
fn a_missing_directory_does_not_block_the_rest() {
    let node = Node::new();
    node.committed("base", None);
    prepare(&node, "a", None).unwrap();
    fs::remove_dir_all(node.path("snapshots/1")).unwrap();
    let node = node.restarted();
    node.snapshots.cleanup().unwrap();
    assert!(matches!(
        prepare(&node, "b", Some("base")),
        Err(Error::Directory { .. })
    ));
    assert_eq!(node.names(&[]), ["a", "base"]);
    node.snapshots.remove("base").unwrap();
    assert!(node.snapshots.mounts("a").is_ok());
}

#[test]
fn a_failure_to_create_the_directory_leaves_no_record() {
    let node = Node::new();
    fs::rename(node.path("snapshots"), node.path("elsewhere")).unwrap();
    assert!(matches!(
        prepare(&node, "a", None),
        Err(Error::Directory { .. })
    ));
    fs::rename(node.path("elsewhere"), node.path("snapshots")).unwrap();
    assert!(node.names(&[]).is_empty() && node.directories().is_empty());
    prepare(&node, "a", None).unwrap();
}

#[test]
fn reading_does_not_wait_for_a_change() {
    let node = Arc::new(Node::new());
    node.committed("base", None);
    let change = node.snapshots.metadata.change().unwrap();
    let (done, seen) = std::sync::mpsc::channel();
    let reader = Arc::clone(&node);
    thread::spawn(move || {
        done.send((
            reader.snapshots.stat("base").is_ok(),
            reader.names(&[]).len(),
        ))
    });
    assert_eq!(seen.recv_timeout(Duration::from_secs(10)), Ok((true, 1)));
    drop(change);
}

#[test]
fn a_root_that_mount_options_cannot_express_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a,b", "a:b", "a\\b"] {
        assert!(
            matches!(
                Snapshots::open(&root.path().join(name)),
                Err(Error::Root(_))
            ),
            "{name}"
        );
    }
}
