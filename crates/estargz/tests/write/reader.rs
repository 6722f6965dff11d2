//! The reader reads the blobs of the writer.

use estargz::footer::{self, Footer};
use estargz::toc::{self, Toc, UnverifiedToc};
use estargz::write::{Options, Written};

use crate::layout::all_options;
use crate::support::{convert, every_type, read_back};

fn cut(blob: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn open(blob: &[u8], written: &Written) -> Toc {
    let size = blob.len() as u64;
    let footer = Footer::parse(cut(blob, footer::tail_range(size)), size).unwrap();
    let section = match &written.external_toc {
        Some(external) => external,
        None => cut(blob, footer.toc_range().unwrap()),
    };
    let toc = UnverifiedToc::parse(section, &footer, &toc::Limits::default()).unwrap();
    assert_eq!(
        written
            .zstd_manifest_checksum
            .unwrap_or(toc.section_digest()),
        toc.section_digest()
    );
    toc.verify(&written.toc_digest).unwrap()
}

fn check(source: &[u8], options: &Options) {
    let (blob, written) = convert(source, options);
    let toc = open(&blob, &written);
    for (path, content) in read_back(&blob, &written, options).contents {
        // The TOC's text has a replacement character where the reader has the byte itself.
        let path = path.replace('\u{fffd}', "\x00").into_bytes();
        let path: Vec<u8> = path
            .iter()
            .map(|byte| if *byte == 0 { 0xe9 } else { *byte })
            .collect();
        let node = toc.lookup(&path).unwrap();
        assert_eq!(node.size(), content.len() as u64);
        let chunks = node
            .chunks()
            .map(|chunk| chunk.decode(cut(&blob, chunk.range.clone())).unwrap());
        assert_eq!(chunks.collect::<Vec<_>>().concat(), content);
    }
    assert_eq!(
        toc.lookup("etc/hard").unwrap().id(),
        toc.lookup("etc/passwd").unwrap().id()
    );
}

#[test]
fn every_layout_is_read_by_the_reader() {
    for options in all_options() {
        check(&every_type(), &options);
    }
}
