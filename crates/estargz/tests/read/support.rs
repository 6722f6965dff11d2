//! Small blobs made by hand, with TOCs that no writer would write.

use std::io::Write;

use estargz::footer::{self, Footer};
use estargz::toc::{Limits, Toc, TocError, UnverifiedToc};

/// Bytes before the TOC in every blob of [`footer_for`].
pub(crate) const PAYLOAD: u64 = 1000;

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive with one file.
pub(crate) fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}

pub(crate) fn section_of(json: &str) -> Vec<u8> {
    gzip(&tar_of("stargz.index.json", json.as_bytes()))
}

/// The footer of a blob with [`PAYLOAD`] bytes before a TOC's section of this length.
pub(crate) fn footer_for(section: &[u8]) -> Footer {
    let blob_size = PAYLOAD + section.len() as u64 + 51;
    let tail = [vec![0; 21].as_slice(), &footer::gzip(PAYLOAD)].concat();
    Footer::parse(&tail, blob_size).unwrap()
}

pub(crate) fn parse(json: &str, limits: &Limits) -> Result<Toc, TocError> {
    let section = section_of(json);
    let unverified = UnverifiedToc::parse(&section, &footer_for(&section), limits)?;
    let digest = unverified.digest();
    unverified.verify(&digest)
}

/// The TOC with these entries, given as JSON objects.
pub(crate) fn entries(objects: &[&str]) -> Result<Toc, TocError> {
    parse(
        &format!(r#"{{"version":1,"entries":[{}]}}"#, objects.join(",")),
        &Limits::default(),
    )
}

/// A regular file of one chunk as a JSON object.
pub(crate) fn file(name: &str, offset: u64) -> String {
    let digest = format!("sha256:{}", "0".repeat(64));
    format!(
        r#"{{"name":"{name}","type":"reg","size":5,"offset":{offset},"chunkDigest":"{digest}"}}"#
    )
}
