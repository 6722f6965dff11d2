//! The positions of an archive's files: one walk over the headers of a tar, which skips the bytes of
//! files. Tars of file systems are not read here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use tar::{Archive, Entry, EntryType};

use super::io_error::failed;
use crate::registry::Error;

/// The size of a header, in bytes.
const BLOCK: u64 = 512;
/// The most entries. An archive has a handful for each layer.
const MAX_ENTRIES: usize = 100_000;
/// The most bytes of all headers, because long names are held in memory: room for `MAX_ENTRIES`.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// The longest chain of links.
const MAX_LINKS: usize = 8;

/// Files of a tar by name.
#[derive(Debug, Default)]
pub(super) struct TarIndex(HashMap<String, Place>);

#[derive(Debug)]
enum Place {
    Bytes(Range<u64>),
    Link(String),
}

/// A cursor over an archive from `start` on, which reads a bounded number of bytes.
#[derive(Debug)]
struct Headers<'f> {
    file: &'f File,
    start: u64,
    position: u64,
    left: &'f mut u64,
}

fn malformed(problem: &str) -> Error {
    Error::Malformed(format!("the archive: {problem}"))
}

/// Returns the error of a walk: the file's, or that of its content.
fn unreadable(error: &io::Error) -> Error {
    if error.raw_os_error().is_some() {
        failed(error)
    } else {
        malformed(&error.to_string())
    }
}

impl TarIndex {
    /// Walks the archive. Of two files with one name the later one is used, as in unpacking.
    pub(super) fn read(file: &File) -> Result<Self, Error> {
        let total = file.metadata().map_err(|error| failed(&error))?.len();
        let mut index = Self::default();
        let (mut next, mut left) = (Some(0), MAX_HEADER_BYTES);
        while let Some(start) = next {
            let headers = Headers {
                file,
                start,
                position: 0,
                left: &mut left,
            };
            next = index.walk(headers, total)?;
        }
        Ok(index)
    }

    /// Adds the entries from the cursor's start on. Returns where to continue.
    fn walk(&mut self, headers: Headers<'_>, total: u64) -> Result<Option<u64>, Error> {
        let base = headers.start;
        let mut archive = Archive::new(headers);
        let entries = archive.entries_with_seek();
        for entry in entries.map_err(|error| unreadable(&error))? {
            let entry = entry.map_err(|error| unreadable(&error))?;
            let start = base + entry.raw_file_position();
            let end = start.checked_add(entry.size());
            self.add(&entry, start..end.unwrap_or(u64::MAX), total)?;
            // Links and the like have no content, whatever size they state, but the `tar` crate
            // would skip it.
            if has_no_content(entry.header().entry_type()) && entry.size() > 0 {
                return Ok(Some(base + entry.raw_header_position() + BLOCK));
            }
        }
        Ok(None)
    }

