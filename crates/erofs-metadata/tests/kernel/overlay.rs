//! Overlayfs over several images: whiteouts, opaque directories, merged directories.

use std::fs;
use std::os::unix::fs::MetadataExt;

use erofs_metadata::{Attributes, Data, Image, Kind, NodeId};

use crate::mount::{Mounted, available, mount, overlay};

const WHITEOUT: Kind<'_> = Kind::CharDevice { major: 0, minor: 0 };

fn layer(uuid: u8, build: impl FnOnce(&mut Image)) -> Mounted {
    let mut image = Image::builder().uuid([uuid; 16]).build().unwrap();
    build(&mut image);
    mount(image, &[uuid; 4096])
}

fn insert(image: &mut Image, parent: NodeId, name: &str, kind: Kind<'_>) -> NodeId {
    image
        .insert(parent, name.as_bytes(), kind, &Attributes::default())
        .unwrap()
}

fn file() -> Kind<'static> {
    Kind::File {
        size: 3,
        data: Data::At(0),
    }
}

fn names(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn whiteouts_and_opaque_directories() {
    if !available() {
        return;
    }
    let lower = layer(b'l', |image| {
        let root = image.root();
        for name in ["removed", "kept", "replaced"] {
            insert(image, root, name, file());
        }
        for directory in ["opaque", "merged", "removed-directory"] {
            let directory = insert(image, root, directory, Kind::Directory);
            insert(image, directory, "lower", file());
        }
    });
    let upper = layer(b'u', |image| {
        let root = image.root();
        insert(image, root, "removed", WHITEOUT);
        insert(image, root, "removed-directory", WHITEOUT);
        insert(image, root, "replaced", file());
        let merged = insert(image, root, "merged", Kind::Directory);
        insert(image, merged, "upper", file());
        let opaque = insert(image, root, "opaque", Kind::Directory);
        image
            .add_xattr(opaque, b"trusted.overlay.opaque", b"y")
            .unwrap();
        insert(image, opaque, "upper", file());
    });
    let folder = tempfile::tempdir().unwrap();
    let _mount = overlay(&[upper.root(), lower.root()], folder.path());

    assert_eq!(
        names(folder.path()),
        ["kept", "merged", "opaque", "replaced"]
    );
    assert_eq!(names(&folder.path().join("merged")), ["lower", "upper"]);
    assert_eq!(names(&folder.path().join("opaque")), ["upper"]);
    assert!(fs::symlink_metadata(folder.path().join("removed")).is_err());
    assert_eq!(fs::read(folder.path().join("kept")).unwrap(), b"lll");
    assert_eq!(fs::read(folder.path().join("replaced")).unwrap(), b"uuu");
    assert_eq!(
        fs::read(folder.path().join("merged/lower")).unwrap(),
        b"lll"
    );
}

#[test]
fn hard_links_keep_one_inode_in_an_overlay() {
    if !available() {
        return;
    }
    let linked = |image: &mut Image| {
        let node = insert(image, image.root(), "a", file());
        image.link(image.root(), b"b", node).unwrap();
    };
    let (lower, upper) = (layer(b'l', |_| {}), layer(b'u', linked));
    let folder = tempfile::tempdir().unwrap();
    let _mount = overlay(&[upper.root(), lower.root()], folder.path());
    let inode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(fs::metadata(folder.path().join("a")).unwrap().nlink(), 2);
}
