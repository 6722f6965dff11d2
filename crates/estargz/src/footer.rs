//! Reads and writes the footer: the last bytes of a blob, with the position of its TOC. All forms
//! in use.

use std::ops::Range;

use crate::codec::Codec;

/// Length of the eStargz footer.
const GZIP_LEN: usize = 51;
/// Length of the footer of the older stargz, whose extra field has no subfield header.
const LEGACY_LEN: usize = 47;
/// Length of the footer of a blob whose TOC is a separate blob.
const EXTERNAL_LEN: usize = 46;
/// Length of the zstd:chunked footer, without the header of the skippable frame around it.
const ZSTD_LEN: usize = 40;
/// Length of the zstd:chunked footer that also names tar-split data (containers/storage since
/// 2024).
const ZSTD_TAR_SPLIT_LEN: usize = 64;
/// Magic and little-endian length, before the payload of a skippable zstd frame (RFC 8878, section
/// 3.1.2).
pub(crate) const SKIPPABLE_HEADER: usize = 8;
/// The longest footer: the newer zstd:chunked one within its skippable frame.
const MAX_LEN: usize = ZSTD_TAR_SPLIT_LEN + SKIPPABLE_HEADER;

/// Gzip magic, deflate, FEXTRA, no time, no flags, unknown system.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
/// One final stored block of no bytes, then the checksum and the size of nothing.
const GZIP_END: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
const STARGZ: &[u8] = b"STARGZ";
const EXTERNAL: &[u8] = b"STARGZEXTERNALTOC";
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// As stargz-snapshotter and the first containers/storage write it.
const ZSTD_MAGIC: [u8; 8] = *b"GnUlInUx";
/// As containers/storage has written it since.
const ZSTD_MAGIC_NEWER: [u8; 8] = *b"GNUlInUx";
/// The only kind of zstd:chunked manifest: a TOC in JSON.
const ZSTD_MANIFEST_CRFS: u64 = 1;

/// Why the end of a blob is not a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FooterError {
    /// There is no footer of a known form.
    #[error("blob does not end with a footer of eStargz, stargz or zstd:chunked")]
    NotAFooter,
    /// The bytes are not those of [`tail_range`].
    #[error("{got} bytes given for the tail of a blob of {blob_size} bytes, {wanted} needed")]
    WrongTail {
        /// Bytes that were given.
        got: usize,
        /// Bytes that are needed.
        wanted: u64,
        /// Bytes of the blob.
        blob_size: u64,
    },
    /// The footer refers to bytes outside the blob.
    #[error(
        "footer places the TOC at bytes {start} to {end}, outside the first {limit} bytes of the blob"
    )]
    TocOutside {
        /// The first byte of the TOC.
        start: u64,
        /// The byte after the TOC.
        end: u64,
        /// The end of the part of the blob that the TOC can be in.
        limit: u64,
    },
    /// A zstd:chunked footer refers to a manifest of another type than a TOC.
    #[error("footer has a zstd:chunked manifest of the unknown type {0}")]
    UnknownManifest(u64),
}

/// The form of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// eStargz with the TOC in the blob.
    Estargz,
    /// The format before eStargz; its TOC may lack digests.
    LegacyStargz,
    /// eStargz with the TOC in a separate blob.
    ExternalToc,
    /// zstd:chunked.
    ZstdChunked,
}

/// A footer whose positions lie within the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    form: Form,
    toc: Option<Range<u64>>,
    payload_end: u64,
    start: u64,
    toc_json_size: Option<u64>,
}

/// The bytes of a blob that [`Footer::parse`] needs.
pub fn tail_range(blob_size: u64) -> Range<u64> {
    blob_size.saturating_sub(MAX_LEN as u64)..blob_size
}

impl Footer {
    /// Reads the footer from `tail`, which is the bytes of [`tail_range`].
    ///
    /// # Errors
    /// If there is none, or if it points outside the blob.
    pub fn parse(tail: &[u8], blob_size: u64) -> Result<Self, FooterError> {
        let range = tail_range(blob_size);
        let wanted = range.end - range.start;
        if tail.len() as u64 != wanted {
            return Err(FooterError::WrongTail {
                got: tail.len(),
                wanted,
                blob_size,
            });
        }
        parse_zstd(tail, blob_size)
            .or_else(|| parse_gzip(tail, blob_size))
            .unwrap_or(Err(FooterError::NotAFooter))
    }

    /// The form of the footer.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The bytes of the TOC; `None` if it is a separate blob.
    pub fn toc_range(&self) -> Option<Range<u64>> {
        self.toc.clone()
    }

    /// Where the members of the files end. No chunk extends past it.
    pub fn payload_end(&self) -> u64 {
        self.payload_end
    }

    /// Where the footer itself begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Length of the TOC's JSON, if the footer has it (zstd:chunked).
    pub fn toc_json_size(&self) -> Option<u64> {
        self.toc_json_size
    }

    /// The compression of the blob's members.
    pub fn codec(&self) -> Codec {
        match self.form {
            Form::Estargz | Form::LegacyStargz | Form::ExternalToc => Codec::Gzip,
            Form::ZstdChunked => Codec::Zstd,
        }
    }
}

