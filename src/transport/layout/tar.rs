//! The positions of an archive's files: one walk over the headers of a tar, without reading the
//! bytes of files.
//!
//! Supports the features that writers of image archives use: ustar, GNU long names, pax paths and
//! sizes, links. Tars of file systems are not read here.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::io_error::failed;
use crate::registry::Error;

const BLOCK_LEN: usize = 512;
const BLOCK: u64 = BLOCK_LEN as u64;
/// The most entries. An archive has a handful for each layer.
const MAX_ENTRIES: usize = 100_000;
/// The longest extension header, because long names and pax records are held in memory.
const MAX_EXTENSION: u64 = 64 << 10;
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

/// The fields of an extension header, for the entry that follows it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

fn malformed(problem: &str) -> Error {
    Error::Malformed(format!("the archive: {problem}"))
}

impl TarIndex {
    /// Walks the archive. Of two files with one name the later one is used, as in unpacking.
    pub(super) fn read(file: &File) -> Result<Self, Error> {
        let total = file.metadata().map_err(|error| failed(&error))?.len();
        let mut index = Self::default();
        let mut extension = Extension::default();
        let mut position = 0;
        while position + BLOCK <= total {
            let mut header = [0; BLOCK_LEN];
            file.read_exact_at(&mut header, position)
                .map_err(|error| failed(&error))?;
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            check_sum(&header)?;
            let kind = header[156];
            let size = match extension.size {
                // Links and the like have no content, whatever size they state.
                _ if matches!(kind, b'1'..=b'6') => 0,
                Some(size) if !matches!(kind, b'x' | b'g' | b'L' | b'K') => size,
                _ => number(&header[124..136])?,
            };
            let start = position + BLOCK;
            let padded = size.checked_next_multiple_of(BLOCK);
            let next = padded
                .and_then(|padded| start.checked_add(padded))
                .ok_or_else(|| malformed("a size too large"))?;
            if start + size > total {
                return Err(malformed("cut off"));
            }
            match kind {
                b'x' => extension.pax(&content(file, start, size)?)?,
                b'L' => extension.path = Some(text(&content(file, start, size)?)),
                b'K' => extension.link = Some(text(&content(file, start, size)?)),
                b'g' => {}
                _ => index.add(&header, start..start + size, std::mem::take(&mut extension))?,
            }
            position = next;
        }
        Ok(index)
    }

    fn add(
        &mut self,
        header: &[u8; 512],
        range: Range<u64>,
        extension: Extension,
    ) -> Result<(), Error> {
        let path = extension.path.unwrap_or_else(|| header_path(header));
        let link = || extension.link.unwrap_or_else(|| text(&header[157..257]));
        let name = normal(&path);
        let place = match header[156] {
            0 | b'0' | b'7' => Place::Bytes(range),
            b'1' => Place::Link(normal(&link())),
            b'2' => Place::Link(beside(&name, &link())),
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

impl Extension {
    /// Parses records of the form `LENGTH KEY=VALUE\n` (POSIX.1-2001, pax).
    fn pax(&mut self, mut records: &[u8]) -> Result<(), Error> {
        while !records.is_empty() {
            let broken = || malformed("a broken pax record");
            let space = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(broken)?;
            let length = text(&records[..space])
                .parse::<usize>()
                .ok()
                .filter(|length| *length > space + 1);
            let record = length
                .and_then(|length| records.get(space + 1..length))
                .ok_or_else(broken)?;
            records = &records[space + 1 + record.len()..];
            let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(broken)?;
            let value = text(&record[equals + 1..]);
            match &record[..equals] {
                b"path" => self.path = Some(value),
                b"linkpath" => self.link = Some(value),
                b"size" => self.size = Some(value.parse().ok().ok_or_else(broken)?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn content(file: &File, start: u64, size: u64) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(size).ok().filter(|_| size <= MAX_EXTENSION);
    let mut bytes = vec![0; length.ok_or_else(|| malformed("an extension header is too long"))?];
    file.read_exact_at(&mut bytes, start)
        .map_err(|error| failed(&error))?;
    Ok(bytes)
}

/// Returns the text before the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn header_path(header: &[u8; 512]) -> String {
    let (name, prefix) = (text(&header[..100]), text(&header[345..500]));
    let is_ustar = &header[257..263] == b"ustar\0";
    if is_ustar && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
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

/// Parses an octal number, or GNU's big-endian binary one.
fn number(field: &[u8]) -> Result<u64, Error> {
    if field[0] == 0x80 {
        let (high, low) = field.split_at(field.len() - 8);
        let low: [u8; 8] = low.try_into().unwrap_or_default();
        let fits = high[1..].iter().all(|byte| *byte == 0);
        return if fits {
            Ok(u64::from_be_bytes(low))
        } else {
            Err(malformed("a number too large"))
        };
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|error| malformed(&error.to_string()))
}

fn check_sum(header: &[u8; 512]) -> Result<(), Error> {
    let blanked = |(place, byte): (usize, &u8)| {
        if (148..156).contains(&place) {
            32
        } else {
            u64::from(*byte)
        }
    };
    let sum: u64 = header.iter().enumerate().map(blanked).sum();
    if number(&header[148..156])? == sum {
        Ok(())
    } else {
        Err(malformed("not a tar"))
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
        let mut builder = ::tar::Builder::new(Vec::new());
        let mut add = |kind, path: &str, link: &str, content: &[u8]| {
            let mut header = ::tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            match kind {
                ::tar::EntryType::Regular => {
                    builder.append_data(&mut header, path, content).unwrap()
                }
                _ => builder.append_link(&mut header, path, link).unwrap(),
            }
        };
        let long = format!("{}/layer.tar", "d".repeat(120));
        add(::tar::EntryType::Regular, "a/layer.tar", "", b"first");
        add(::tar::EntryType::Regular, &long, "", b"long");
        add(
            ::tar::EntryType::Symlink,
            "b/layer.tar",
            "../a/layer.tar",
            b"",
        );
        add(::tar::EntryType::Symlink, "loop", "loop", b"");
        add(::tar::EntryType::Link, "hard", "a/layer.tar", b"");
        add(::tar::EntryType::Regular, "a/layer.tar", "", b"second");
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
    fn pax_records_set_the_path_and_the_size() {
        let mut extension = Extension::default();
        extension.pax(b"15 path=a/b/c=\n9 size=7\n").unwrap();
        assert_eq!(
            (extension.path.as_deref(), extension.size),
            (Some("a/b/c="), Some(7))
        );
        for broken in [
            &b"5"[..],
            b"0 a=b\n",
            b"99 a=b\n",
            b"6 a=bc",
            b"2 \n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(Extension::default().pax(broken).is_err(), "{broken:?}");
        }
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
        let mut huge = ::tar::Header::new_gnu();
        huge.set_size(u64::MAX >> 1);
        huge.set_cksum();
        assert!(index(huge.as_bytes()).is_err());
        let mut link = ::tar::Header::new_gnu();
        link.set_entry_type(::tar::EntryType::Link);
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
