//! Bounds on the work that untrusted input can cause. Each is checked before anything is sized by
//! it.

/// Limits on reading, writing and verifying.
///
/// The defaults have room for ten times the largest layer seen in the wild, and for everything that
/// this crate writes.
///
/// ```
/// use estargz::Limits;
///
/// let limits = Limits::default().with_max_json_bytes(1 << 20).with_max_chunks(1000);
/// assert_eq!(limits.max_chunks, 1000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// Readers: bytes of the TOC as it lies in the blob.
    pub max_compressed_bytes: u64,
    /// Readers and writers: bytes of the TOC's JSON, about 600 for each entry. Other readers stop
    /// at 100 to 150 MB as well, which is the TOC of half a million files.
    pub max_json_bytes: u64,
    /// Readers: names in the tree, including directories that no entry describes.
    pub max_names: u32,
    /// Readers: chunks of all files.
    pub max_chunks: u32,
    /// Readers: extended attributes of all entries.
    pub max_xattrs: u32,
    /// Readers: names of users and groups.
    pub max_owners: u32,
    /// Readers: bytes of one chunk, which are held in memory until its digest is known, and bytes
    /// before it in its member.
    pub max_chunk_bytes: u64,
    /// Readers: bytes of a path. One system call takes 4096.
    pub max_path_bytes: usize,
    /// Readers: components of a path.
    pub max_path_depth: usize,
    /// Writers: entries of the TOC, including continued chunks.
    pub max_entries: u64,
    /// Writers: bytes of the source tar.
    pub max_source_bytes: u64,
    /// Verification: bytes that the blob decompresses to.
    pub max_stream_bytes: u64,
}

/// Bytes of a TOC's JSON, for readers and for the writer.
const MAX_JSON_BYTES: u64 = 150 << 20;

/// Bytes of a chunk, for readers and for the writer: eight times the default size. A reader holds a
/// whole chunk, compressed and inflated, before it can use a byte of it.
pub(crate) const MAX_CHUNK_BYTES: u64 = 32 << 20;

impl Default for Limits {
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
            max_entries: 1_000_000,
            max_source_bytes: 1 << 40,
            max_stream_bytes: 1 << 40,
        }
    }
}

impl Limits {
    /// Sets [`max_compressed_bytes`](Self::max_compressed_bytes).
    #[must_use]
    pub fn with_max_compressed_bytes(mut self, limit: u64) -> Self {
        self.max_compressed_bytes = limit;
        self
    }

    /// Sets [`max_json_bytes`](Self::max_json_bytes).
    #[must_use]
    pub fn with_max_json_bytes(mut self, limit: u64) -> Self {
        self.max_json_bytes = limit;
        self
    }

    /// Sets [`max_names`](Self::max_names).
    #[must_use]
    pub fn with_max_names(mut self, limit: u32) -> Self {
        self.max_names = limit;
        self
    }

    /// Sets [`max_chunks`](Self::max_chunks).
    #[must_use]
    pub fn with_max_chunks(mut self, limit: u32) -> Self {
        self.max_chunks = limit;
        self
    }

    /// Sets [`max_xattrs`](Self::max_xattrs).
    #[must_use]
    pub fn with_max_xattrs(mut self, limit: u32) -> Self {
        self.max_xattrs = limit;
        self
    }

    /// Sets [`max_owners`](Self::max_owners).
    #[must_use]
    pub fn with_max_owners(mut self, limit: u32) -> Self {
        self.max_owners = limit;
        self
    }

    /// Sets [`max_chunk_bytes`](Self::max_chunk_bytes).
    #[must_use]
    pub fn with_max_chunk_bytes(mut self, limit: u64) -> Self {
        self.max_chunk_bytes = limit;
        self
    }

    /// Sets [`max_path_bytes`](Self::max_path_bytes).
    #[must_use]
    pub fn with_max_path_bytes(mut self, limit: usize) -> Self {
        self.max_path_bytes = limit;
        self
    }

    /// Sets [`max_path_depth`](Self::max_path_depth).
    #[must_use]
    pub fn with_max_path_depth(mut self, limit: usize) -> Self {
        self.max_path_depth = limit;
        self
    }

    /// Sets [`max_entries`](Self::max_entries).
    #[must_use]
    pub fn with_max_entries(mut self, limit: u64) -> Self {
        self.max_entries = limit;
        self
    }

    /// Sets [`max_source_bytes`](Self::max_source_bytes).
    #[must_use]
    pub fn with_max_source_bytes(mut self, limit: u64) -> Self {
        self.max_source_bytes = limit;
        self
    }

    /// Sets [`max_stream_bytes`](Self::max_stream_bytes).
    #[must_use]
    pub fn with_max_stream_bytes(mut self, limit: u64) -> Self {
        self.max_stream_bytes = limit;
        self
    }
}
