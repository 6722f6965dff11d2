//! Decompresses a layer to its tar. The compression is detected from the first bytes, never from
//! the media type.
//!
//! Bytes and media type disagree in the wild, and Go's tools detect the compression from the bytes
//! too.

use std::io::{self, BufRead, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

/// Largest window of a zstd frame: 2^27 bytes, libzstd's own default limit.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The number of bytes that distinguish the compressions.
const MAGIC_LEN: usize = 4;

/// The peeked bytes, followed by the rest.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// A reader of the tar inside a layer that is a gzip stream, a zstd stream or a plain tar.
pub(crate) struct Inflate<R: BufRead>(Stream<R>);

enum Stream<R: BufRead> {
    Plain(Peeked<R>),
    Gzip(Gzip<Peeked<R>>),
    Zstd(zstd::stream::read::Decoder<'static, Peeked<R>>),
}

impl<R: BufRead> Inflate<R> {
    /// Reads the first bytes of `source` to detect the compression.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(MAGIC_LEN);
        source
            .by_ref()
            .take(MAGIC_LEN as u64)
            .read_to_end(&mut magic)?;
        let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
        let is_zstd = is_zstd_frame(&magic);
        let source = Cursor::new(magic).chain(source);
        Ok(Self(if is_gzip {
            Stream::Gzip(Gzip::Member(Box::new(GzDecoder::new(source))))
        } else if is_zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Stream::Zstd(decoder)
        } else {
            Stream::Plain(source)
        }))
    }
}

/// Whether the bytes begin a frame or a skippable frame (RFC 8878, sections 3.1.1 and 3.1.2).
fn is_zstd_frame(magic: &[u8]) -> bool {
    matches!(
        magic,
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18]
    )
}

impl<R: BufRead> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Stream::Plain(source) => source.read(buffer),
            Stream::Gzip(gzip) => gzip.read(buffer),
            Stream::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A reader of consecutive gzip members.
///
/// Zeros behind the last member are padding, as in gzip(1). Anything else there is an error, as in
/// Go.
enum Gzip<R: BufRead> {
    Member(Box<GzDecoder<R>>),
    Ended,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Self::Member(member) = self else {
                return Ok(0);
            };
            let read = member.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let Self::Member(member) = std::mem::replace(self, Self::Ended) else {
                return Ok(0);
            };
            let mut rest = member.into_inner();
            if has_next_member(&mut rest)? {
                *self = Self::Member(Box::new(GzDecoder::new(rest)));
            }
        }
    }
}

/// Whether another member follows. Any bytes that are not padding must begin a member.
fn has_next_member<R: BufRead>(rest: &mut R) -> io::Result<bool> {
    let mut padded = false;
    loop {
        let available = rest.fill_buf()?;
        let Some(&first) = available.first() else {
            return Ok(false);
        };
        if first != 0 {
            let reason = "garbage follows the gzip padding";
            return if padded {
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            } else {
                Ok(true)
            };
        }
        padded = true;
        let zeros = available.iter().take_while(|&&byte| byte == 0).count();
        rest.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    /// Inflates with a buffer of one byte, so that every boundary is crossed.
    fn inflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut inflated = Vec::new();
        Inflate::new(BufReader::with_capacity(1, bytes))?.read_to_end(&mut inflated)?;
        Ok(inflated)
    }

    #[test]
    fn the_compression_is_detected_from_the_bytes() {
        assert_eq!(inflate(b"plain").unwrap(), b"plain");
        assert_eq!(inflate(b"").unwrap(), b"");
        assert_eq!(inflate(b"a").unwrap(), b"a");
        assert_eq!(inflate(&gzip(b"zipped")).unwrap(), b"zipped");
        assert_eq!(inflate(&zstd(b"frame")).unwrap(), b"frame");
    }

    #[test]
    fn members_frames_and_padding_are_one_stream() {
        let members = [gzip(b"one "), gzip(b""), gzip(b"two"), vec![0; 1000]].concat();
        assert_eq!(inflate(&members).unwrap(), b"one two");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0], b"abc".as_slice()].concat();
        let frames = [skippable.clone(), zstd(b"one "), skippable, zstd(b"two")].concat();
        assert_eq!(inflate(&frames).unwrap(), b"one two");
    }

    #[test]
    fn trailing_garbage_and_cut_streams_are_errors() {
        let whole = gzip(&[7; 5000]);
        assert!(inflate(&[whole.as_slice(), b"garbage"].concat()).is_err());
        assert!(inflate(&[whole.as_slice(), b"\0\0garbage"].concat()).is_err());
        for length in 2..whole.len() {
            assert!(inflate(&whole[..length]).is_err(), "gzip cut at {length}");
        }
        let whole = zstd(&[7; 5000]);
        for length in 4..whole.len() {
            assert!(inflate(&whole[..length]).is_err(), "zstd cut at {length}");
        }
    }
}