/// The eStargz footer of a blob whose TOC member begins at `toc_offset`.
pub fn gzip(toc_offset: u64) -> [u8; GZIP_LEN] {
    let position = format!("{toc_offset:016x}STARGZ");
    concat(&[
        &GZIP_HEAD,
        &[26, 0],
        b"SG",
        &[22, 0],
        position.as_bytes(),
        &GZIP_END,
    ])
}

/// The footer of a blob whose TOC is a separate blob.
pub fn external() -> [u8; EXTERNAL_LEN] {
    concat(&[&GZIP_HEAD, &[21, 0], b"SG", &[17, 0], EXTERNAL, &GZIP_END])
}

/// The zstd:chunked footer, to be put in a skippable frame. `toc_offset` is where the zstd frame of
/// the TOC begins, after its skippable header; `compressed` and `raw` are its lengths.
pub fn zstd_chunked(toc_offset: u64, compressed: u64, raw: u64) -> [u8; ZSTD_LEN] {
    let [offset, compressed, raw, kind] =
        [toc_offset, compressed, raw, ZSTD_MANIFEST_CRFS].map(u64::to_le_bytes);
    concat(&[&offset, &compressed, &raw, &kind, &ZSTD_MAGIC])
}

fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().zip(parts.iter().copied().flatten()) {
        *place = *byte;
    }
    bytes
}

fn parse_gzip(tail: &[u8], blob_size: u64) -> Option<Result<Footer, FooterError>> {
    let last = |len: usize| tail.len().checked_sub(len).map(|start| &tail[start..]);
    if let Some(extra) = last(GZIP_LEN).and_then(|bytes| extra_field(bytes, 26)) {
        return Some(gzip_footer(
            Form::Estargz,
            GZIP_LEN,
            extra.strip_prefix(b"SG\x16\0")?,
            blob_size,
        ));
    }
    if let Some(extra) = last(LEGACY_LEN).and_then(|bytes| extra_field(bytes, 22)) {
        return Some(gzip_footer(
            Form::LegacyStargz,
            LEGACY_LEN,
            extra,
            blob_size,
        ));
    }
    let extra = last(EXTERNAL_LEN).and_then(|bytes| extra_field(bytes, 21))?;
    if extra.strip_prefix(b"SG\x11\0")? != EXTERNAL {
        return None;
    }
    let start = blob_size.checked_sub(EXTERNAL_LEN as u64)?;
    Some(Ok(Footer {
        form: Form::ExternalToc,
        toc: None,
        payload_end: start,
        start,
        toc_json_size: None,
    }))
}

/// Returns the extra field of a footer that is an empty gzip member. Modification time, flags and
/// system are ignored.
fn extra_field(member: &[u8], len: u8) -> Option<&[u8]> {
    let (head, rest) = member.split_at_checked(GZIP_HEAD.len())?;
    let rest = rest.strip_prefix(&[len, 0])?;
    let (extra, end) = rest.split_at_checked(usize::from(len))?;
    (head[..4] == GZIP_HEAD[..4] && end == GZIP_END).then_some(extra)
}

fn gzip_footer(
    form: Form,
    len: usize,
    position: &[u8],
    blob_size: u64,
) -> Result<Footer, FooterError> {
    let digits = position
        .strip_suffix(STARGZ)
        .ok_or(FooterError::NotAFooter)?;
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(FooterError::NotAFooter);
    }
    let offset = digits
        .iter()
        .fold(0, |value: u64, digit| value << 4 | hex_value(*digit));
    let start = blob_size
        .checked_sub(len as u64)
        .ok_or(FooterError::NotAFooter)?;
    let toc = within(offset, Some(start), start)?;
    Ok(Footer {
        form,
        payload_end: toc.start,
        toc: Some(toc),
        start,
        toc_json_size: None,
    })
}

fn hex_value(digit: u8) -> u64 {
    u64::from(match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    })
}

/// Returns the non-empty range `start..end` if it is below `limit`.
fn within(start: u64, end: Option<u64>, limit: u64) -> Result<Range<u64>, FooterError> {
    let end = end.unwrap_or(u64::MAX);
    if start < end && end <= limit {
        Ok(start..end)
    } else {
        Err(FooterError::TocOutside { start, end, limit })
    }
}

fn parse_zstd(tail: &[u8], blob_size: u64) -> Option<Result<Footer, FooterError>> {
    let magic = tail.last_chunk()?;
    if *magic != ZSTD_MAGIC && *magic != ZSTD_MAGIC_NEWER {
        return None;
    }
    let payload = [ZSTD_TAR_SPLIT_LEN, ZSTD_LEN]
        .into_iter()
        .find_map(|len| skippable_payload(tail, len))?;
    let start = blob_size.checked_sub((payload.len() + SKIPPABLE_HEADER) as u64)?;
    let mut fields = payload.chunks_exact(8).map(le64);
    let (offset, compressed, raw, kind) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    if kind != ZSTD_MANIFEST_CRFS {
        return Some(Err(FooterError::UnknownManifest(kind)));
    }
    Some(
        within(offset, offset.checked_add(compressed), start).map(|toc| Footer {
            form: Form::ZstdChunked,
            payload_end: toc.start.saturating_sub(SKIPPABLE_HEADER as u64),
            toc: Some(toc),
            start,
            toc_json_size: Some(raw),
        }),
    )
}

