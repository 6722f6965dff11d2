//! Regular files: sizes, extents, holes; symbolic links, devices, times.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::process::Command;

use erofs_metadata::{Attributes, Data, Extent, Image, Kind, Time};

use crate::mount::{available, check, mount, mount_erofs, mount_sparse};
use crate::tree::content;

const BLOCK: u64 = 4096;

#[test]
fn files_around_the_end_of_a_block() {
    if !available() {
        return;
    }
    let sizes = [
        0, 1, 2, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 65536, 65537, 300_000,
    ];
    let mut image = Image::builder().build().unwrap();
    let mut data = Vec::new();
    for size in sizes {
        let kind = Kind::File {
            size,
            data: Data::At(data.len() as u64),
        };
        image
            .insert(
                image.root(),
                size.to_string().as_bytes(),
                kind,
                &Attributes::default(),
            )
            .unwrap();
        data.extend(content(size, usize::try_from(size).unwrap()));
        // The bytes behind a file in its last block are not the file's.
        data.resize(data.len().next_multiple_of(4096), 0xee);
    }
    let mounted = mount(image, &data);
    for size in sizes {
        let read = fs::read(mounted.path(&size.to_string())).unwrap();
        assert!(
            read == content(size, usize::try_from(size).unwrap()),
            "{size} bytes"
        );
    }
}

#[test]
fn extents_and_holes() {
    if !available() {
        return;
    }
    let data = content(3, 16 * 4096);
    let extent = |offset: u64, device_offset: u64, length: u64| Extent {
        offset,
        device_offset,
        length,
    };
    let block = |first: u64, device: u64, blocks: u64| {
        extent(first * BLOCK, device * BLOCK, blocks * BLOCK)
    };
    let files: [(&str, u64, Vec<Extent>); 8] = [
        (
            "backwards",
            4 * BLOCK,
            (0..4).map(|number| block(number, 3 - number, 1)).collect(),
        ),
        (
            "one-block-twice",
            2 * BLOCK,
            vec![block(0, 5, 1), block(1, 5, 1)],
        ),
        ("hole-first", 3 * BLOCK, vec![block(1, 0, 2)]),
        ("hole-last", 9 * BLOCK + 5, vec![block(0, 8, 8)]),
        (
            "hole-between",
            12 * BLOCK,
            vec![block(0, 0, 4), block(8, 4, 4)],
        ),
        (
            "partial-end",
            2 * BLOCK + 77,
            vec![
                block(0, 9, 1),
                block(1, 3, 1),
                extent(2 * BLOCK, 7 * BLOCK, 77),
            ],
        ),
        (
            "odd-sizes",
            7 * BLOCK,
            vec![block(0, 1, 3), block(3, 9, 1), block(5, 12, 2)],
        ),
        ("nothing", 5 * BLOCK + 1, vec![]),
    ];
    let mut image = Image::builder().device(16).build().unwrap();
    for (name, size, extents) in &files {
        let kind = Kind::File {
            size: *size,
            data: Data::Extents(extents),
        };
        image
            .insert(image.root(), name.as_bytes(), kind, &Attributes::default())
            .unwrap();
    }
    let mounted = mount(image, &data);
    for (name, size, extents) in files {
        let mut expected = vec![0; usize::try_from(size).unwrap()];
        for extent in extents {
            let [to, from, length] = [extent.offset, extent.device_offset, extent.length]
                .map(|n| usize::try_from(n).unwrap());
            expected[to..to + length].copy_from_slice(&data[from..from + length]);
        }
        assert!(fs::read(mounted.path(name)).unwrap() == expected, "{name}");
    }
}

