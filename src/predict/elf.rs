//! Reads from an ELF file how it is loaded (System V ABI, chapter 5): its interpreter, its
//! libraries and their directories.
//!
//! No buffer is sized by a number in the file: every part is a slice of bytes that exist.

use std::collections::HashSet;
use std::ops::Range;

use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, ELFCLASS64, FileHeader32,
    FileHeader64, PT_DYNAMIC, PT_INTERP, PT_LOAD,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use super::fuel::Fuel;
use super::sparse::Sparse;

const MAGIC: &[u8] = b"\x7fELF";
/// Most entries of the dynamic section that are read. The largest known files have a few hundred.
const MAX_DYNAMIC: usize = 4096;
/// The longest string table. Libraries of a hundred MiB have about five MiB.
const MAX_STRINGS: u64 = 16 << 20;
/// The longest path or name of a library (Linux, `PATH_MAX`).
const MAX_NAME: usize = 4096;

/// Functions that read files which the dynamic section does not list.
const HINTS: &[&str] = &[
    "getaddrinfo",
    "getgrnam",
    "getpwnam",
    "getpwuid",
    "getpwuid_r",
    "initgroups",
    "localtime",
    "localtime_r",
    "setlocale",
    "tzset",
];

/// The parts of an executable or a library that decide which files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elf {
    /// Whether the file has 64 bits; otherwise 32.
    pub(super) is_64: bool,
    /// The field `e_machine`.
    pub(super) machine: u16,
    pub(super) interpreter: Option<String>,
    pub(super) needed: Vec<String>,
    /// Directories to search. Tokens like `$ORIGIN` are not replaced yet.
    pub(super) rpath: Vec<String>,
    pub(super) runpath: Vec<String>,
    /// The functions of `HINTS` that are among the symbol names.
    hints: HashSet<&'static str>,
}

/// A failure to read an ELF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// The byte at this offset is needed.
    Missing(u64),
    /// The file is not ELF, or is not valid.
    NotElf,
}

impl Elf {
    /// Whether it calls the function `function`.
    pub(super) fn calls(&self, function: &str) -> bool {
        self.hints.contains(function)
    }

    /// Whether it can be loaded into one process with `other`.
    pub(super) fn fits(&self, other: &Self) -> bool {
        (self.is_64, self.machine) == (other.is_64, other.machine)
    }
}

/// Reads an ELF file from the pieces that are known.
pub(super) fn read(file: &Sparse, fuel: &Fuel) -> Result<Elf, Refused> {
    let refused = || file.missing().map_or(Refused::NotElf, Refused::Missing);
    let identity = file.read_bytes_at(0, 16).map_err(|()| refused())?;
    if !identity.starts_with(MAGIC) {
        return Err(Refused::NotElf);
    }
    let read = if identity.get(4) == Some(&ELFCLASS64.0) {
        parse::<FileHeader64<Endianness>>(file, fuel)
    } else {
        parse::<FileHeader32<Endianness>>(file, fuel)
    };
    read.ok_or_else(refused)
}

fn parse<H: FileHeader<Endian = Endianness>>(file: &Sparse, fuel: &Fuel) -> Option<Elf> {
    let header = H::parse(file).ok()?;
    let endian = header.endian().ok()?;
    let mut elf = Elf {
        is_64: header.is_class_64(),
        machine: header.e_machine(endian).0,
        interpreter: None,
        needed: Vec::new(),
        rpath: Vec::new(),
        runpath: Vec::new(),
        hints: HashSet::new(),
    };
    let segments = header.program_headers(endian, file).ok()?;
    let mut entries: &[H::Dyn] = &[];
    for segment in fuel.each(segments) {
        match segment.p_type(endian) {
            PT_INTERP => elf.interpreter = text(segment.data(endian, file).ok()?, fuel),
            PT_DYNAMIC => entries = segment.data_as_array(endian, file).ok()?,
            _ => {}
        }
    }
    let entries = entries.get(..MAX_DYNAMIC).unwrap_or(entries);
    let entries = || {
        let pairs = fuel
            .each(entries)
            .map(|entry| (entry.d_tag(endian), entry.d_val(endian).into()));
        pairs.take_while(|(tag, _)| *tag != DT_NULL)
    };
    let value = |wanted| {
        entries()
            .find(|(tag, _)| *tag == wanted)
            .map(|(_, value): (_, u64)| value)
    };
    let (Some(address), Some(length)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
        return Some(elf);
    };
    let strings = in_file::<H>(segments, endian, address, length.min(MAX_STRINGS))?;
    let strings = file
        .read_bytes_at(strings.start, strings.end - strings.start)
        .ok()?;
    let string = |offset: u64| text(strings.get(usize::try_from(offset).ok()?..)?, fuel);
    let list = |offset: u64| string(offset).map(|list| fuel.copies(list.split(':')));
    for (tag, value) in entries() {
        match tag {
            DT_NEEDED => elf.needed.extend(string(value)),
            DT_RPATH => elf.rpath = list(value).unwrap_or_default(),
            DT_RUNPATH => elf.runpath = list(value).unwrap_or_default(),
            _ => {}
        }
    }
    // Every name is compared with all hints.
    let names = strings
        .split(|byte| *byte == 0)
        .take_while(|name| fuel.look_through(name.len() + HINTS.len()));
    elf.hints = names
        .filter_map(|name| HINTS.iter().find(|hint| hint.as_bytes() == name))
        .copied()
        .collect();
    Some(elf)
}

