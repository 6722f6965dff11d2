//! A piece of a file: its place in the blob, and the only way from those bytes to content.

use std::io::{self, Read};
use std::ops::Range;

use crate::codec::{Codec, ZSTD_WINDOW_LOG_MAX};
use crate::digest::Digest;
use crate::limits::MAX_CHUNK_BYTES;

/// A piece of a regular file, as a verified TOC describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Bytes of the blob to fetch: from the start of the chunk's member to where the next content
    /// begins. Empty for a hole. Never longer than the chunk's size can need, even if the TOC
    /// claims more.
    pub range: Range<u64>,
    /// Bytes to skip in the inflated range.
    pub inner_offset: u64,
    /// Where the chunk begins in its file.
    pub file_offset: u64,
    /// Bytes of content.
    pub size: u64,
    /// Digest of the content; `None` only for a hole.
    pub digest: Option<Digest>,
    /// Compression of the range.
    pub codec: Codec,
}

/// Bytes that a member may take beyond its compressed content: headers with names, and the empty
/// blocks of encoders that flush often.
const MEMBER_SLACK: u64 = 64 << 10;

/// Returns the most bytes of a blob that `inflated` bytes of content can take. Fixed Huffman codes,
/// the worst case of deflate for incompressible content, take nine bits for a byte; stored blocks
/// and zstd take less.
pub(crate) fn member_bound(inflated: u64) -> u64 {
    inflated
        .saturating_add(inflated / 8)
        .saturating_add(MEMBER_SLACK)
}

/// Why bytes of a blob are not the content of a chunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The bytes are not valid gzip or zstd.
    #[error("chunk cannot be inflated")]
    Inflate(#[source] io::Error),
    /// The member ends before the chunk does.
    #[error("member ends after {got} of the {size} bytes of the chunk")]
    Short {
        /// Bytes of content in the member.
        got: u64,
        /// Bytes of the chunk.
        size: u64,
    },
    /// The content has another digest.
    #[error("content has the digest {actual}, the TOC has {expected}")]
    Digest {
        /// The expected digest.
        expected: Digest,
        /// The actual digest.
        actual: Digest,
    },
    /// The bytes are not those of the range.
    #[error("{got} bytes given for a chunk that needs {wanted}")]
    WrongRange {
        /// Bytes that were given.
        got: u64,
        /// Bytes that are needed.
        wanted: u64,
    },
}

impl Chunk {
    /// Returns the most bytes that [`Chunk::decode`] holds in memory, including those of the range.
    pub fn decoding_bytes(&self) -> u64 {
        let member = self.range.end.saturating_sub(self.range.start);
        let window = match self.codec {
            Codec::Gzip => 0,
            // A frame may refer to everything before in it, up to its window.
            Codec::Zstd => self
                .inner_offset
                .saturating_add(self.size)
                .min(1 << ZSTD_WINDOW_LOG_MAX),
        };
        member.saturating_add(self.size).saturating_add(window)
    }

    /// Inflates the blob's bytes at [`Chunk::range`] and returns the content, which has the digest
    /// of the TOC.
    ///
    /// # Errors
    /// If the bytes do not inflate to that content.
    pub fn decode(&self, member: &[u8]) -> Result<Vec<u8>, ChunkError> {
        let mut content = Vec::new();
        self.decode_into(member, &mut content)?;
        Ok(content)
    }

    /// As [`Chunk::decode`], into a buffer that is cleared first and is empty after an error.
    ///
    /// # Errors
    /// If the bytes do not inflate to the content of the TOC.
    pub fn decode_into(&self, member: &[u8], content: &mut Vec<u8>) -> Result<(), ChunkError> {
        content.clear();
        let result = self
            .check_length(member)
            .and_then(|()| self.inflate(member, content));
        if result.is_err() {
            content.clear();
        }
        result
    }

    fn check_length(&self, member: &[u8]) -> Result<(), ChunkError> {
        let (got, wanted) = (
            member.len() as u64,
            self.range.end.saturating_sub(self.range.start),
        );
        if got == wanted {
            Ok(())
        } else {
            Err(ChunkError::WrongRange { got, wanted })
        }
    }

