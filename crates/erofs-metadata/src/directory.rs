//! The content of directories: blocks of `struct erofs_dirent`, each followed by their names.

use crate::format::{DIRENT_SIZE, dirent};

/// A directory entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u64,
    pub(crate) file_type: u8,
}

/// Returns the size in bytes of a directory with these names: full blocks and a part of the last.
pub(crate) fn size<'a>(names: impl Iterator<Item = &'a [u8]>, block_size: usize) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT_SIZE + name.len();
        if used + needed > block_size {
            blocks += 1;
            used = 0;
        }
        used += needed;
    }
    blocks * block_size as u64 + used as u64
}

/// Packs entries, given in the order of their names, into blocks.
#[derive(Debug)]
pub(crate) struct Packer<'a> {
    block_size: usize,
    entries: Vec<Entry<'a>>,
    used: usize,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(block_size: usize) -> Self {
        Self {
            block_size,
            entries: Vec::new(),
            used: 0,
        }
    }

    /// Adds an entry. Returns the block before it, if that is full.
    pub(crate) fn push(&mut self, entry: Entry<'a>) -> Option<Vec<u8>> {
        let needed = DIRENT_SIZE + entry.name.len();
        let full = (self.used + needed > self.block_size).then(|| {
            let mut block = self.take();
            block.resize(self.block_size, 0);
            block
        });
        self.used += needed;
        self.entries.push(entry);
        full
    }

    /// Returns the last block, without padding.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.block_size);
        let mut name_offset = self.entries.len() * DIRENT_SIZE;
        for entry in &self.entries {
            let offset = u16::try_from(name_offset).unwrap_or(u16::MAX);
            block.extend(dirent(entry.inode, offset, entry.file_type));
            name_offset += entry.name.len();
        }
        self.entries
            .iter()
            .for_each(|entry| block.extend(entry.name));
        self.entries.clear();
        self.used = 0;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Packer, size};

    fn pack(names: &[Vec<u8>]) -> Vec<u8> {
        let mut packer = Packer::new(512);
        let mut bytes = Vec::new();
        for name in names {
            let entry = Entry {
                name,
                inode: 1,
                file_type: 1,
            };
            bytes.extend(packer.push(entry).into_iter().flatten());
        }
        bytes.extend(packer.take());
        bytes
    }

    #[test]
    fn blocks_fill_up() {
        // 20 bytes for each entry: 25 entries take 500 bytes, the 26th begins a block.
        let names: Vec<_> = (0..26)
            .map(|number| format!("{number:08}").into_bytes())
            .collect();
        for count in [0, 1, 25, 26] {
            let bytes = pack(&names[..count]);
            let expected =
                [0, 20, 500, 532][[0, 1, 25, 26].iter().position(|n| *n == count).unwrap()];
            assert_eq!(bytes.len(), expected);
            assert_eq!(
                size(names[..count].iter().map(Vec::as_slice), 512),
                expected as u64
            );
        }
    }

    #[test]
    fn a_block_can_be_full_to_the_last_byte() {
        // 256 + 256 bytes.
        let names = [vec![b'a'; 244], vec![b'b'; 244], vec![b'c'; 1]];
        assert_eq!(pack(&names[..2]).len(), 512);
        assert_eq!(size(names[..2].iter().map(Vec::as_slice), 512), 512);
        let bytes = pack(&names);
        assert_eq!(bytes.len(), 525);
        // The number of entries in a block is the first name's offset by 12.
        assert_eq!((bytes[8], bytes[512 + 8]), (24, 12));
    }
}
