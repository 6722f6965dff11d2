//! Regular files: from extents to chunk indexes.
//!
//! EROFS cuts a file into chunks of one size, a power of two of blocks, and knows the address of
//! each. The largest size is chosen at which no chunk lies in two extents.

use crate::error::ImageError;
use crate::limits::{MAX_CHUNK_BITS, MAX_CHUNKS};
use crate::node::Extent;

/// A contiguous run of blocks of a file on the data device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First block in the file.
    pub(crate) block: u64,
    /// First block on the device.
    pub(crate) device_block: u32,
    pub(crate) blocks: u32,
}

impl Piece {
    fn end(&self) -> u64 {
        self.block + u64::from(self.blocks)
    }

    fn continues_with(&self, next: &Self) -> bool {
        self.end() == next.block
            && u64::from(self.device_block) + u64::from(self.blocks) == u64::from(next.device_block)
    }
}

/// The units and bounds that extents are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Block size as a power of two.
    pub(crate) block_bits: u8,
    /// Blocks of the data device.
    pub(crate) device_blocks: u32,
}

impl Geometry {
    pub(crate) fn block_size(self) -> u64 {
        1 << self.block_bits
    }

    pub(crate) fn blocks(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block_size())
    }
}

/// Returns the runs of blocks of a file of `size` bytes, adjacent extents joined.
pub(crate) fn pieces(
    size: u64,
    extents: &[Extent],
    geometry: Geometry,
) -> Result<Vec<Piece>, ImageError> {
    let mut pieces: Vec<Piece> = Vec::new();
    for extent in extents {
        let piece = piece(size, extent, geometry)?;
        match pieces.last_mut() {
            Some(last) if piece.block < last.end() => {
                return Err(ImageError::ExtentOrder {
                    offset: extent.offset,
                });
            }
            Some(last) if last.continues_with(&piece) => last.blocks += piece.blocks,
            _ => pieces.push(piece),
        }
    }
    Ok(pieces)
}

fn piece(size: u64, extent: &Extent, geometry: Geometry) -> Result<Piece, ImageError> {
    let Extent {
        offset,
        device_offset,
        length,
    } = *extent;
    if length == 0 {
        return Err(ImageError::ExtentOrder { offset });
    }
    let end = offset.checked_add(length).filter(|end| *end <= size);
    let end = end.ok_or(ImageError::ExtentBeyondFile { offset })?;
    let unaligned = |bytes: u64| !bytes.is_multiple_of(geometry.block_size());
    if unaligned(offset) || unaligned(device_offset) || unaligned(length) && end != size {
        return Err(ImageError::ExtentAlignment { offset });
    }
    let device_block = device_offset / geometry.block_size();
    let blocks = geometry.blocks(length);
    if device_block
        .checked_add(blocks)
        .is_none_or(|end| end > u64::from(geometry.device_blocks))
    {
        return Err(ImageError::ExtentBeyondDevice { offset });
    }
    let narrow = |blocks| {
        u32::try_from(blocks).map_err(|_too_large| ImageError::ExtentBeyondDevice { offset })
    };
    Ok(Piece {
        block: offset / geometry.block_size(),
        device_block: narrow(device_block)?,
        blocks: narrow(blocks)?,
    })
}

/// Returns the chunk size, as a power of two of blocks, of a file of `blocks` blocks in `pieces`.
pub(crate) fn chunk_bits(blocks: u64, pieces: &[Piece]) -> Result<u8, ImageError> {
    let boundaries = pieces.iter().flat_map(|piece| [piece.block, piece.end()]);
    let common = boundaries
        .filter(|boundary| *boundary < blocks)
        .fold(0, |bits, boundary| bits | boundary);
    // No boundary inside the file: one chunk covers it.
    let whole = blocks.max(1).next_power_of_two().trailing_zeros();
    let bits = whole
        .min(common.trailing_zeros())
        .min(u32::from(MAX_CHUNK_BITS));
    let chunks = chunk_count(blocks, bits);
    if chunks > MAX_CHUNKS {
        return Err(ImageError::Fragmentation(chunks));
    }
    Ok(u8::try_from(bits).unwrap_or(MAX_CHUNK_BITS))
}

/// Returns the number of chunks of a file of `blocks` blocks.
pub(crate) fn chunk_count(blocks: u64, chunk_bits: u32) -> u64 {
    blocks.div_ceil(1 << chunk_bits)
}

/// Returns the address of each chunk; none is a hole.
pub(crate) fn addresses(
    blocks: u64,
    chunk_bits: u8,
    pieces: impl Iterator<Item = Piece>,
) -> impl Iterator<Item = Option<u32>> {
    let mut pieces = pieces.peekable();
    (0..chunk_count(blocks, chunk_bits.into())).map(move |chunk| {
        let block = chunk << chunk_bits;
        while pieces.next_if(|piece| piece.end() <= block).is_some() {}
        let piece = pieces.peek().filter(|piece| piece.block <= block)?;
        u32::try_from(block - piece.block)
            .ok()
            .map(|inside| piece.device_block + inside)
    })
}

