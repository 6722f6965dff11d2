//! What a TOC may ask of its reader. Each limit is checked before anything is sized by it.

/// Limits on reading a TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the TOC as it lies in the blob.
    pub max_compressed_bytes: u64,
    /// Bytes of its JSON.
    pub max_json_bytes: u64,
    /// Names in the tree, the directories that are only implied among them.
    pub max_names: u32,
    /// Chunks of all files.
    pub max_chunks: u32,
    /// Extended attributes of all entries.
    pub max_xattrs: u32,
    /// Names of users and groups.
    pub max_owners: u32,
    /// Bytes of one chunk, which are held in memory until its digest is known, and bytes before it in its member.
    pub max_chunk_bytes: u64,
    /// Bytes of a path: as many as a tar may have here. One system call takes 4096.
    pub max_path_bytes: usize,
    /// Components of a path.
    pub max_path_depth: usize,
}

impl Default for Limits {
    /// Room for every layer that was seen in the wild, times ten, and for all that this crate writes. Other readers stop
    /// at a JSON of 100 to 150 MB as well: the TOC of half a million files.
    fn default() -> Self {
        Self {
            max_compressed_bytes: 64 << 20,
            max_json_bytes: MAX_JSON_BYTES,
            max_names: 1_000_000,
            max_chunks: 1_000_000,
            max_xattrs: 1_000_000,
            max_owners: 65_536,
            max_chunk_bytes: MAX_CHUNK_BYTES,
            max_path_bytes: 16 << 10,
            max_path_depth: 1024,
        }
    }
}

/// Bytes of a TOC's JSON, for readers and for the writer.
pub(crate) const MAX_JSON_BYTES: u64 = 150 << 20;
/// Bytes of a chunk, for readers and for the writer: eight times the default size. A reader holds a whole chunk, compressed
/// and inflated, before it can use a byte of it.
pub(crate) const MAX_CHUNK_BYTES: u64 = 32 << 20;
