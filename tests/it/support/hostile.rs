//! Inputs of the greatest size that is accepted, made to cost as much memory as they can.

use std::fmt::Write as _;
use std::io::Write as _;

use bytes::Bytes;
use estargz::footer;
use serde_json::json;
use starlift::oci::{Digest, media_type};

use super::image::Image;
use super::lazy::Layer;

/// The largest manifest, index, page of tags or page of referrers that is read.
pub(crate) const DOCUMENT: usize = 4 << 20;
/// The largest configuration of an image.
pub(crate) const CONFIGURATION: usize = 8 << 20;
/// The largest JSON of a TOC.
const TOC: usize = 150 << 20;

/// Returns `pieces` between `start` and `end`, as many as fit into `length` bytes.
pub(crate) fn filled(
    length: usize,
    start: &str,
    end: &str,
    mut piece: impl FnMut(usize, &mut String),
) -> String {
    let mut text = start.to_owned();
    let mut next = String::new();
    for number in 0.. {
        next.clear();
        piece(number, &mut next);
        if text.len() + next.len() + 1 + end.len() > length {
            break;
        }
        if number > 0 {
            text.push(',');
        }
        text.push_str(&next);
    }
    text.push_str(end);
    text
}

/// Returns the descriptor of a document that does not exist.
pub(crate) fn descriptor(media_type: &str, number: usize) -> String {
    let digest = Digest::sha256_of(&number.to_le_bytes());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1000}}"#)
}

/// Returns artifacts of the greatest size, which pass through.
pub(crate) fn artifacts(count: usize) -> impl Iterator<Item = String> {
    let empty = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" });
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/vnd.example.large",
        "config": empty,
        "layers": [empty],
        "annotations": { "number": "NUMBER", "text": "x".repeat(DOCUMENT - 1000) },
    });
    let text = artifact.to_string();
    (0..count).map(move |number| text.replacen("NUMBER", &number.to_string(), 1))
}

/// Returns an index of the greatest size, with as many children as fit.
pub(crate) fn wide_index(first: usize) -> String {
    let start = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#,
        media_type::OCI_INDEX
    );
    filled(DOCUMENT, &start, "]}", |number, text| {
        text.push_str(&descriptor(media_type::OCI_MANIFEST, first + number));
    })
}

/// Returns an image manifest of the greatest size, with as many small values as fit into it.
pub(crate) fn wide_manifest(seed: usize) -> String {
    let config = descriptor(media_type::OCI_CONFIG, seed);
    let layer = descriptor(media_type::OCI_LAYER_GZIP, seed + 1);
    let start = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{config},"layers":[{layer}],"annotations":{{"#,
        media_type::OCI_MANIFEST
    );
    filled(DOCUMENT, &start, "}}", |number, text| {
        write!(text, r#""{number:x}":"""#).unwrap();
    })
}

/// Returns `image` with a configuration of the greatest size, of many values.
pub(crate) fn with_wide_configuration(image: &Image) -> Image {
    let mut text = String::from_utf8(image.blobs[0].to_vec()).unwrap();
    text.pop();
    text.push_str(",\"x\":[");
    let config = Bytes::from(filled(CONFIGURATION, &text, "]}", |_, text| text.push('0')));
    let mut document = image.document();
    document["config"]["digest"] = Digest::sha256_of(&config).to_string().into();
    document["config"]["size"] = config.len().into();
    let mut changed = image.clone();
    changed.blobs[0] = config;
    Image {
        bytes: document.to_string().into(),
        ..changed
    }
}

/// The content of a TOC of the greatest size.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Full {
    /// Files with an attribute each.
    Attributes,
    /// Chunks of one file, all in one member.
    Chunks,
}

/// Returns a layer with a TOC of the greatest size.
pub(crate) fn largest_toc(full: Full) -> Layer {
    match full {
        Full::Attributes => {
            let json = toc(|number, text| {
                write!(
                    text,
                    r#"{{"name":"f{number:060}","type":"reg","modtime":"2020-01-01T00:00:00Z","mode":420,"xattrs":{{"user.{number:06}":"eA=="}}}}"#
                )
                .unwrap();
            });
            blob(b"payload", &json)
        }
        Full::Chunks => {
            let (digest, mut count) = (estargz::Digest::of(b"x"), 0);
            let json = toc(|number, text| {
                let kind = if number == 0 { SIZED } else { r#""chunk""# };
                write!(
                    text,
                    r#"{{"name":"f","type":{kind},"offset":0,"chunkOffset":{number},"chunkSize":1,"chunkDigest":"{digest}","innerOffset":{number}}}"#
                )
                .unwrap();
                count = number;
            });
            let size = format!("{}{count:>7}", SIZED.trim_end_matches('0'));
            blob(&vec![b'x'; count], &json.replacen(SIZED, &size, 1))
        }
    }
}

/// The type of the first entry of a file, and room for the file's size.
const SIZED: &str = r#""reg","size":0000000"#;

fn toc(entry: impl FnMut(usize, &mut String)) -> String {
    filled(TOC, r#"{"version":1,"entries":["#, "]}", entry)
}

/// Returns the tar of this many empty files.
pub(crate) fn tar_of(entries: usize) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    let mut tar = Vec::with_capacity((entries + 2) * 512);
    for number in 0..entries {
        header.set_path(format!("f{number:040}")).unwrap();
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
    }
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// Returns an eStargz blob with this payload and this TOC.
fn blob(payload: &[u8], json: &str) -> Layer {
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(json.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "stargz.index.json", json.as_bytes())
        .unwrap();
    let mut blob = gzip(payload);
    let offset = blob.len() as u64;
    blob.extend_from_slice(&gzip(&tar.into_inner().unwrap()));
    blob.extend_from_slice(&footer::gzip(offset));
    Layer {
        digest: Digest::sha256_of(&blob),
        blob: blob.into(),
        toc_digest: Digest::sha256_of(json.as_bytes()),
        files: Vec::new(),
    }
}