#[cfg(test)]
mod tests {
    use super::{Geometry, Piece, addresses, chunk_bits, pieces};
    use crate::error::ImageError;
    use crate::node::Extent;

    const GEOMETRY: Geometry = Geometry {
        block_bits: 12,
        device_blocks: u32::MAX,
    };

    fn piece(block: u64, device_block: u32, blocks: u32) -> Piece {
        Piece {
            block,
            device_block,
            blocks,
        }
    }

    fn extent(offset: u64, device_offset: u64, length: u64) -> Extent {
        Extent {
            offset,
            device_offset,
            length,
        }
    }

    #[test]
    fn contiguous_files_have_one_chunk() {
        for blocks in [1, 2, 3, 4, 1000, 1 << 20, (1 << 31) - 1, 1 << 31] {
            let file = [piece(0, 5, blocks)];
            let bits = chunk_bits(blocks.into(), &file).unwrap();
            assert_eq!(
                addresses(blocks.into(), bits, file.into_iter()).collect::<Vec<_>>(),
                [Some(5)],
                "{blocks} blocks"
            );
        }
    }

    #[test]
    fn chunks_have_at_most_31_bits() {
        let blocks = u32::MAX - 7;
        let file = [piece(0, 7, blocks)];
        let bits = chunk_bits(blocks.into(), &file).unwrap();
        assert_eq!(
            addresses(blocks.into(), bits, file.into_iter()).collect::<Vec<_>>(),
            [Some(7), Some(7 + (1 << 31))]
        );
    }

    #[test]
    fn chunks_end_where_extents_end() {
        // Blocks 0–3 at 100, a hole, 8–11 at 50, a hole to the end.
        let file = [piece(0, 100, 4), piece(8, 50, 4)];
        assert_eq!(chunk_bits(14, &file).unwrap(), 2);
        assert_eq!(
            addresses(14, 2, file.into_iter()).collect::<Vec<_>>(),
            [Some(100), None, Some(50), None]
        );
    }

    #[test]
    fn the_end_of_the_file_is_no_boundary() {
        let file = [piece(0, 100, 4), piece(4, 50, 3)];
        assert_eq!(chunk_bits(7, &file).unwrap(), 2);
        assert_eq!(
            addresses(7, 2, file.into_iter()).collect::<Vec<_>>(),
            [Some(100), Some(50)]
        );
    }

    #[test]
    fn adjacent_extents_are_joined() {
        let extents = [
            extent(0, 4096, 4096),
            extent(4096, 8192, 4096),
            extent(8192, 0, 10),
        ];
        assert_eq!(
            pieces(8202, &extents, GEOMETRY).unwrap(),
            [piece(0, 1, 2), piece(2, 0, 1)]
        );
    }

    #[test]
    fn odd_extents_are_errors() {
        let error = |size, extents: &[Extent]| pieces(size, extents, GEOMETRY).unwrap_err();
        assert!(matches!(
            error(10, &[extent(0, 0, 0)]),
            ImageError::ExtentOrder { offset: 0 }
        ));
        assert!(matches!(
            error(10, &[extent(0, 0, 11)]),
            ImageError::ExtentBeyondFile { offset: 0 }
        ));
        assert!(matches!(
            error(u64::MAX, &[extent(4096, 0, u64::MAX)]),
            ImageError::ExtentBeyondFile { .. }
        ));
        assert!(matches!(
            error(10, &[extent(0, 1, 10)]),
            ImageError::ExtentAlignment { .. }
        ));
        assert!(matches!(
            error(10, &[extent(0, 0, 9)]),
            ImageError::ExtentAlignment { .. }
        ));
        assert!(matches!(
            error(8192, &[extent(1, 0, 4096)]),
            ImageError::ExtentAlignment { .. }
        ));
        let twice = [extent(0, 0, 4096), extent(0, 8192, 4096)];
        assert!(matches!(
            error(8192, &twice),
            ImageError::ExtentOrder { offset: 0 }
        ));
        let last_block = (u64::from(u32::MAX) - 1) * 4096;
        assert_eq!(
            pieces(1, &[extent(0, last_block, 1)], GEOMETRY).unwrap(),
            [piece(0, u32::MAX - 1, 1)]
        );
        for beyond in [last_block + 4096, !4095] {
            assert!(matches!(
                error(1, &[extent(0, beyond, 1)]),
                ImageError::ExtentBeyondDevice { .. }
            ));
        }
    }

    #[test]
    fn too_many_chunks_are_an_error() {
        let file = [piece(1, 0, 1)];
        assert!(matches!(
            chunk_bits((1 << 24) + 1, &file),
            Err(ImageError::Fragmentation(16_777_217))
        ));
        assert_eq!(chunk_bits(1 << 24, &file).unwrap(), 0);
    }
}