/// Files larger than 4 GiB, and a device of almost 16 TiB, where addresses have their highest bit.
#[test]
fn large_sparse_files() {
    if !available() {
        return;
    }
    let device_blocks = u64::from(u32::MAX);
    let device = device_blocks * BLOCK;
    let last = device - BLOCK;
    let five_gib = 5 << 30;
    let huge = 1 << 50;
    let mut image = Image::builder().device(device_blocks).build().unwrap();
    let attributes = Attributes::default();
    let whole = Kind::File {
        size: device,
        data: Data::At(0),
    };
    image
        .insert(image.root(), b"whole-device", whole, &attributes)
        .unwrap();
    let contiguous = Kind::File {
        size: five_gib + 3,
        data: Data::At(1 << 40),
    };
    image
        .insert(image.root(), b"contiguous", contiguous, &attributes)
        .unwrap();
    let end = Kind::File {
        size: 10,
        data: Data::At(last),
    };
    image
        .insert(image.root(), b"end", end, &attributes)
        .unwrap();
    let extents = [Extent {
        offset: huge - (1 << 30),
        device_offset: 1 << 41,
        length: 1 << 30,
    }];
    let hole = Kind::File {
        size: huge,
        data: Data::Extents(&extents),
    };
    image
        .insert(image.root(), b"hole", hole, &attributes)
        .unwrap();

    // ext4 has no files of 16 TiB: the end of the device is not backed here.
    let parts: [(u64, &[u8]); 3] = [
        (0, b"first"),
        ((1 << 40) + five_gib, b"abc"),
        ((1 << 41) + (1 << 30) - 4, b"last"),
    ];
    let mounted = mount_sparse(image, 3 << 40, &parts);
    let read = |name: &str, offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        File::open(mounted.path(name))
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    };
    assert_eq!(
        fs::metadata(mounted.path("whole-device")).unwrap().len(),
        device
    );
    assert_eq!(fs::metadata(mounted.path("hole")).unwrap().len(), huge);
    assert_eq!(read("whole-device", 0, 5), b"first");
    assert_eq!(read("whole-device", (1 << 41) + (1 << 30) - 4, 4), b"last");
    assert_eq!(read("contiguous", five_gib, 3), b"abc");
    assert_eq!(read("contiguous", five_gib - 4, 4), [0; 4]);
    assert_eq!(read("hole", 0, 4), [0; 4]);
    assert_eq!(read("hole", huge - 4, 4), b"last");
}

#[test]
fn symbolic_links_of_any_length() {
    if !available() {
        return;
    }
    let lengths = [1, 2, 63, 64, 65, 1000, 4031, 4032, 4033, 4094, 4095];
    let mut image = Image::builder().build().unwrap();
    let target = |length: usize| "x/".repeat(length)[..length].to_owned();
    for length in lengths {
        let kind = target(length);
        let kind = Kind::Symlink(kind.as_bytes());
        image
            .insert(
                image.root(),
                length.to_string().as_bytes(),
                kind,
                &Attributes::default(),
            )
            .unwrap();
    }
    let mounted = mount(image, &[0; 4096]);
    for length in lengths {
        let path = mounted.path(&length.to_string());
        assert_eq!(
            fs::read_link(&path).unwrap().to_str().unwrap(),
            target(length)
        );
        assert_eq!(fs::symlink_metadata(&path).unwrap().len(), length as u64);
    }
}

#[test]
fn sockets_devices_owners_and_times() {
    if !available() {
        return;
    }
    let mut image = Image::builder().build().unwrap();
    let before_1970 = Time {
        seconds: -86_400,
        nanoseconds: 999_999_999,
    };
    let far = Time {
        seconds: i64::from(u32::MAX) * 4,
        nanoseconds: 1,
    };
    let attributes = Attributes::default()
        .with_permissions(0o7777)
        .with_owner(u32::MAX - 1, u32::MAX - 1);
    image
        .insert(
            image.root(),
            b"socket",
            Kind::Socket,
            &attributes.with_modified(before_1970),
        )
        .unwrap();
    let device = Kind::BlockDevice {
        major: 4095,
        minor: 1_048_575,
    };
    image
        .insert(
            image.root(),
            b"device",
            device,
            &attributes.with_modified(far),
        )
        .unwrap();
    let mounted = mount(image, &[0; 4096]);

    let socket = fs::symlink_metadata(mounted.path("socket")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(
        (socket.mode() & 0o7777, socket.uid(), socket.gid()),
        (0o7777, u32::MAX - 1, u32::MAX - 1)
    );
    assert_eq!(
        (socket.mtime(), socket.mtime_nsec()),
        (-86_400, 999_999_999)
    );
    let device = fs::symlink_metadata(mounted.path("device")).unwrap();
    assert_eq!(
        (
            rustix::fs::major(device.rdev()),
            rustix::fs::minor(device.rdev())
        ),
        (4095, 1_048_575)
    );
    assert_eq!((device.mtime(), device.mtime_nsec()), (far.seconds, 1));
}

#[test]
fn smaller_blocks() {
    if !available() {
        return;
    }
    for block_size in [512_u32, 1024, 2048] {
        let mut image = Image::builder().block_size(block_size).build().unwrap();
        let attributes = Attributes::default();
        let file = content(u64::from(block_size), 10_000);
        let kind = Kind::File {
            size: 10_000,
            data: Data::At(u64::from(block_size)),
        };
        image
            .insert(image.root(), b"file", kind, &attributes)
            .unwrap();
        let target = "t".repeat(4095);
        image
            .insert(
                image.root(),
                b"link",
                Kind::Symlink(target.as_bytes()),
                &attributes,
            )
            .unwrap();
        for number in 0..200 {
            let name = format!("{number:0250}");
            image
                .insert(image.root(), name.as_bytes(), Kind::Fifo, &attributes)
                .unwrap();
        }
        let head = vec![0; block_size as usize];
        let mut data = [head, file.clone()].concat();
        data.resize(data.len().next_multiple_of(4096), 0);
        let mounted = mount(image, &data);
        assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 202);
        assert!(
            fs::read(mounted.path("file")).unwrap() == file,
            "{block_size}"
        );
        assert_eq!(
            fs::read_link(mounted.path("link"))
                .unwrap()
                .to_str()
                .unwrap(),
            target
        );
        assert!(fs::symlink_metadata(mounted.path(&format!("{:0250}", 199))).is_ok());
    }
}

