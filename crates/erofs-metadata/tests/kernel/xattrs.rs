//! Extended attributes of all kinds, also compared with those of a file on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use erofs_metadata::limits::MAX_XATTR_BODY;
use erofs_metadata::{Attributes, Data, Image, ImageError, Kind, NodeId};
use rustix::fs::XattrFlags;

use crate::disk::{xattr, xattrs};
use crate::mount::{Mounted, available, mount};
use crate::tree::content;

fn file(image: &mut Image, name: &str) -> NodeId {
    let kind = Kind::File {
        size: 1,
        data: Data::At(0),
    };
    image
        .insert(image.root(), name.as_bytes(), kind, &Attributes::default())
        .unwrap()
}

fn mounted(build: impl FnOnce(&mut Image)) -> Mounted {
    let mut image = Image::builder().build().unwrap();
    build(&mut image);
    mount(image, &[7; 4096])
}

/// `security.capability` as `setcap cap_net_bind_service+ep` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list as `getxattr(2)` returns it: owner, user 7, group, mask, other.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, u32::MAX),
        (2, 5, 7),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 5, u32::MAX),
    ];
    let encode = |(tag, permissions, id): (u16, u16, u32)| {
        [
            &tag.to_le_bytes()[..],
            &permissions.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    [
        2_u32.to_le_bytes().to_vec(),
        entries.into_iter().flat_map(encode).collect(),
    ]
    .concat()
}

#[test]
fn every_prefix_is_as_on_disk() {
    if !available() {
        return;
    }
    let (acl, long) = (acl(), vec![b'v'; 2000]);
    let file_xattrs: [(&str, &[u8]); 6] = [
        ("user.note", b"text"),
        ("user.long", &long),
        ("trusted.overlay.opaque", b"y"),
        ("security.capability", &CAPABILITY),
        ("system.posix_acl_access", &acl),
        ("user.empty", b""),
    ];
    let on_disk = tempfile::tempdir().unwrap();
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap()
    };
    let (disk_file, disk_directory) = (
        on_disk.path().join("file"),
        on_disk.path().join("directory"),
    );
    fs::write(&disk_file, "x").unwrap();
    fs::create_dir(&disk_directory).unwrap();
    file_xattrs
        .iter()
        .for_each(|(name, value)| set(&disk_file, name, value));
    set(&disk_directory, "system.posix_acl_default", &acl);

    let mounted = mounted(|image| {
        let node = file(image, "file");
        file_xattrs
            .iter()
            .for_each(|(name, value)| image.add_xattr(node, name.as_bytes(), value).unwrap());
        let directory = image
            .insert(
                image.root(),
                b"directory",
                Kind::Directory,
                &Attributes::default(),
            )
            .unwrap();
        image
            .add_xattr(directory, b"system.posix_acl_default", &acl)
            .unwrap();
    });
    assert_eq!(xattrs(&mounted.path("file")), xattrs(&disk_file));
    assert_eq!(xattrs(&mounted.path("directory")), xattrs(&disk_directory));
    assert!(xattr(&mounted.path("file"), b"user.absent").is_err());
    assert!(xattr(&mounted.path("directory"), b"trusted.overlay.opaque").is_err());
}

#[test]
fn attributes_of_every_kind_of_file() {
    if !available() {
        return;
    }
    let kinds = [
        ("directory", Kind::Directory),
        ("symlink", Kind::Symlink(b"target")),
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
        ("device", Kind::CharDevice { major: 1, minor: 3 }),
    ];
    let mounted = mounted(|image| {
        for (name, kind) in kinds {
            let node = image
                .insert(image.root(), name.as_bytes(), kind, &Attributes::default())
                .unwrap();
            image
                .add_xattr(node, b"trusted.kind", name.as_bytes())
                .unwrap();
        }
        image
            .add_xattr(image.root(), b"trusted.kind", b"root")
            .unwrap();
    });
    for (name, _) in kinds {
        assert_eq!(
            xattr(&mounted.path(name), b"trusted.kind").unwrap(),
            name.as_bytes()
        );
    }
    assert_eq!(xattr(&mounted.root(), b"trusted.kind").unwrap(), b"root");
    assert_eq!(
        fs::read_link(mounted.path("symlink")).unwrap().to_str(),
        Some("target")
    );
}

