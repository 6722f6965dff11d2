//! The meaning of one entry's header blocks together.

use std::collections::BTreeMap;

use super::number;
use super::pax::Records;
use super::{BLOCK, MAX_PATH_BYTES, MAX_PATH_DEPTH, SparseMap};
use crate::entry::EntryKind;
use crate::time::Time;

/// An entry of a tar: the plain header, overridden by pax records, overridden by GNU long names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub path: Vec<u8>,
    /// The target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// Never [`EntryKind::Chunk`].
    pub kind: EntryKind,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub user_name: Vec<u8>,
    pub group_name: Vec<u8>,
    pub mod_time: Time,
    pub dev_major: i64,
    pub dev_minor: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of the file, holes included; zero for all but regular files.
    pub size: u64,
    /// Bytes of payload that follow in the archive; equals `size` unless the file is sparse.
    pub stored: u64,
    pub sparse: Option<SparseMap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// One header block whose checksum is right.
#[derive(Debug)]
pub(super) struct Block<'a> {
    bytes: &'a [u8; BLOCK],
    pub(super) format: Format,
}

impl<'a> Block<'a> {
    pub(super) fn parse(bytes: &'a [u8; BLOCK]) -> Result<Self, &'static str> {
        let expected = number::parse(&bytes[148..156]).ok_or("a malformed checksum")?;
        let counted = |index: usize, byte: u8| {
            if (148..156).contains(&index) {
                b' '
            } else {
                byte
            }
        };
        let sum = |value: fn(u8) -> i64| -> i64 {
            bytes
                .iter()
                .enumerate()
                .map(|(index, byte)| value(counted(index, *byte)))
                .sum()
        };
        // Some old archivers summed signed bytes.
        if expected != sum(i64::from) && expected != sum(|byte| i64::from(byte.cast_signed())) {
            return Err("a wrong checksum");
        }
        let format = match (&bytes[257..263], &bytes[263..265]) {
            (b"ustar\0", _) if &bytes[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        };
        Ok(Self { bytes, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.bytes[156]
    }

    pub(super) fn size(&self) -> Result<u64, &'static str> {
        let size = number::parse(&self.bytes[124..136]).ok_or("a malformed size")?;
        u64::try_from(size).map_err(|_negative| "a negative size")
    }

    /// The four segments of an old GNU sparse header, whether more blocks follow, and the file's
    /// whole size.
    pub(super) fn old_sparse(&self) -> Result<(&'a [u8], bool, u64), &'static str> {
        if self.format != Format::Gnu {
            return Err("a sparse file in a format that has none");
        }
        let size = number::parse(&self.bytes[483..495]).and_then(|size| u64::try_from(size).ok());
        Ok((
            &self.bytes[386..482],
            self.bytes[482] != 0,
            size.ok_or("a malformed sparse size")?,
        ))
    }

    fn name(&self) -> Vec<u8> {
        let name = text(&self.bytes[..100]);
        let prefix = match self.format {
            Format::Ustar => text(&self.bytes[345..500]),
            Format::Star => text(&self.bytes[345..476]),
            Format::V7 | Format::Gnu => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    /// Returns the header of this block with `pax` laid over it. `long_name` and `long_link`
    /// override both.
    pub(super) fn header(
        &self,
        kind: EntryKind,
        pax: &Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Header, &'static str> {
        let number = |range: std::ops::Range<usize>| {
            number::parse(&self.bytes[range]).ok_or("a malformed number")
        };
        let id = |key: &str, range| match pax.get(key) {
            Some(value) => number::decimal(value).ok_or("a malformed pax id"),
            None => number(range),
        };
        let named = |key: &str, range: std::ops::Range<usize>| match pax.get(key) {
            Some(value) => value.to_vec(),
            None if self.format == Format::V7 => Vec::new(),
            None => text(&self.bytes[range]).to_vec(),
        };
        let device = |range| {
            if self.format == Format::V7 {
                Ok(0)
            } else {
                number(range)
            }
        };
        let mod_time = match pax.get("mtime") {
            Some(value) => Time::from_pax(value).ok_or("a malformed pax mtime")?,
            None => Time {
                seconds: number(136..148)?,
                nanoseconds: 0,
            },
        };
        let pax_link = || pax.get("linkpath").map(<[u8]>::to_vec);
        let header = Header {
            path: long_name
                .or_else(|| pax.get("path").map(<[u8]>::to_vec))
                .unwrap_or_else(|| self.name()),
            link: long_link
                .or_else(pax_link)
                .unwrap_or_else(|| text(&self.bytes[157..257]).to_vec()),
            kind,
            mode: number(100..108)?,
            uid: id("uid", 108..116)?,
            gid: id("gid", 116..124)?,
            user_name: named("uname", 265..297),
            group_name: named("gname", 297..329),
            mod_time,
            dev_major: device(329..337)?,
            dev_minor: device(337..345)?,
            xattrs: pax.xattrs(),
            size: 0,
            stored: 0,
            sparse: None,
        };
        Ok(header)
    }
}

impl Header {
    /// The header of a file that the writer adds: owner, mode and time are zero, as in the
    /// reference.
    #[cfg(feature = "write")]
    pub(crate) fn plain_file(path: &str, size: u64) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            link: Vec::new(),
            kind: EntryKind::Reg,
            mode: 0,
            uid: 0,
            gid: 0,
            user_name: Vec::new(),
            group_name: Vec::new(),
            mod_time: Time::default(),
            dev_major: 0,
            dev_minor: 0,
            xattrs: BTreeMap::new(),
            size,
            stored: size,
            sparse: None,
        }
    }

    /// Checks [`MAX_PATH_BYTES`] and [`MAX_PATH_DEPTH`]. The error is the name of the limit and the
    /// limit.
    pub(super) fn check_paths(&self) -> Result<(), (&'static str, usize)> {
        if self.path.len() > MAX_PATH_BYTES || self.link.len() > MAX_PATH_BYTES {
            return Err(("bytes in a path", MAX_PATH_BYTES));
        }
        if self.path.split(|byte| *byte == b'/').count() > MAX_PATH_DEPTH {
            return Err(("components in a path", MAX_PATH_DEPTH));
        }
        Ok(())
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