/// Without `device=`, the data follows the metadata in one file.
#[test]
fn metadata_and_data_in_one_file() {
    if !available() {
        return;
    }
    let mut image = Image::builder().build().unwrap();
    let kind = Kind::File {
        size: 5000,
        data: Data::At(4096),
    };
    image
        .insert(image.root(), b"file", kind, &Attributes::default())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (both, root) = (folder.path().join("both"), folder.path().join("root"));
    let mut bytes = Vec::new();
    image.write_to(&mut bytes).unwrap();
    bytes.extend(content(1, 3 * 4096));
    fs::write(&both, bytes).unwrap();
    fs::create_dir(&root).unwrap();
    let _mount = mount_erofs(&both, None, &root).unwrap();
    assert_eq!(
        fs::read(root.join("file")).unwrap(),
        content(1, 3 * 4096)[4096..9096]
    );
}

/// The UUID reaches the file system; the same calls make the same bytes.
#[test]
fn images_are_reproducible() {
    let image = |uuid| {
        let mut image = Image::builder().uuid(uuid).build().unwrap();
        let node = image
            .insert(image.root(), b"fifo", Kind::Fifo, &Attributes::default())
            .unwrap();
        (0..100).for_each(|number| {
            image
                .add_xattr(node, format!("user.{number}").as_bytes(), b"v")
                .unwrap()
        });
        let mut bytes = Vec::new();
        image.write_to(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(image([1; 16]), image([1; 16]));
    let other = image([2; 16]);
    assert_ne!(image([1; 16]), other);
    assert_eq!(other[1024 + 48..1024 + 64], [2; 16]);
    if available() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metadata"), &other).unwrap();
        fs::write(folder.path().join("data"), [0; 4096]).unwrap();
        check(&folder.path().join("metadata"), &folder.path().join("data"));
    }
}

#[test]
fn dump_reads_the_superblock() {
    if !available() {
        return;
    }
    let uuid = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210_u128;
    let builder = Image::builder().uuid(uuid.to_be_bytes()).device(1000);
    let mut image = builder.build().unwrap();
    let fifo = image
        .insert(image.root(), b"fifo", Kind::Fifo, &Attributes::default())
        .unwrap();
    image.link(image.root(), b"again", fifo).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (metadata, data) = (folder.path().join("metadata"), folder.path().join("data"));
    image.write_to(File::create(&metadata).unwrap()).unwrap();
    fs::write(&data, [0; 4096]).unwrap();
    let output = Command::new("dump.erofs")
        .args(["-s", &format!("--device={}", data.display())])
        .arg(&metadata)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = [
        ("Filesystem magic number", "0xE0F5E1E2"),
        // One block of metadata.
        ("Filesystem blocks", "1001"),
        ("Filesystem root nid", "40"),
        ("Filesystem inode count", "2"),
        (
            "Filesystem features",
            "sb_csum mtime chunked_file device_table",
        ),
        ("Filesystem UUID", "01234567-89ab-cdef-fedc-ba9876543210"),
    ];
    for (field, value) in expected {
        let line = text.lines().find(|line| line.starts_with(field));
        let seen = line.and_then(|line| line.split_once(':'));
        let seen = seen.map(|(_, value)| value.trim());
        assert_eq!(seen, Some(value), "{field} in {text}");
    }
}
