//! Odd input: an error, never a panic, and each written image is sound.

use std::io::{self, Write};

use erofs_metadata::{Attributes, Data, Extent, Image, ImageError, Kind, NodeId, Time};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

fn image() -> Image {
    Image::builder().device(100).build().unwrap()
}

#[test]
fn trees_that_erofs_cannot_express_are_rejected() {
    for size in [0, 1, 256, 513, 4095, 8192, u32::MAX] {
        assert!(matches!(
            Image::builder().block_size(size).build(),
            Err(ImageError::BlockSize(_))
        ));
    }
    assert!(matches!(
        Image::builder().device(1 << 32).build(),
        Err(ImageError::DeviceSize(_))
    ));
    assert!(Image::builder().device((1 << 32) - 1).build().is_ok());
    let attributes = Attributes::default();
    let add = |kind: Kind<'_>| image().add(kind, &attributes).unwrap_err();
    assert!(matches!(
        add(Kind::Symlink(b"")),
        ImageError::SymlinkLength(0)
    ));
    assert!(matches!(
        add(Kind::Symlink(&[b'x'; 4096])),
        ImageError::SymlinkLength(4096)
    ));
    assert!(matches!(
        add(Kind::Symlink(b"a\0")),
        ImageError::SymlinkTarget
    ));
    assert!(matches!(
        add(Kind::CharDevice {
            major: 4096,
            minor: 0
        }),
        ImageError::DeviceNumber { .. }
    ));
    assert!(matches!(
        add(Kind::BlockDevice {
            major: 0,
            minor: 1 << 20
        }),
        ImageError::DeviceNumber { .. }
    ));
    let file = |size, data| add(Kind::File { size, data });
    assert!(matches!(
        file(u64::MAX, Data::Hole),
        ImageError::FileSize(_)
    ));
    assert!(matches!(
        file(1, Data::At(100 * 4096)),
        ImageError::ExtentBeyondDevice { .. }
    ));
    assert!(matches!(
        file(1, Data::At(7)),
        ImageError::ExtentAlignment { .. }
    ));
    let scattered = [Extent {
        offset: 4096,
        device_offset: 0,
        length: 4096,
    }];
    assert!(matches!(
        file(1 << 60, Data::Extents(&scattered)),
        ImageError::Fragmentation(_)
    ));
    let with = |attributes| image().add(Kind::Fifo, &attributes).unwrap_err();
    assert!(matches!(
        with(attributes.with_permissions(0o10000)),
        ImageError::Permissions(_)
    ));
    let time = Time {
        seconds: 0,
        nanoseconds: 1_000_000_000,
    };
    assert!(matches!(
        with(attributes.with_modified(time)),
        ImageError::Nanoseconds(_)
    ));
}

#[test]
fn names_and_trees_are_checked() {
    let mut image = image();
    let attributes = Attributes::default();
    let root = image.root();
    let directory = image
        .insert(root, b"d", Kind::Directory, &attributes)
        .unwrap();
    let fifo = image.insert(root, b"f", Kind::Fifo, &attributes).unwrap();
    for name in [&b"."[..], b"..", b"a/b", b"/", b"a\0"] {
        assert!(
            matches!(image.link(root, name, fifo), Err(ImageError::Name(_))),
            "{name:?}"
        );
    }
    assert!(matches!(
        image.link(root, b"", fifo),
        Err(ImageError::NameLength(0))
    ));
    assert!(matches!(
        image.link(root, &[b'n'; 256], fifo),
        Err(ImageError::NameLength(256))
    ));
    assert!(matches!(
        image.link(fifo, b"x", fifo),
        Err(ImageError::NotADirectory(_))
    ));
    assert!(matches!(
        image.link(root, b"x", root),
        Err(ImageError::DirectoryLink(_))
    ));
    assert!(matches!(
        image.link(directory, b"x", directory),
        Err(ImageError::DirectoryLink(_))
    ));

    let mut other = Image::builder().build().unwrap();
    assert!(matches!(
        other.link(root, b"x", fifo),
        Err(ImageError::UnknownNode(_))
    ));
    assert!(matches!(
        other.add_xattr(fifo, b"user.a", b""),
        Err(ImageError::UnknownNode(_))
    ));

    image.link(root, b"d", fifo).unwrap();
    assert!(
        matches!(image.layout(), Err(ImageError::DuplicateName { parent, .. }) if parent == root)
    );
}

