//! The two compressions that members come in.

/// The compression of a blob's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    Gzip,
    Zstd,
}
