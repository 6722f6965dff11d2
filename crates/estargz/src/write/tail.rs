//! The end of a blob, after the source: sparse files written out, the landmark, the TOC, the
//! footer.

use std::io::Write;

use super::blob::Blob;
use super::source::Source;
use super::{
    Compression, Error, LANDMARK_CONTENT, Landmark, Layout, NO_PREFETCH_LANDMARK, Options,
    TOC_NAME, TocPlacement, Written,
};
use crate::digest::Digest;
use crate::footer;
use crate::pool::Encoder;
use crate::tar::{self, BLOCK, END_MARKER, Header, build};

/// The first bytes of a frame that decoders skip (RFC 8878, section 3.1.2).
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// The place of a TOC.
#[derive(Debug, Default)]
struct Placed {
    external: Option<Vec<u8>>,
    zstd_position: Option<String>,
    zstd_checksum: Option<Digest>,
}

/// Completes the blob.
pub(super) fn finish<W: Write>(
    mut blob: Blob<'_, W>,
    source: &Source,
    options: &Options,
) -> Result<Written, Error> {
    if options.layout == Layout::SourceFirst && options.toc == TocPlacement::Inside {
        hidden_entries(&mut blob, source, options)?;
    }
    let toc = blob.finish_toc()?;
    let toc_digest = Digest::of(&toc.json);
    let placed = match (options.toc, options.compression) {
        (TocPlacement::External, _) => external(&mut blob, toc.json, options)?,
        (TocPlacement::Inside, Compression::Gzip(_)) => gzip(&mut blob, toc.json)?,
        (TocPlacement::Inside, Compression::Zstd(_)) => zstd(&mut blob, &toc.json, options)?,
    };
    let (blob, stream) = blob.finish()?;
    Ok(Written {
        blob_digest: blob.digest(),
        blob_size: blob.size(),
        diff_id: stream.digest(),
        uncompressed_size: stream.size(),
        source_diff_id: source.diff_id,
        source_size: source.size,
        toc_digest,
        external_toc: placed.external,
        zstd_manifest_position: placed.zstd_position,
        zstd_manifest_checksum: placed.zstd_checksum,
        entries: toc.entries,
        chunks: toc.chunks,
    })
}

/// Adds the landmark against prefetching.
pub(super) fn landmark<W: Write>(blob: &mut Blob<'_, W>) -> Result<(), Error> {
    let size = LANDMARK_CONTENT.len() as u64;
    blob.gap(&build::file_header(NO_PREFETCH_LANDMARK, size))?;
    blob.file(&Header::plain_file(NO_PREFETCH_LANDMARK, size), |buffer| {
        buffer.copy_from_slice(LANDMARK_CONTENT);
        Ok(())
    })?;
    blob.gap(&[0; BLOCK][..tar::padding(size)])
}

/// Adds the entries that no extractor sees, because they follow the end marker of the source.
fn hidden_entries<W: Write>(
    blob: &mut Blob<'_, W>,
    source: &Source,
    options: &Options,
) -> Result<(), Error> {
    blob.gap(&END_MARKER[..source.missing.min(END_MARKER.len())])?;
    // A source without its last padding lacks more than the marker. One with trailing garbage may
    // end anywhere.
    blob.gap(&[0; BLOCK][..tar::padding(blob.stream().size())])?;
    let unlisted = |path: &[u8]| !blob.toc().lists(path);
    let sparse: Vec<bool> = source
        .sparse
        .iter()
        .map(|file| file.header.path.as_slice())
        .map(unlisted)
        .collect();
    blob.toc().end_source();
    for (file, _) in source
        .sparse
        .iter()
        .zip(sparse)
        .filter(|(_, is_last)| *is_last)
    {
        let mut content = file.unfold()?;
        blob.gap(&build::plain(&file.header))?;
        blob.file(&file.header, |buffer| {
            content.fill(buffer).map_err(Error::Source)
        })?;
        blob.gap(&[0; BLOCK][..tar::padding(file.header.size)])?;
    }
    if options.landmark == Landmark::NoPrefetch {
        landmark(blob)?;
    }
    Ok(())
}

/// Makes the tar entry of the TOC and the end of the archive, in the memory of the JSON.
fn toc_entry(mut json: Vec<u8>) -> Vec<u8> {
    let size = json.len() as u64;
    json.resize(json.len() + tar::padding(size) + END_MARKER.len(), 0);
    json.splice(..0, build::file_header(TOC_NAME, size));
    json
}

fn gzip<W: Write>(blob: &mut Blob<'_, W>, json: Vec<u8>) -> Result<Placed, Error> {
    let offset = blob.member(&toc_entry(json))?;
    blob.verbatim(&footer::gzip(offset))?;
    Ok(Placed::default())
}

fn external<W: Write>(
    blob: &mut Blob<'_, W>,
    json: Vec<u8>,
    options: &Options,
) -> Result<Placed, Error> {
    if options.layout == Layout::Classic {
        blob.gap(&END_MARKER)?;
    }
    blob.verbatim(&footer::external())?;
    let toc = compress(options.compression, &toc_entry(json))?;
    Ok(Placed {
        external: Some(toc),
        ..Placed::default()
    })
}

fn zstd<W: Write>(blob: &mut Blob<'_, W>, json: &[u8], options: &Options) -> Result<Placed, Error> {
    blob.gap(&END_MARKER)?;
    let manifest = compress(options.compression, json)?;
    let (compressed, raw) = (manifest.len() as u64, json.len() as u64);
    let frame = skippable(&manifest)?;
    let offset = blob.flush()? + (frame.len() - manifest.len()) as u64;
    blob.verbatim(&frame)?;
    blob.verbatim(&skippable(&footer::zstd_chunked(offset, compressed, raw))?)?;
    Ok(Placed {
        zstd_position: Some(format!("{offset}:{compressed}:{raw}:1")),
        zstd_checksum: Some(Digest::of(&manifest)),
        external: None,
    })
}

fn compress(compression: Compression, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    Ok(Encoder::new(compression)?.encode_text(bytes)?)
}

fn skippable(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let too_long = |_| Error::Limit {
        what: "bytes of TOC",
        limit: u64::from(u32::MAX),
    };
    let length = u32::try_from(payload.len()).map_err(too_long)?;
    Ok([&SKIPPABLE_MAGIC, &length.to_le_bytes()[..], payload].concat())
}