    /// The buffer grows with the inflated bytes, because a size in a TOC is only a claim.
    fn inflate(&self, member: &[u8], content: &mut Vec<u8>) -> Result<(), ChunkError> {
        let Some(expected) = self.digest else {
            return io::repeat(0)
                .take(self.size)
                .read_to_end(content)
                .map(|_| ())
                .map_err(ChunkError::Inflate);
        };
        let mut decoder = self.codec.decoder(member).map_err(ChunkError::Inflate)?;
        io::copy(
            &mut decoder.by_ref().take(self.inner_offset),
            &mut io::sink(),
        )
        .map_err(ChunkError::Inflate)?;
        // Untouched capacity costs no memory. A vector that doubles would keep up to twice the
        // content.
        content.reserve_exact(usize::try_from(self.size.min(MAX_CHUNK_BYTES)).unwrap_or_default());
        decoder
            .take(self.size)
            .read_to_end(content)
            .map_err(ChunkError::Inflate)?;
        let got = content.len() as u64;
        if got != self.size {
            return Err(ChunkError::Short {
                got,
                size: self.size,
            });
        }
        let actual = Digest::of(content);
        if actual == expected {
            Ok(())
        } else {
            Err(ChunkError::Digest { expected, actual })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn chunk(member: &[u8], inner_offset: u64, content: &[u8], codec: Codec) -> Chunk {
        Chunk {
            range: 100..100 + member.len() as u64,
            inner_offset,
            file_offset: 0,
            size: content.len() as u64,
            digest: Some(Digest::of(content)),
            codec,
        }
    }

    #[test]
    fn a_chunk_in_the_middle_of_a_member_is_cut_out() {
        let member = gzip(b"headers content padding");
        assert_eq!(
            chunk(&member, 8, b"content", Codec::Gzip)
                .decode(&member)
                .unwrap(),
            b"content"
        );
    }

    #[cfg(feature = "zstd")]
    #[test]
    fn a_chunk_in_the_middle_of_a_frame_is_cut_out() {
        let member = zstd::encode_all(&b"headers content padding"[..], 3).unwrap();
        assert_eq!(
            chunk(&member, 8, b"content", Codec::Zstd)
                .decode(&member)
                .unwrap(),
            b"content"
        );
    }

    #[test]
    fn bytes_after_the_chunk_are_ignored() {
        let member = [gzip(b"content"), gzip(b"headers"), b"garbage".to_vec()].concat();
        assert_eq!(
            chunk(&member, 0, b"content", Codec::Gzip)
                .decode(&member)
                .unwrap(),
            b"content"
        );
    }

    #[test]
    fn content_with_another_digest_never_comes_out() {
        let member = gzip(b"CONTENT");
        let mut buffer = b"old".to_vec();
        let error = chunk(&member, 0, b"content", Codec::Gzip)
            .decode_into(&member, &mut buffer)
            .unwrap_err();
        assert!(matches!(error, ChunkError::Digest { .. }));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_short_member_is_an_error() {
        let member = gzip(b"conte");
        let wanted = chunk(&member, 0, b"content", Codec::Gzip);
        assert!(matches!(
            wanted.decode(&member),
            Err(ChunkError::Short { got: 5, size: 7 })
        ));
        let wanted = chunk(&member, 50, b"content", Codec::Gzip);
        assert!(matches!(
            wanted.decode(&member),
            Err(ChunkError::Short { got: 0, size: 7 })
        ));
    }

    #[test]
    fn a_huge_size_allocates_only_for_the_bytes_that_exist() {
        let member = gzip(b"content");
        let wanted = Chunk {
            size: u64::MAX,
            ..chunk(&member, 0, b"content", Codec::Gzip)
        };
        assert!(matches!(
            wanted.decode(&member),
            Err(ChunkError::Short { got: 7, .. })
        ));
    }

    #[test]
    fn a_bomb_is_inflated_to_the_chunk_size_only() {
        let member = gzip(&vec![0; 64 << 20]);
        let content = chunk(&member, 0, &[0; 10], Codec::Gzip)
            .decode(&member)
            .unwrap();
        assert_eq!(content.len(), 10);
    }

    #[test]
    fn a_truncated_member_is_an_error() {
        let member = gzip(&[7; 1000]);
        let cut = &member[..member.len() - 12];
        assert!(matches!(
            chunk(cut, 0, &[7; 1000], Codec::Gzip).decode(cut),
            Err(ChunkError::Inflate(_))
        ));
        assert!(matches!(
            chunk(b"", 0, b"x", Codec::Gzip).decode(b""),
            Err(ChunkError::Inflate(_) | ChunkError::Short { .. })
        ));
    }

    #[test]
    fn another_range_than_asked_for_is_an_error() {
        let member = gzip(b"content");
        let wanted = chunk(&member, 0, b"content", Codec::Gzip);
        assert!(matches!(
            wanted.decode(&member[1..]),
            Err(ChunkError::WrongRange { .. })
        ));
    }

    #[test]
    fn the_bound_of_a_member_holds_for_incompressible_content() {
        for size in [0, 1, 1000, 1 << 20] {
            let mut state = 1_u64;
            let content: Vec<u8> = (0..size)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    state.to_le_bytes()[7]
                })
                .collect();
            let bound = member_bound(content.len() as u64);
            assert!(gzip(&content).len() as u64 <= bound);
            #[cfg(feature = "zstd")]
            assert!(zstd::encode_all(&content[..], 1).unwrap().len() as u64 <= bound);
        }
        assert_eq!(member_bound(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_hole_is_zeros() {
        let hole = Chunk {
            range: 0..0,
            digest: None,
            size: 5,
            ..chunk(b"", 0, b"", Codec::Zstd)
        };
        assert_eq!(hole.decode(b"").unwrap(), [0; 5]);
    }
}
