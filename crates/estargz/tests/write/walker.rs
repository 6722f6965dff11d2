//! The walk along a tar: every byte is returned, and headers have the meaning that other readers
//! give them.

use std::io::Read;
use std::process::Command;

use estargz::EntryKind;
use estargz::tar::{Error, Header, Walker};
use proptest::prelude::*;

use crate::support::{Tar, every_type, noise, seal};

type Entries = Vec<(Header, Vec<u8>)>;

/// The entries of a tar with their payloads, and all its bytes as returned by the walk.
fn walk(tar: impl Read) -> Result<(Entries, Vec<u8>), Error> {
    let mut walker = Walker::new(tar);
    let (mut entries, mut bytes) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 1000];
    while let Some(header) = walker.next_header(&mut bytes)? {
        let mut payload = Vec::new();
        loop {
            match walker.read_payload(&mut buffer)? {
                0 => break,
                read => payload.extend_from_slice(&buffer[..read]),
            }
        }
        bytes.extend_from_slice(&payload);
        entries.push((header, payload));
    }
    loop {
        match walker.read_trailing(&mut buffer)? {
            0 => break,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
    assert_eq!(walker.position(), bytes.len() as u64);
    Ok((entries, bytes))
}

/// Returns a byte or a few at a time.
struct Trickle<'t>(&'t [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let size = self.1.min(buffer.len());
        self.0.read(&mut buffer[..size])
    }
}

#[test]
fn every_byte_of_the_source_is_returned() {
    let garbage = [every_type(), noise(1, 3333)].concat();
    for source in [
        every_type(),
        garbage,
        Vec::new(),
        Tar::default().file("a", b"cut").bytes[..600].to_vec(),
    ] {
        assert_eq!(walk(&source[..]).unwrap().1, source);
        assert_eq!(walk(Trickle(&source, 0)).unwrap().1, source);
    }
}

#[test]
fn missing_bytes_at_the_end_are_counted() {
    let entries = Tar::default().file("a", b"content").bytes;
    for (end, missing) in [
        (0, 1024),
        (1, 1023),
        (512, 512),
        (1000, 24),
        (1024, 0),
        (4000, 0),
    ] {
        let source = [&entries[..], &vec![0; end]].concat();
        let mut walker = Walker::new(&source[..]);
        while walker.next_header(&mut Vec::new()).unwrap().is_some() {}
        assert_eq!(walker.missing(), missing, "{end} zeros");
    }
    let mut walker = Walker::new(&entries[..entries.len() - 10]);
    while walker.next_header(&mut Vec::new()).unwrap().is_some() {}
    assert_eq!(walker.missing(), 10 + 1024);
}

#[test]
fn a_pax_record_wins_over_the_header_and_a_long_name_over_both() {
    let source = Tar::default()
        .pax(
            b'x',
            &[
                ("path", b"from pax"),
                ("size", b"3"),
                ("uid", b"-5"),
                ("gname", b""),
                ("mtime", b"-1.5"),
            ],
        )
        .entry(b'L', b"x", b"", b"from long name\0")
        .file("from header", b"abc")
        .file("next", b"")
        .end();
    let (entries, _) = walk(&source[..]).unwrap();
    let (header, payload) = &entries[0];
    assert_eq!(header.path, b"from long name");
    assert_eq!((header.uid, header.gid, header.size), (-5, 0o1750, 3));
    assert_eq!(header.group_name, b"grp", "an empty record is none");
    assert_eq!(
        (header.mod_time.seconds, header.mod_time.nanoseconds),
        (-2, 500_000_000)
    );
    assert_eq!(payload, b"abc");
    assert_eq!(
        (&entries[1].0.path[..], entries[1].0.uid),
        (&b"next"[..], 0o1750),
        "extensions are for one entry"
    );
}

#[test]
fn old_formats_and_large_numbers() {
    let mut tar = Tar::default();
    tar.header(0, b"directory/", b"", 0, &[0; 8]);
    tar.header(b'0', b"file/", b"", 0, b"ustar\x0000");
    tar.header(b'2', b"link", b"target", 77, b"ustar  \0");
    tar.header(b'0', b"name", b"", 0, b"ustar\x0000");
    let mut source = tar.end();
    let prefixed = source[1536..2048].first_chunk_mut().unwrap();
    prefixed[345..351].copy_from_slice(b"prefix");
    // 2^40 in base 256, and a checksum summed over signed bytes.
    prefixed[108..116].copy_from_slice(&[0x80, 0, 1, 0, 0, 0, 0, 0]);
    seal(prefixed);
    let sum: i32 = prefixed
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                i32::from(byte.cast_signed())
            }
        })
        .sum();
    prefixed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let (entries, _) = walk(&source[..]).unwrap();
    let kinds: Vec<EntryKind> = entries.iter().map(|(header, _)| header.kind).collect();
    assert_eq!(
        kinds,
        [
            EntryKind::Dir,
            EntryKind::Reg,
            EntryKind::Symlink,
            EntryKind::Reg
        ]
    );
    assert_eq!(
        entries[0].0.user_name, b"",
        "the oldest format has no names"
    );
    assert_eq!(
        (entries[2].0.size, entries[2].1.len()),
        (0, 0),
        "a link has no payload, whatever it says"
    );
    assert_eq!(entries[3].0.path, b"prefix/name");
    assert_eq!(entries[3].0.uid, 1 << 40);
}

#[test]
fn gnu_tar_is_understood_in_each_of_its_formats() {
    let folder = tempfile::tempdir().unwrap();
    let deep = "d".repeat(60) + "/" + &"e".repeat(30);
    std::fs::create_dir_all(folder.path().join(&deep)).unwrap();
    std::fs::write(folder.path().join(&deep).join("file"), noise(3, 10_000)).unwrap();
    std::os::unix::fs::symlink(&deep, folder.path().join("link")).unwrap();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let archive = Command::new("tar")
            .arg(format!("--format={format}"))
            .args([
                "--sort=name",
                "--owner=app:1234",
                "--group=grp:99",
                "--mtime=@1700000000",
                "-C",
            ])
            .arg(folder.path())
            .args(["-cf", "-", "."])
            .output()
            .unwrap();
        let (entries, bytes) = walk(&archive.stdout[..]).unwrap();
        assert_eq!(bytes, archive.stdout);
        assert_eq!(entries.len(), 5, "{format}");
        for (header, _) in &entries {
            assert_eq!(
                (header.uid, header.gid, header.mod_time.seconds),
                (1234, 99, 1_700_000_000),
                "{format}"
            );
            assert_eq!(
                header.user_name,
                if format == "v7" { &b""[..] } else { b"app" }
            );
        }
        let find = |path: &str| {
            entries
                .iter()
                .find(|(header, _)| header.path == format!("./{path}").as_bytes())
        };
        assert_eq!(
            find(&format!("{deep}/")).unwrap().0.kind,
            EntryKind::Dir,
            "{format}"
        );
        assert_eq!(find("link").unwrap().0.link, deep.as_bytes());
        assert_eq!(find(&format!("{deep}/file")).unwrap().1, noise(3, 10_000));
    }
}

proptest! {
    #[test]
    fn a_walk_of_anything_ends(mut bytes in prop::collection::vec(any::<u8>(), 512..3000), kind: u8, size in 0_usize..4000) {
        let block = bytes.first_chunk_mut().unwrap();
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar  \0");
        seal(block);
        let _is_no_panic = walk(&bytes[..]);
    }
}
