//! Compressed archives: `docker load` accepts them, and some builders write no others. Files are
//! read by position, so the archive is inflated into an unnamed file, as skopeo does. The file is
//! freed when its last reader closes it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::io_error::failed;
use crate::registry::Error;

/// The most bytes that an archive may take when it is inflated: larger than any image, smaller than
/// most disks.
const MAX_INFLATED: u64 = 256 << 30;
/// The largest window of a zstd frame: 2^27 bytes, libzstd's own default limit.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// The bytes that are read at once.
const PIECE: usize = 256 << 10;

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    /// A compression that is recognised by its first bytes but not supported.
    Other(&'static str),
}

impl Compression {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Self::Other("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Other("lz4"),
            [b'P', b'K', 3, 4, ..] => Self::Other("zip"),
            _ => Self::None,
        }
    }
}

/// Returns the archive as a plain tar. Blocking.
pub(super) fn plain(file: File) -> Result<File, Error> {
    let mut magic = [0; 6];
    let read = file
        .read_at(&mut magic, 0)
        .map_err(|error| failed(&error))?;
    match Compression::of(&magic[..read]) {
        Compression::None => Ok(file),
        Compression::Gzip => inflated(
            flate2::bufread::MultiGzDecoder::new(from_start(file)?),
            MAX_INFLATED,
        ),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(from_start(file)?);
            let mut decoder = decoder.map_err(|error| failed(&error))?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG_MAX)
                .map_err(|error| failed(&error))?;
            inflated(decoder, MAX_INFLATED)
        }
        Compression::Other(name) => Err(Error::Malformed(format!(
            "the archive is compressed with {name}: unpack it first, only gzip and zstd are read"
        ))),
    }
}

fn from_start(mut file: File) -> Result<BufReader<File>, Error> {
    file.rewind().map_err(|error| failed(&error))?;
    Ok(BufReader::with_capacity(PIECE, file))
}

/// Writes the output of `source` into an unnamed file.
fn inflated(source: impl Read, limit: u64) -> Result<File, Error> {
    let unreadable =
        |error: io::Error| Error::Malformed(format!("the archive cannot be inflated: {error}"));
    let mut file = tempfile::tempfile_in(folder()).map_err(|error| failed(&error))?;
    let written = io::copy(&mut source.take(limit + 1), &mut file).map_err(unreadable)?;
    if written > limit {
        return Err(Error::TooLarge { limit });
    }
    Ok(file)
}

/// Returns the folder for large temporary files, which do not outlive the process: `TMPDIR`, else
/// `/var/tmp`, because `/tmp` is often in memory.
fn folder() -> PathBuf {
    let large = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() {
        large.to_owned()
    } else {
        std::env::temp_dir()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut plain = plain(file(bytes))?;
        let mut read = Vec::new();
        plain.rewind().unwrap();
        plain.read_to_end(&mut read).unwrap();
        Ok(read)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_and_zstd_are_inflated_and_plain_tars_are_used_as_they_are() {
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(
            read(&[gzip(b"in two "), gzip(b"members")].concat()).unwrap(),
            b"in two members"
        );
        assert_eq!(
            read(&zstd::encode_all(&b"a frame"[..], 1).unwrap()).unwrap(),
            b"a frame"
        );
    }

    #[test]
    fn a_broken_or_unsupported_archive_is_an_error_that_names_the_reason() {
        let cut = gzip(&[7; 5000]);
        assert!(matches!(
            read(&cut[..cut.len() - 9]),
            Err(Error::Malformed(_))
        ));
        let Err(Error::Malformed(text)) = read(b"\xfd7zXZ\0rest") else {
            panic!("xz is not read")
        };
        assert!(text.contains("xz"), "{text}");
        assert!(matches!(
            inflated(&[0; 11][..], 10),
            Err(Error::TooLarge { limit: 10 })
        ));
    }
}