    fn add(
        &mut self,
        entry: &Entry<'_, Headers<'_>>,
        range: Range<u64>,
        total: u64,
    ) -> Result<(), Error> {
        let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
        let link = entry.link_name_bytes().unwrap_or_default();
        let link = String::from_utf8_lossy(&link);
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous if range.end > total => {
                return Err(malformed("cut off"));
            }
            EntryType::Regular | EntryType::Continuous => Place::Bytes(range),
            EntryType::Link => Place::Link(normal(&link)),
            EntryType::Symlink => Place::Link(beside(&name, &link)),
            _ => return Ok(()),
        };
        if self.0.len() >= MAX_ENTRIES {
            return Err(malformed("too many entries"));
        }
        self.0.insert(name, place);
        Ok(())
    }

    /// Returns the range of the file `name`; links are followed within the archive.
    pub(super) fn find(&self, name: &str) -> Option<Range<u64>> {
        let mut name = normal(name);
        for _ in 0..=MAX_LINKS {
            match self.0.get(&name)? {
                Place::Bytes(range) => return Some(range.clone()),
                Place::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.start + self.position)?;
        let left = self.left.checked_sub(read as u64);
        *self.left = left.ok_or_else(|| io::Error::other("too many bytes of headers"))?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    /// The position counts from the start. There is no end to seek from.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(_) => None,
        };
        let valid = position.filter(|position| self.start.checked_add(*position).is_some());
        self.position = valid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

fn has_no_content(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// Returns a path without `.`, `..` and doubled slashes; `..` never leads above the top.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Returns the target of a symbolic link at `name`; `/` is the top of the archive.
fn beside(name: &str, link: &str) -> String {
    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
    if link.starts_with('/') {
        normal(link)
    } else {
        normal(&format!("{parent}/{link}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn index(tar: &[u8]) -> Result<TarIndex, Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(tar).unwrap();
        TarIndex::read(&file)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind, path: &str, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            match kind {
                tar::EntryType::Regular => builder.append_data(&mut header, path, content).unwrap(),
                _ => builder.append_link(&mut header, path, link).unwrap(),
            }
        };
        let long = format!("{}/layer.tar", "d".repeat(120));
        add(tar::EntryType::Regular, "a/layer.tar", "", b"first");
        add(tar::EntryType::Regular, &long, "", b"long");
        add(
            tar::EntryType::Symlink,
            "b/layer.tar",
            "../a/layer.tar",
            b"",
        );
        add(tar::EntryType::Symlink, "loop", "loop", b"");
        add(tar::EntryType::Link, "hard", "a/layer.tar", b"");
        add(tar::EntryType::Regular, "a/layer.tar", "", b"second");
        builder.into_inner().unwrap()
    }

    #[test]
    fn files_are_found_and_links_are_followed() {
        let tar = sample();
        let index = index(&tar).unwrap();
        let get = |name: &str| {
            let range = index.find(name)?;
            Some(
                tar[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
                    .to_vec(),
            )
        };
        assert_eq!(get("a/layer.tar").as_deref(), Some(&b"second"[..]));
        assert_eq!(get("./b/layer.tar").as_deref(), Some(&b"second"[..]));
        assert_eq!(get("hard").as_deref(), Some(&b"second"[..]));
        assert_eq!(
            get(&format!("{}/layer.tar", "d".repeat(120))).as_deref(),
            Some(&b"long"[..])
        );
        assert_eq!(get("loop"), None);
        assert_eq!(get("../../etc/passwd"), None);
    }

    #[test]
    fn pax_records_set_the_path_the_link_and_the_size() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |records: &[(&str, &[u8])], kind, size| {
            builder
                .append_pax_extensions(records.iter().copied())
                .unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_path("short").unwrap();
            header.set_cksum();
            builder.append(&header, &b"content"[..]).unwrap();
        };
        let path: (&str, &[u8]) = ("path", b"a/b/c=");
        add(&[path, ("size", b"7")], EntryType::Regular, 0);
        let records: [(&str, &[u8]); 2] = [("path", b"d"), ("linkpath", b"a/b/c=")];
        add(&records, EntryType::Link, 7);
        let tar = builder.into_inner().unwrap();
        // The link's content is an entry that is not a header.
        assert!(index(&tar).is_err());
        let link = tar.len() - 3 * 512;
        let index = index(&[&tar[..link], &[0; 1024]].concat()).unwrap();
        let range = index.find("d").unwrap();
        assert_eq!(range, index.find("a/b/c=").unwrap());
        assert_eq!(
            tar[usize::try_from(range.start).unwrap()..][..7],
            *b"content"
        );
    }

    #[test]
    fn headers_without_end_are_an_error_before_they_are_held() {
        let file = tempfile::tempfile().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(MAX_HEADER_BYTES + 1);
        header.set_cksum();
        file.write_all_at(header.as_bytes(), 0).unwrap();
        file.set_len(MAX_HEADER_BYTES + 8192).unwrap();
        let Err(Error::Malformed(problem)) = TarIndex::read(&file) else {
            panic!("a name of {MAX_HEADER_BYTES} bytes is read");
        };
        assert!(problem.contains("too many bytes of headers"), "{problem}");
    }

    #[test]
    fn broken_archives_are_errors() {
        let tar = sample();
        assert!(index(&tar[..514]).is_err(), "a file is cut off");
        for place in [0, 124, 148] {
            let mut broken = tar.clone();
            broken[place] ^= 0x55;
            assert!(index(&broken).is_err(), "{place}");
        }
        let mut huge = tar::Header::new_gnu();
        huge.set_size(u64::MAX >> 1);
        huge.set_cksum();
        assert!(index(huge.as_bytes()).is_err());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Link);
        link.set_size(4096);
        link.set_cksum();
        assert!(
            index(&[link.as_bytes().as_slice(), &tar].concat())
                .unwrap()
                .find("a/layer.tar")
                .is_some()
        );
        assert!(index(b"").unwrap().find("x").is_none());
    }
}