/// Returns the last `len` bytes if they are the payload of a skippable frame.
fn skippable_payload(tail: &[u8], len: usize) -> Option<&[u8]> {
    let frame = &tail[tail.len().checked_sub(len + SKIPPABLE_HEADER)?..];
    let (header, payload) = frame.split_at(SKIPPABLE_HEADER);
    let said = header.strip_prefix(&SKIPPABLE_MAGIC)?;
    (u32::from_le_bytes(said.try_into().ok()?) as usize == len).then_some(payload)
}

fn le64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(body: usize, footer: &[u8]) -> Vec<u8> {
        [vec![b'.'; body].as_slice(), footer].concat()
    }

    fn parse(blob: &[u8]) -> Result<Footer, FooterError> {
        let size = blob.len() as u64;
        Footer::parse(
            &blob[usize::try_from(tail_range(size).start).unwrap()..],
            size,
        )
    }

    fn skippable(payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&SKIPPABLE_MAGIC, &len, payload].concat()
    }

    fn legacy(toc_offset: u64) -> Vec<u8> {
        [
            &GZIP_HEAD[..],
            &[22, 0],
            format!("{toc_offset:016x}STARGZ").as_bytes(),
            &GZIP_END,
        ]
        .concat()
    }

    #[test]
    fn the_estargz_footer_has_the_bytes_of_the_format() {
        let expected = "1f8b08040000000000ff1a005347160030303030303030303030303031323334535441\
                        52475a010000ffff0000000000000000";
        assert_eq!(hex::encode(gzip(0x1234)), expected);
    }

    #[test]
    fn every_form_is_read_back() {
        let footer = parse(&blob(900, &gzip(800))).unwrap();
        assert_eq!(
            (footer.form(), footer.toc_range(), footer.payload_end()),
            (Form::Estargz, Some(800..900), 800)
        );
        let footer = parse(&blob(900, &legacy(800))).unwrap();
        assert_eq!(
            (footer.form(), footer.toc_range()),
            (Form::LegacyStargz, Some(800..900))
        );
        let footer = parse(&blob(900, &external())).unwrap();
        assert_eq!(
            (footer.form(), footer.toc_range(), footer.payload_end()),
            (Form::ExternalToc, None, 900)
        );
        let footer = parse(&blob(900, &skippable(&zstd_chunked(700, 150, 4000)))).unwrap();
        assert_eq!(
            (footer.form(), footer.toc_range()),
            (Form::ZstdChunked, Some(700..850))
        );
        assert_eq!(
            (footer.payload_end(), footer.start(), footer.toc_json_size()),
            (692, 900, Some(4000))
        );
    }

    #[test]
    fn the_newer_zstd_footer_with_tar_split_is_read() {
        let fields = [700_u64, 100, 4000, 1, 808, 50, 60]
            .map(u64::to_le_bytes)
            .concat();
        let footer = parse(&blob(900, &skippable(&[&fields[..], b"GNUlInUx"].concat()))).unwrap();
        assert_eq!((footer.toc_range(), footer.start()), (Some(700..800), 900));
    }

    #[test]
    fn an_offset_beyond_the_blob_is_refused() {
        assert!(matches!(
            parse(&blob(900, &gzip(901))),
            Err(FooterError::TocOutside { start: 901, .. })
        ));
        assert!(matches!(
            parse(&blob(900, &gzip(u64::MAX))),
            Err(FooterError::TocOutside { .. })
        ));
        assert!(matches!(
            parse(&blob(900, &gzip(900))),
            Err(FooterError::TocOutside { .. })
        ));
    }

    #[test]
    fn a_huge_zstd_length_is_refused() {
        let footer = skippable(&zstd_chunked(700, u64::MAX - 10, 4000));
        assert!(matches!(
            parse(&blob(900, &footer)),
            Err(FooterError::TocOutside { .. })
        ));
        let footer = skippable(&zstd_chunked(700, 201, 4000));
        assert!(matches!(
            parse(&blob(900, &footer)),
            Err(FooterError::TocOutside { .. })
        ));
    }

    #[test]
    fn a_46_byte_tail_without_the_extra_field_is_refused() {
        let mut tail = external();
        tail[10] = 0;
        assert_eq!(parse(&tail), Err(FooterError::NotAFooter));
        assert_eq!(parse(&[0; 46]), Err(FooterError::NotAFooter));
    }

    #[test]
    fn short_blobs_and_short_tails_are_refused() {
        for len in 0..80 {
            assert!(parse(&vec![0x1f; len]).is_err());
        }
        assert!(matches!(
            Footer::parse(&gzip(0), 900),
            Err(FooterError::WrongTail { wanted: 72, .. })
        ));
    }

    #[test]
    fn a_footer_that_is_the_whole_blob_has_no_toc() {
        assert!(matches!(
            parse(&gzip(0)),
            Err(FooterError::TocOutside { .. })
        ));
    }
}