#[test]
fn circles_and_nameless_inodes_are_unreachable() {
    let attributes = Attributes::default();
    let mut nameless = image();
    let node = nameless.add(Kind::Fifo, &attributes).unwrap();
    assert!(matches!(nameless.layout(), Err(ImageError::Unreachable(found)) if found == node));

    let mut circle = image();
    let a = circle.add(Kind::Directory, &attributes).unwrap();
    let b = circle
        .insert(a, b"b", Kind::Directory, &attributes)
        .unwrap();
    circle.link(b, b"a", a).unwrap();
    assert!(matches!(circle.layout(), Err(ImageError::Unreachable(_))));

    let mut itself = image();
    let node = itself.add(Kind::Directory, &attributes).unwrap();
    itself.link(node, b"x", node).unwrap();
    assert!(matches!(itself.layout(), Err(ImageError::Unreachable(_))));
}

#[test]
fn a_failing_writer_is_an_error() {
    let mut full: [u8; 100] = [0; 100];
    assert!(matches!(
        image().write_to(&mut full[..]),
        Err(ImageError::Write(_))
    ));
}

/// A call with values from anywhere.
#[derive(Clone, Debug)]
enum Call {
    Directory(u16),
    File {
        size: u64,
        extents: Vec<(u64, u64, u64)>,
    },
    Symlink(Vec<u8>),
    Device(u32, u32),
    Link(u8, Vec<u8>, u8),
    Xattr(u8, Vec<u8>, Vec<u8>),
}

fn call() -> impl Strategy<Value = Call> {
    let number = || {
        prop_oneof![
            0..10_u64,
            (0..200_u64).prop_map(|block| block * 512),
            any::<u64>()
        ]
    };
    let extents = vec((number(), number(), number()), 0..4);
    let name = || {
        prop_oneof![
            vec(any::<u8>(), 0..300),
            "[ab.]{1,2}".prop_map(String::into_bytes)
        ]
    };
    let xattr = prop_oneof![
        "user.[ab]".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..300)
    ];
    prop_oneof![
        any::<u16>().prop_map(Call::Directory),
        (number(), extents).prop_map(|(size, extents)| Call::File { size, extents }),
        vec(any::<u8>(), 0..5000).prop_map(Call::Symlink),
        (any::<u32>(), any::<u32>()).prop_map(|(major, minor)| Call::Device(major, minor)),
        (any::<u8>(), name(), any::<u8>()).prop_map(|(parent, name, node)| Call::Link(
            parent % 8,
            name,
            node % 8
        )),
        (any::<u8>(), xattr, vec(any::<u8>(), 0..2000))
            .prop_map(|(node, name, value)| Call::Xattr(node % 8, name, value)),
    ]
}

fn make(image: &mut Image, nodes: &[NodeId], call: &Call) -> Result<Option<NodeId>, ImageError> {
    let node = |number: u8| nodes[usize::from(number) % nodes.len()];
    let attributes = Attributes::default();
    match call {
        Call::Directory(permissions) => image
            .add(Kind::Directory, &attributes.with_permissions(*permissions))
            .map(Some),
        Call::File { size, extents } => {
            let extent = |&(offset, device_offset, length): &_| Extent {
                offset,
                device_offset,
                length,
            };
            let extents: Vec<_> = extents.iter().map(extent).collect();
            image
                .add(
                    Kind::File {
                        size: *size,
                        data: Data::Extents(&extents),
                    },
                    &attributes,
                )
                .map(Some)
        }
        Call::Symlink(target) => image.add(Kind::Symlink(target), &attributes).map(Some),
        Call::Device(major, minor) => image
            .add(
                Kind::CharDevice {
                    major: *major,
                    minor: *minor,
                },
                &attributes,
            )
            .map(Some),
        Call::Link(parent, name, child) => {
            image.link(node(*parent), name, node(*child)).map(|()| None)
        }
        Call::Xattr(number, name, value) => {
            image.add_xattr(node(*number), name, value).map(|()| None)
        }
    }
}

/// Counts the bytes written: files of many pieces have images of many megabytes.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn odd_calls_never_panic(bits in 9..=12_u32, calls in vec(call(), 0..40)) {
        let mut image = Image::builder().block_size(1 << bits).build().unwrap();
        let mut nodes = vec![image.root()];
        for call in &calls {
            nodes.extend(make(&mut image, &nodes, call).ok().flatten());
        }
        // With a name for each, most images can be laid out.
        for (number, node) in nodes.iter().enumerate() {
            let _has_a_name = image.link(image.root(), format!("#{number}").as_bytes(), *node);
        }
        if let Ok(layout) = image.layout() {
            let mut bytes = Counter(0);
            layout.write_to(&mut bytes).unwrap();
            assert_eq!(bytes.0, layout.size());
        }
    }
}
