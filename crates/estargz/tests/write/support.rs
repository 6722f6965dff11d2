//! Tars made by hand, and a reader of blobs that shares no code with the crate.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::num::NonZeroUsize;

use base64::Engine as _;
use estargz::Digest;
use estargz::pool::Pool;
use estargz::write::{Compression, Error, Options, Written, write};
use serde_json::Value;

/// A tar under construction, header by header.
#[derive(Default)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
}

impl Tar {
    /// An entry with a plain ustar header.
    pub(crate) fn entry(mut self, kind: u8, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        self.header(kind, name, link, content.len(), b"ustar\x0000");
        self.padded(content);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(b'0', name.as_bytes(), b"", content)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", b"")
    }

    /// A pax header for the next entry (`x`) or all later ones (`g`).
    pub(crate) fn pax(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (body + 1..)
                .find(|length| body + length.to_string().len() == *length)
                .unwrap();
            write!(text, "{length} {key}=").unwrap();
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(kind, b"PaxHeader", b"", &text)
    }

    pub(crate) fn header(
        &mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        size: usize,
        magic: &[u8; 8],
    ) {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000755\0");
        block[108..116].copy_from_slice(b"0001750\0");
        block[116..124].copy_from_slice(b"0001750\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"14513246400\0");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(magic);
        block[265..268].copy_from_slice(b"app");
        block[297..300].copy_from_slice(b"grp");
        if kind == b'3' || kind == b'4' {
            block[329..337].copy_from_slice(b"0000010\0");
            block[337..345].copy_from_slice(b"0000003\0");
        }
        seal(&mut block);
        self.bytes.extend_from_slice(&block);
    }

    pub(crate) fn padded(&mut self, content: &[u8]) {
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    /// The archive with its end marker.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// Writes the checksum into a header block.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap(), 16 << 20)
}

pub(crate) fn try_convert(tar: &[u8], options: &Options) -> Result<(Vec<u8>, Written), Error> {
    let mut blob = Vec::new();
    let written = write(tar, &mut blob, options, &pool(2))?;
    Ok((blob, written))
}

pub(crate) fn convert(tar: &[u8], options: &Options) -> (Vec<u8>, Written) {
    try_convert(tar, options).unwrap()
}

/// The whole decompressed stream.
pub(crate) fn stream(blob: &[u8], compression: Compression) -> Vec<u8> {
    let mut stream = Vec::new();
    match compression {
        Compression::Gzip(_) => {
            flate2::read::MultiGzDecoder::new(blob)
                .read_to_end(&mut stream)
                .unwrap();
        }
        Compression::Zstd(_) => zstd::stream::copy_decode(blob, &mut stream).unwrap(),
    }
    stream
}

/// The member at `offset`, and nothing after it.
pub(crate) fn member(blob: &[u8], offset: usize, compression: Compression) -> Vec<u8> {
    let mut content = Vec::new();
    match compression {
        Compression::Gzip(_) => {
            flate2::bufread::GzDecoder::new(&blob[offset..])
                .read_to_end(&mut content)
                .unwrap();
        }
        Compression::Zstd(_) => {
            let frame = zstd::stream::read::Decoder::with_buffer(&blob[offset..]).unwrap();
            frame.single_frame().read_to_end(&mut content).unwrap();
        }
    }
    content
}

/// The TOC's exact bytes.
pub(crate) fn toc_json(blob: &[u8], written: &Written, compression: Compression) -> Vec<u8> {
    let number =
        |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    if let Some(external) = &written.external_toc {
        return tar_content(&member(external, 0, compression));
    }
    match compression {
        Compression::Gzip(_) => {
            let footer = &blob[blob.len() - 51..];
            let offset = std::str::from_utf8(&footer[16..32]).unwrap();
            tar_content(&member(
                blob,
                usize::from_str_radix(offset, 16).unwrap(),
                compression,
            ))
        }
        Compression::Zstd(_) => {
            let footer = &blob[blob.len() - 40..];
            member(blob, number(&footer[..8]), compression)
        }
    }
}

fn tar_content(tar: &[u8]) -> Vec<u8> {
    let size = usize::from_str_radix(std::str::from_utf8(&tar[124..135]).unwrap(), 8).unwrap();
    assert_eq!(&tar[..17], b"stargz.index.json");
    tar[512..512 + size].to_vec()
}

/// The entries of a blob by name, and the content of its files.
pub(crate) struct Listed {
    pub(crate) entries: Vec<Value>,
    pub(crate) contents: BTreeMap<String, Vec<u8>>,
}

/// Reads every file of a blob chunk by chunk, each member separately, and checks every digest.
pub(crate) fn read_back(blob: &[u8], written: &Written, options: &Options) -> Listed {
    let json = toc_json(blob, written, options.compression);
    assert_eq!(Digest::of(&json), written.toc_digest);
    let toc: Value = serde_json::from_slice(&json).unwrap();
    let entries = toc["entries"].as_array().cloned().unwrap_or_default();
    let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut digests = Vec::new();
    let mut last_offset = 0;
    for entry in &entries {
        let name = entry["name"].as_str().unwrap().to_owned();
        let is_file = entry["type"] == "reg" || entry["type"] == "chunk";
        if !is_file || entry["chunkDigest"].is_null() {
            if is_file {
                assert!(contents.insert(name, Vec::new()).is_none());
            }
            continue;
        }
        let at = |key: &str| usize::try_from(entry[key].as_u64().unwrap_or(0)).unwrap();
        assert!(at("offset") >= last_offset, "offsets ascend");
        last_offset = at("offset");
        if entry["type"] == "reg" {
            assert!(
                contents.insert(name.clone(), Vec::new()).is_none(),
                "{name} is listed once"
            );
            digests.push((name.clone(), entry["digest"].clone(), at("size")));
        }
        let content = contents.get_mut(&name).unwrap();
        assert_eq!(at("chunkOffset"), content.len());
        let left = digests.last().unwrap().2 - content.len();
        let size = if at("chunkSize") > 0 {
            at("chunkSize")
        } else {
            left
        };
        let inflated = member(blob, at("offset"), options.compression);
        let chunk = &inflated[at("innerOffset")..at("innerOffset") + size];
        assert_eq!(entry["chunkDigest"], Digest::of(chunk).to_string());
        if options.min_chunk_size == 0 {
            assert_eq!(
                inflated.len(),
                chunk.len(),
                "a chunk's member holds the chunk alone"
            );
        }
        content.extend_from_slice(chunk);
    }
    for (name, digest, size) in digests {
        assert_eq!(contents[&name].len(), size);
        assert_eq!(digest, Digest::of(&contents[&name]).to_string(), "{name}");
    }
    Listed { entries, contents }
}

impl Listed {
    pub(crate) fn entry(&self, name: &str) -> &Value {
        self.entries
            .iter()
            .find(|entry| entry["name"] == name)
            .unwrap()
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.entries
            .iter()
            .filter(|entry| entry["type"] != "chunk")
            .map(|entry| entry["name"].as_str().unwrap())
            .collect()
    }
}

pub(crate) fn from_base64(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD
        .decode(value.as_str().unwrap())
        .unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// One small tar with an entry of every type that a layer can hold.
pub(crate) fn every_type() -> Vec<u8> {
    let mut tar = Tar::default()
        .pax(b'g', &[("comment", b"for all")])
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/empty", b"")
        .entry(b'2', b"etc/link", b"passwd", b"")
        .entry(b'1', b"etc/hard", b"etc/passwd", b"")
        .entry(b'1', b"etc/dangling", b"no/such", b"")
        .entry(b'3', b"dev/null", b"", b"")
        .entry(b'4', b"dev/sda", b"", b"")
        .entry(b'6', b"dev/fifo", b"", b"")
        .entry(b'7', b"contiguous", b"", b"in one piece")
        .pax(
            b'x',
            &[
                ("SCHILY.xattr.user.bin", b"\0\xff=\n"),
                ("mtime", b"1700000000.75"),
                ("uid", b"3000000"),
            ],
        )
        .file("bin/attributes", b"#!")
        .entry(
            b'L',
            b"././@LongLink",
            b"",
            &[&[b'n'; 300][..], b"\0"].concat(),
        )
        .file("short", b"long name")
        .entry(b'0', b"latin-\xe9", b"", b"not UTF-8")
        .entry(b'2', b"to-latin", b"latin-\xe9", b"")
        .file("twice", b"first")
        .file("etc/.wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("twice", b"second");
    tar.header(0, b"old/", b"", 0, &[0; 8]);
    tar = tar
        .file("large", &noise(7, 300_000))
        .file("stargz.index.json", b"{}")
        .file(".no.prefetch.landmark", b"?");
    tar.end()
}
