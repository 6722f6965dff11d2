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
    /// Bytes of one chunk, which are held in memory until its digest is known, and bytes before it in its member.
    pub max_chunk_bytes: u64,
    /// Bytes of a path: as many as a tar may have here. One system call takes 4096.
    pub max_path_bytes: usize,
    /// Components of a path.
    pub max_path_depth: usize,
}

impl Default for Limits {
    /// Room for every image that was seen in the wild, times ten: four million files.
    fn default() -> Self {
        Self {
            max_compressed_bytes: 256 << 20,
            max_json_bytes: 2 << 30,
            max_names: 4_000_000,
            max_chunks: 8_000_000,
            max_chunk_bytes: 1 << 30,
            max_path_bytes: 16 << 10,
            max_path_depth: 1024,
        }
    }
}
