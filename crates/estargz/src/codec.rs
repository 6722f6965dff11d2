//! The two compressions of members, and their decoders.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest zstd window a member may ask for, as a power of two: 128 MiB, the default maximum of the
/// zstd command.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The compression of a blob's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Gzip members: eStargz and stargz.
    Gzip,
    /// Zstandard frames: zstd:chunked. Decoding needs the feature `zstd`.
    Zstd,
}

impl Codec {
    /// Returns a reader that inflates `input`, one member after the other.
    pub(crate) fn decoder<'a, R: BufRead + 'a>(self, input: R) -> io::Result<Box<dyn Read + 'a>> {
        match self {
            Self::Gzip => Ok(Box::new(MultiGzDecoder::new(input))),
            Self::Zstd => zstd_decoder(input),
        }
    }
}

#[cfg(feature = "zstd")]
fn zstd_decoder<'a, R: BufRead + 'a>(input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(Box::new(decoder))
}

#[cfg(not(feature = "zstd"))]
fn zstd_decoder<'a, R: BufRead + 'a>(_input: R) -> io::Result<Box<dyn Read + 'a>> {
    Err(no_zstd())
}

/// The error of every attempt to decode zstd in a build without it.
#[cfg(not(feature = "zstd"))]
pub(crate) fn no_zstd() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "zstd is not compiled in: the feature `zstd` of the crate `estargz` is off",
    )
}
