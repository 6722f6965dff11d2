//! Tars with random entries.

use std::collections::BTreeMap;
use std::io;

use tar::{Builder, EntryType, Header};

use super::image::Random;
use super::layer::CHUNK;

/// Entries of a tar.
const ENTRIES: u64 = 60;

/// A tar with every kind of entry, and the content of its regular files.
pub(crate) struct RandomTar {
    random: Random,
    tar: Builder<Vec<u8>>,
    directories: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
}

impl RandomTar {
    pub(crate) fn new(seed: u64) -> Self {
        let (random, tar) = (Random::new(seed), Builder::new(Vec::new()));
        Self {
            random,
            tar,
            directories: vec![String::new()],
            files: BTreeMap::new(),
        }
    }

    /// Returns the tar, and the content of its regular files by path.
    pub(crate) fn build(mut self) -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
        let mut root = self.header(EntryType::Directory, 0);
        self.tar.append_data(&mut root, "./", io::empty()).unwrap();
        (0..ENTRIES).for_each(|number| self.entry(number));
        (self.tar.into_inner().unwrap(), self.files)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    fn entry(&mut self, number: u64) {
        let parent = self.below(self.directories.len());
        let parent = self.directories[parent].clone();
        let odd = ["", " with blanks", "-ünï", "\\back", "'quote\""][self.below(5)];
        let name = format!("{parent}n{number}{odd}");
        match self.random.below(10) {
            0 | 1 => {
                let mut header = self.header(EntryType::Directory, 0);
                self.tar
                    .append_data(&mut header, format!("{name}/"), io::empty())
                    .unwrap();
                self.directories.push(format!("{name}/"));
            }
            2 => {
                let mut header = self.header(EntryType::Symlink, 0);
                self.tar
                    .append_link(&mut header, &name, "../some where/ünknown")
                    .unwrap();
            }
            3 => {
                let mut header = self.header(EntryType::Fifo, 0);
                self.tar
                    .append_data(&mut header, &name, io::empty())
                    .unwrap();
            }
            4 => {
                let mut header = self.header(EntryType::Char, 0);
                header.set_device_major(5).unwrap();
                header
                    .set_device_minor(u32::try_from(self.below(200)).unwrap())
                    .unwrap();
                self.tar
                    .append_data(&mut header, &name, io::empty())
                    .unwrap();
            }
            5 if !self.files.is_empty() => {
                let index = self.below(self.files.len());
                let (target, content) = self.files.iter().nth(index).unwrap();
                let (target, content) = (target.clone(), content.clone());
                let mut header = self.header(EntryType::Link, 0);
                self.tar.append_link(&mut header, &name, &target).unwrap();
                self.files.insert(name, content);
            }
            _ => self.file(name),
        }
    }

    fn file(&mut self, name: String) {
        let length = [0, 1, 5_000, CHUNK, CHUNK + 1, 3 * CHUNK + 77][self.below(6)];
        let mut content = self.random.bytes(length);
        if self.random.below(3) == 0 {
            content[length / 2..].fill(b'x');
        }
        if self.random.below(3) == 0 {
            let value = self.random.bytes(20);
            self.tar
                .append_pax_extensions([("SCHILY.xattr.user.random", value.as_slice())])
                .unwrap();
        }
        let mut header = self.header(EntryType::Regular, length);
        self.tar
            .append_data(&mut header, &name, content.as_slice())
            .unwrap();
        self.files.insert(name, content);
    }

    fn header(&mut self, kind: EntryType, size: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode([0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o600][self.below(6)]);
        header.set_uid(self.random.below(70_000));
        header.set_gid(self.random.below(70_000));
        header.set_mtime(1_000_000_000 + self.random.below(600_000_000));
        header
    }
}
