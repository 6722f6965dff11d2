//! Hostile input is an error, and soon.

use std::io::{self, Read};

use estargz::write::{Error, Limits, Options, write};

use crate::support::{Tar, noise, pool, seal, try_convert};

fn fails(tar: &[u8]) -> Error {
    try_convert(tar, &Options::default()).unwrap_err()
}

#[test]
fn a_tar_cut_inside_an_entry() {
    let tar = Tar::default()
        .pax(b'x', &[("path", b"longer")])
        .file("a", &noise(1, 3000))
        .bytes;
    for cut in [1, 511, 513, 600, 1024, 1030, 1536, 1600, 2048, 4000] {
        assert!(matches!(fails(&tar[..cut]), Error::Tar(_)), "cut at {cut}");
    }
}

#[test]
fn a_file_of_eight_exabytes() {
    let mut tar = Tar::default().file("a", b"").bytes;
    let block = tar.first_chunk_mut().unwrap();
    block[124..136].copy_from_slice(&[
        0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    seal(block);
    fails(&tar);
    let negative = Tar::default()
        .pax(b'x', &[("size", b"-1")])
        .file("a", b"")
        .end();
    fails(&negative);
    let huge = Tar::default()
        .pax(b'x', &[("size", b"9223372036854775807")])
        .file("a", b"")
        .end();
    fails(&huge);
}

#[test]
fn extensions_that_are_too_long() {
    let long = vec![b'n'; 1024 * 1024 + 1];
    for kind in [b'x', b'g', b'L', b'K'] {
        let tar = Tar::default()
            .entry(kind, b"x", b"", &long)
            .file("a", b"")
            .end();
        assert!(matches!(fails(&tar), Error::Limit { .. }));
    }
    let mut chain = Tar::default();
    for _ in 0..40 {
        chain = chain.entry(b'L', b"x", b"", &vec![b'n'; 500_000]);
    }
    assert!(matches!(
        fails(&chain.file("a", b"").end()),
        Error::Limit { .. }
    ));
}

#[test]
fn paths_that_are_too_long_or_too_deep() {
    let long = Tar::default()
        .pax(b'x', &[("path", &[b'p'; 5000])])
        .file("a", b"")
        .end();
    let deep = Tar::default()
        .pax(b'x', &[("path", "a/".repeat(2000).as_bytes())])
        .file("a", b"")
        .end();
    let link = Tar::default()
        .pax(b'x', &[("linkpath", &[b'p'; 5000])])
        .entry(b'2', b"a", b"b", b"")
        .end();
    for tar in [long, deep, link] {
        assert!(matches!(fails(&tar), Error::Limit { .. }));
    }
}

#[test]
fn sparse_maps_that_contradict_their_payload_are_errors() {
    let sparse = |map: &str, size: &str, stored: usize| {
        let records = [
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
        ];
        Tar::default()
            .pax(b'x', &records)
            .file("a", &noise(1, stored))
            .end()
    };
    assert!(try_convert(&sparse("0,5,100,5", "105", 10), &Options::default()).is_ok());
    for (map, size, stored) in [
        ("0,5,3,5", "105", 10),
        ("0,5,100,5", "104", 10),
        ("0,5,100,5", "105", 9),
        ("0,5,9223372036854775807,5", "9223372036854775807", 10),
        ("0,-5", "105", 0),
        ("0", "105", 0),
        ("0,5,x,5", "105", 10),
        ("0,10", "9223372036854775807", 10),
    ] {
        fails(&sparse(map, size, stored));
    }
    let endless = noise(1, 4096)
        .iter()
        .map(|byte| byte % 10 + b'0')
        .collect::<Vec<_>>();
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    fails(&Tar::default().pax(b'x', &records).file("a", &endless).end());
    fails(
        &Tar::default()
            .pax(b'x', &records)
            .file("a", b"999999999\n")
            .end(),
    );
}

#[test]
fn a_hole_of_a_terabyte() {
    let records: [(&str, &[u8]); 2] = [
        ("GNU.sparse.map", b"0,1"),
        ("GNU.sparse.size", b"1099511627776"),
    ];
    let error = fails(&Tar::default().pax(b'x', &records).file("a", b"x").end());
    assert!(matches!(
        error,
        Error::Limit {
            what: "bytes of sparse files",
            ..
        }
    ));
}

#[test]
fn headers_of_nonsense() {
    fails(&noise(9, 5000));
    fails(&[&[0; 512][..], &noise(9, 512)].concat());
    fails(&Tar::default().entry(b'Z', b"a", b"", b"").end());
    fails(
        &Tar::default()
            .entry(b'x', b"a", b"", b"7 a=b\n")
            .file("a", b"")
            .end(),
    );
}

#[test]
fn more_than_the_limits() {
    let tar = Tar::default()
        .file("a", &noise(1, 100_000))
        .file("b", b"")
        .end();
    let with = |limits| {
        try_convert(
            &tar,
            &Options::default().with_limits(limits).with_chunk_size(1000),
        )
    };
    assert!(with(Limits::default()).is_ok());
    for limits in [
        Limits::default().with_max_entries(50),
        Limits::default().with_max_source_bytes(100_000),
        Limits::default().with_max_json_bytes(5000),
    ] {
        assert!(matches!(with(limits), Err(Error::Limit { .. })));
    }
}

/// A tar of empty files, each made as it is read.
struct EmptyFiles {
    numbers: std::ops::Range<usize>,
    block: io::Cursor<Vec<u8>>,
}

impl EmptyFiles {
    fn new(count: usize) -> Self {
        Self {
            numbers: 0..count,
            block: io::Cursor::default(),
        }
    }
}

impl Read for EmptyFiles {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.block.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        let Some(number) = self.numbers.next() else {
            return Ok(0);
        };
        let name = format!("{}/{}/{number}", number % 100, number / 1000);
        self.block = io::Cursor::new(Tar::default().file(&name, b"").bytes);
        self.block.read(buffer)
    }
}

#[test]
fn a_hundred_thousand_files_are_listed_and_a_million_are_too_many() {
    let mut out = Vec::new();
    let written = write(
        EmptyFiles::new(120_000),
        &mut out,
        &Options::fast(),
        &pool(2),
    )
    .unwrap();
    // With the landmark.
    assert_eq!((written.entries, written.chunks), (120_001, 1));
    let error = write(
        EmptyFiles::new(1_000_001),
        io::sink(),
        &Options::fast(),
        &pool(2),
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                what: "bytes of TOC",
                limit: 157_286_400
            }
        ),
        "{error}"
    );
}

