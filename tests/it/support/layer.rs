//! Generated layers, as eStargz.

use std::io::Read as _;
use std::num::NonZeroUsize;

use bytes::Bytes;
use estargz::pool::Pool;
use estargz::write::{Landmark, Options, write};
use starlift::oci::Digest;

use super::image::Random;

/// Small enough that a file of one megabyte has many chunks.
pub(crate) const CHUNK: usize = 64 << 10;

/// A layer of files, as eStargz.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Bytes,
    pub(crate) digest: Digest,
    pub(crate) toc_digest: Digest,
    /// Path and content, in the order of the blob.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Layer {
    /// Creates files of these sizes, `file0`, `file1`, …, whose bytes cannot be compressed.
    pub(crate) fn random(seed: u64, sizes: &[usize]) -> Self {
        let mut random = Random::new(seed);
        let file = |(number, size): (usize, &usize)| (format!("file{number}"), random.bytes(*size));
        Self::of(sizes.iter().enumerate().map(file).collect())
    }

    /// Creates files of one chunk each, whose bytes cannot be compressed.
    pub(crate) fn of_large_chunks(count: usize, chunk: usize) -> Self {
        // Deflate looks back 32 KiB.
        let block = Random::new(1).bytes(1 << 20);
        let mut tar = tar::Builder::new(Vec::new());
        let mut files = Vec::new();
        for number in 0..count {
            let mut content: Vec<u8> = block.repeat(chunk / block.len());
            content[..8].copy_from_slice(&number.to_le_bytes());
            let mut header = tar::Header::new_ustar();
            header.set_size(chunk as u64);
            header.set_mode(0o644);
            let path = format!("file{number}");
            tar.append_data(&mut header, &path, content.as_slice())
                .unwrap();
            files.push((path, content));
        }
        let options = Options::default().with_chunk_size(u32::try_from(chunk).unwrap());
        Self {
            files,
            ..Self::written_with(&tar.into_inner().unwrap(), &options)
        }
    }

    /// Creates the same files twice: without any extended attribute, and with one. The agent has a
    /// mount for each kind.
    pub(crate) fn of_both_kinds(seed: u64, sizes: &[usize]) -> [Self; 2] {
        let plain = Self::random(seed, sizes);
        let with_xattr = Self::with_xattrs(plain.files.clone(), &[("user.test", b"1")]);
        [plain, with_xattr]
    }

    pub(crate) fn of(files: Vec<(String, Vec<u8>)>) -> Self {
        Self::with_xattrs(files, &[])
    }

    /// Creates a layer whose first file has these extended attributes.
    pub(crate) fn with_xattrs(files: Vec<(String, Vec<u8>)>, xattrs: &[(&str, &[u8])]) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        if !xattrs.is_empty() {
            let named: Vec<_> = xattrs
                .iter()
                .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
                .collect();
            let records = named.iter().map(|(name, value)| (name.as_str(), *value));
            tar.append_pax_extensions(records).unwrap();
        }
        for (path, content) in &files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_600_000_000);
            tar.append_data(&mut header, path, content.as_slice())
                .unwrap();
        }
        Self {
            files,
            ..Self::of_tar(&tar.into_inner().unwrap())
        }
    }

    /// Creates a layer in which the files before `.prefetch.landmark` are to be prefetched.
    pub(crate) fn with_landmark(files: Vec<(String, Vec<u8>)>) -> Self {
        let plain = Self::of(files);
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&*plain.blob)
            .read_to_end(&mut tar)
            .unwrap();
        let options = Options::default().with_landmark(Landmark::InSource);
        Self {
            files: plain.files,
            ..Self::written(&tar, &options)
        }
    }

    pub(crate) fn of_tar(tar: &[u8]) -> Self {
        Self::written(tar, &Options::default())
    }

    fn written(tar: &[u8], options: &Options) -> Self {
        Self::written_with(
            tar,
            &options
                .clone()
                .with_chunk_size(u32::try_from(CHUNK).unwrap()),
        )
    }

    fn written_with(tar: &[u8], options: &Options) -> Self {
        let mut blob = Vec::new();
        let pool = Pool::new(NonZeroUsize::MIN, 64 << 20);
        let written = write(tar, &mut blob, options, &pool).unwrap();
        let toc_digest = written.toc_digest.to_string().parse().unwrap();
        Self {
            digest: Digest::sha256_of(&blob),
            blob: blob.into(),
            toc_digest,
            files: Vec::new(),
        }
    }
}