#[test]
fn shared_attributes() {
    if !available() {
        return;
    }
    let label = b"system_u:object_r:container_file_t:s0";
    let mounted = mounted(|image| {
        for number in 0..3000 {
            let node = file(image, &number.to_string());
            image.add_xattr(node, b"security.selinux", label).unwrap();
            image
                .add_xattr(node, b"user.number", format!("{}", number % 700).as_bytes())
                .unwrap();
        }
    });
    for number in 0..3000 {
        let seen = xattrs(&mounted.path(&number.to_string()));
        let value = |text: &str| text.as_bytes().to_vec();
        let expected = [
            (value("security.selinux"), label.to_vec()),
            (value("user.number"), value(&(number % 700).to_string())),
        ];
        assert_eq!(seen, BTreeMap::from(expected));
    }
}

/// Up to the limits, so that lists and values cross blocks.
#[test]
fn many_and_long_attributes() {
    if !available() {
        return;
    }
    let value = |length: usize| content(length as u64, length);
    let long_name = [&b"user."[..], &[b'n'; 250]].concat();
    let mounted = mounted(|image| {
        let many = file(image, "many");
        for number in 0..1500 {
            image
                .add_xattr(
                    many,
                    format!("user.number-{number:05}").as_bytes(),
                    format!("{number}").as_bytes(),
                )
                .unwrap();
        }
        let long = file(image, "long");
        for number in 0..20 {
            image
                .add_xattr(
                    long,
                    format!("trusted.{number}").as_bytes(),
                    &value(60_000 + number),
                )
                .unwrap();
        }
        image
            .add_xattr(long, b"user.longest", &value(65_535))
            .unwrap();
        image.add_xattr(long, &long_name, b"x").unwrap();
        let directory = image
            .insert(
                image.root(),
                b"directory",
                Kind::Directory,
                &Attributes::default(),
            )
            .unwrap();
        for number in 0..300 {
            image
                .add_xattr(directory, format!("user.{number}").as_bytes(), &[b'd'; 20])
                .unwrap();
        }
        image
            .insert(directory, b"child", Kind::Fifo, &Attributes::default())
            .unwrap();
        let link = image
            .insert(
                image.root(),
                b"link",
                Kind::Symlink(b"target"),
                &Attributes::default(),
            )
            .unwrap();
        for number in 0..300 {
            image
                .add_xattr(link, format!("trusted.{number}").as_bytes(), &[b'l'; 20])
                .unwrap();
        }
    });
    let many = xattrs(&mounted.path("many"));
    assert_eq!(many.len(), 1500);
    assert_eq!(many[&b"user.number-01499"[..]], b"1499");
    assert_eq!(
        xattr(&mounted.path("long"), b"user.longest").unwrap(),
        value(65_535)
    );
    assert_eq!(xattr(&mounted.path("long"), &long_name).unwrap(), b"x");
    for number in 0..20 {
        assert_eq!(
            xattr(
                &mounted.path("long"),
                format!("trusted.{number}").as_bytes()
            )
            .unwrap(),
            value(60_000 + number)
        );
    }
    assert_eq!(xattrs(&mounted.path("directory")).len(), 300);
    assert_eq!(fs::read_dir(mounted.path("directory")).unwrap().count(), 1);
    assert_eq!(xattrs(&mounted.path("link")).len(), 300);
    assert_eq!(
        fs::read_link(mounted.path("link")).unwrap().to_str(),
        Some("target")
    );
}

/// The attributes of one inode fill all that they may; a byte more is an error.
#[test]
fn attributes_up_to_the_limit() {
    // Each takes 4 bytes, its name without "user." and its value.
    let fill = |image: &mut Image, last: usize| {
        let node = file(image, "full");
        for number in 0..127 {
            let name = format!("user.{number:03}");
            let value = content(number, 505);
            image.add_xattr(node, name.as_bytes(), &value).unwrap();
        }
        let value = vec![b'l'; last];
        image.add_xattr(node, b"user.last", &value).unwrap();
    };
    let last = MAX_XATTR_BODY - 12 - 127 * 512 - 8;
    let mut beyond = Image::builder().build().unwrap();
    fill(&mut beyond, last + 1);
    assert!(matches!(beyond.layout(), Err(ImageError::XattrSpace(_))));
    if !available() {
        return;
    }
    let mounted = mounted(|image| fill(image, last));
    let seen = xattrs(&mounted.path("full"));
    assert_eq!(seen.len(), 128);
    assert_eq!(seen[&b"user.126"[..]], content(126, 505));
    assert_eq!(seen[&b"user.last"[..]], vec![b'l'; last]);
}
