//! How the running conversions share the memory.

use std::num::NonZeroUsize;

use super::error::Error;

/// Pieces of a source layer that wait for the inflater. An HTTP client returns pieces of at most
/// some 100 KiB.
pub(super) const SOURCE_PIECES: usize = 8;

/// The size of a piece of a converted layer on its way to the store, in bytes.
pub(super) const OUTPUT_PIECE: usize = 256 << 10;

/// Pieces of a converted layer that wait for the store.
pub(super) const OUTPUT_PIECES: usize = 4;

/// The memory of a running layer beside its members, in bytes: both channels, the inflater's
/// window, the parts being uploaded.
const LAYER_BYTES: usize = 16 << 20;

/// The smallest memory with which several threads can work on chunks of the default size.
const MIN_MEMORY: usize = 32 << 20;

/// The shares of the parts of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes of members in flight.
    pub(super) members: usize,
    /// Layers converted at once.
    pub(super) layers: usize,
}

impl Budget {
    /// Divides `memory`: half of it for members, the rest for as many layers as fit, at least one.
    pub(super) fn divide(memory: u64, layers_at_once: NonZeroUsize) -> Result<Self, Error> {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        if memory < MIN_MEMORY {
            return Err(Error::Config(format!("memory is under {MIN_MEMORY} bytes")));
        }
        let members = memory / 2;
        let layers = ((memory - members) / LAYER_BYTES).clamp(1, layers_at_once.get());
        Ok(Self { members, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divide(mebibytes: u64, layers: usize) -> Result<Budget, Error> {
        Budget::divide(mebibytes << 20, NonZeroUsize::new(layers).unwrap())
    }

    #[test]
    fn little_memory_means_fewer_layers() {
        assert_eq!(
            divide(128, 4).unwrap(),
            Budget {
                members: 64 << 20,
                layers: 4
            }
        );
        assert_eq!(
            divide(64, 4).unwrap(),
            Budget {
                members: 32 << 20,
                layers: 2
            }
        );
        assert_eq!(divide(1024, 4).unwrap().layers, 4);
        assert_eq!(divide(32, 4).unwrap().layers, 1);
        assert!(divide(31, 1).is_err());
    }
}
