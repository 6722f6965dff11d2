//! Sparse files in the four formats that GNU tar writes (see golden/README.md).

use std::io::Read;

use estargz::write::{Compression, Error, Layout, Options, TocPlacement};

use crate::support::{Tar, convert, read_back, stream, try_convert};

const SOURCES: [(&str, &[u8]); 4] = [
    ("gnu", include_bytes!("golden/sparse-gnu.tar.gz")),
    ("0.0", include_bytes!("golden/sparse-0.0.tar.gz")),
    ("0.1", include_bytes!("golden/sparse-0.1.tar.gz")),
    ("1.0", include_bytes!("golden/sparse-1.0.tar.gz")),
];

/// SHA-256 of the file that was archived.
const DIGEST: &str = "sha256:c6ffe84117eb6b6a31cb002e83acfcbdaa9eec1ee69afecafd65798313fe3deb";

fn source(compressed: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(compressed)
        .read_to_end(&mut tar)
        .unwrap();
    tar
}

#[test]
fn holes_are_zeros_in_every_format() {
    for (format, compressed) in SOURCES {
        let source = source(compressed);
        for compression in [Compression::Gzip(6), Compression::Zstd(3)] {
            for layout in [Layout::SourceFirst, Layout::Classic] {
                let options = Options::default()
                    .with_layout(layout)
                    .with_compression(compression)
                    .with_chunk_size(100_000);
                let (blob, written) = convert(&source, &options);
                let listed = read_back(&blob, &written, &options);
                assert_eq!(listed.entry("holes")["digest"], DIGEST, "{format}");
                assert_eq!(listed.entry("holes")["modtime"], "2023-11-14T22:13:20Z");
                assert_eq!(listed.contents["after"], b"after");
                assert_eq!(listed.entry("z-link")["linkName"], "holes");
                let is_prefix = stream(&blob, compression).starts_with(&source);
                assert_eq!(is_prefix, layout == Layout::SourceFirst);
            }
        }
    }
}

#[test]
fn the_last_of_a_path_wins_whether_sparse_or_not() {
    let sparse = source(SOURCES[3].1);
    let entries =
        &sparse[..sparse.len() - sparse.iter().rev().take_while(|byte| **byte == 0).count()];
    let mut entries = entries.to_vec();
    entries.resize(entries.len().next_multiple_of(512), 0);
    let plain = Tar::default().file("./holes", b"plain").bytes;
    let options = Options::default();

    // A hard link to the replaced file comes last.
    let (linked, entries) = (entries.clone(), &entries[..entries.len() - 512]);
    let refused = [&linked[..], &plain, &[0; 1024]].concat();
    assert!(matches!(
        try_convert(&refused, &options),
        Err(Error::Path { .. })
    ));
    let later_plain = [entries, &plain, &[0; 1024]].concat();
    let (blob, written) = convert(&later_plain, &options);
    let listed = read_back(&blob, &written, &options);
    assert_eq!(listed.contents["./holes"], b"plain");
    assert!(!listed.names().contains(&"holes"));

    let later_sparse = [&plain[..], entries, entries, &[0; 1024]].concat();
    let (blob, written) = convert(&later_sparse, &options);
    let listed = read_back(&blob, &written, &options);
    assert_eq!(listed.entry("holes")["digest"], DIGEST);
    assert!(!listed.names().contains(&"./holes"));
}

#[test]
fn an_external_toc_cannot_list_sparse_files() {
    let options = Options::default().with_toc(TocPlacement::External);
    assert!(matches!(
        try_convert(&source(SOURCES[0].1), &options),
        Err(Error::SparseExternal)
    ));
}