/// Returns the range in the file of the `length` bytes that are loaded at `address`.
fn in_file<H: FileHeader<Endian = Endianness>>(
    segments: &[H::ProgramHeader],
    endian: Endianness,
    address: u64,
    length: u64,
) -> Option<Range<u64>> {
    let mut loaded = segments
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD);
    loaded.find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian).into())?;
        let (offset, size) = segment.file_range(endian);
        let left = size.checked_sub(into)?;
        let start = offset.checked_add(into)?;
        (length <= left).then_some(start..start.checked_add(length)?)
    })
}

/// Returns the text up to the first NUL byte, or `None` if it is longer than a path may be.
fn text(bytes: &[u8], fuel: &Fuel) -> Option<String> {
    let bytes = bytes.get(..MAX_NAME + 1).unwrap_or(bytes);
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let text = bytes.get(..end).filter(|text| text.len() <= MAX_NAME)?;
    let text = std::str::from_utf8(text)
        .ok()
        .filter(|text| fuel.make(text.len()))?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shell() -> Vec<u8> {
        std::fs::read("/bin/sh").unwrap()
    }

    #[test]
    fn a_real_executable_names_its_libraries() {
        let elf = read(&Sparse::whole(&shell()), &Fuel::new()).unwrap();
        assert!(
            elf.interpreter
                .as_deref()
                .is_some_and(|path| path.contains("ld-")),
            "{elf:?}"
        );
        assert!(
            elf.needed.iter().any(|name| name.starts_with("libc.")),
            "{elf:?}"
        );
        assert!(elf.is_64 && elf.fits(&elf));
    }

    #[test]
    fn a_file_is_read_piece_by_piece() {
        let bytes = shell();
        let (mut sparse, mut pieces) = (Sparse::new(bytes.len() as u64), 0);
        let elf = loop {
            match read(&sparse, &Fuel::new()) {
                Ok(elf) => break elf,
                Err(Refused::Missing(offset)) => {
                    let start = usize::try_from(offset).unwrap() / 4096 * 4096;
                    sparse.add(
                        start as u64,
                        bytes[start..bytes.len().min(start + 4096)].to_vec(),
                    );
                    pieces += 1;
                }
                Err(Refused::NotElf) => panic!("/bin/sh is an ELF file"),
            }
        };
        assert_eq!(Ok(elf), read(&Sparse::whole(&bytes), &Fuel::new()));
        assert!(pieces * 4096 < bytes.len(), "{pieces} pieces");
    }

    #[test]
    fn other_files_are_not_elf() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF", &[0; 100]] {
            assert_eq!(
                read(&Sparse::whole(bytes), &Fuel::new()),
                Err(Refused::NotElf),
                "{bytes:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_rejected_or_read_without_a_panic(
            changes in proptest::collection::vec((0usize..1024, any::<u8>()), 0..40),
            cut in 0usize..200_000,
        ) {
            let mut bytes = shell();
            bytes.truncate(cut.max(64));
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if let Ok(elf) = read(&Sparse::whole(&bytes), &Fuel::new()) {
                prop_assert!(elf.needed.len() <= MAX_DYNAMIC);
            }
        }
    }
}