#[test]
fn invalid_options_are_refused() {
    use estargz::write::{Compression, TocPlacement};
    let base = Options::default();
    for options in [
        base.clone().with_chunk_size(0),
        base.clone().with_chunk_size(u32::MAX),
        base.clone().with_compression(Compression::Gzip(13)),
        base.clone().with_compression(Compression::Zstd(0)),
        base.with_compression(Compression::Zstd(3))
            .with_toc(TocPlacement::External),
    ] {
        assert!(matches!(try_convert(b"", &options), Err(Error::Options(_))));
    }
}

/// Fails when it is read to its end.
struct Failing<'t>(&'t [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone")),
            read => Ok(read),
        }
    }
}

#[test]
fn a_source_that_fails_stops_the_work_and_frees_the_pool() {
    let tar = Tar::default().file("a", &noise(1, 30 << 20)).bytes;
    let pool = pool(2);
    for _ in 0..3 {
        let error = write(
            Failing(&tar[..20 << 20]),
            io::sink(),
            &Options::fast(),
            &pool,
        )
        .unwrap_err();
        assert!(
            matches!(error, Error::Source(error) if error.kind() == io::ErrorKind::ConnectionReset)
        );
    }
    let whole = write(&tar[..], io::sink(), &Options::fast(), &pool).unwrap();
    assert_eq!(whole.source_size, tar.len() as u64);
}

/// Takes some bytes and then no more.
struct Full(usize);

impl io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_is_full() {
    let tar = Tar::default().file("a", &noise(1, 10 << 20)).end();
    let error = write(&tar[..], Full(3 << 20), &Options::fast(), &pool(2)).unwrap_err();
    assert!(matches!(error, Error::Output(error) if error.kind() == io::ErrorKind::StorageFull));
}
