//! Extended attributes: their encoding, and whether an inode holds them or shares them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::ImageError;
use crate::format::{XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};
use crate::limits::{MAX_XATTR_BODY, MAX_XATTR_LIST, MAX_XATTR_NAME, MAX_XATTR_VALUE};
use crate::node::NodeId;

/// `EROFS_XATTR_INDEX_*` with the part of the name that it stands for.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
const POSIX_ACLS: [(u8, &[u8]); 2] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
];

/// Longer entries are shared even if one inode has them, so that inodes stay close together.
const SHARED_ABOVE: usize = 512;
/// `h_shared_count` has 8 bits.
const MAX_SHARED: usize = u8::MAX as usize;
/// No more attributes in a list of uses.
const END: u32 = u32::MAX;

/// All extended attributes of an image, equal ones once.
#[derive(Debug, Default)]
pub(crate) struct XattrTable {
    entries: Vec<Entry>,
    numbers: HashMap<Arc<[u8]>, u32>,
    uses: Vec<Use>,
    /// Bytes of the shared area.
    shared_size: u64,
}

#[derive(Debug)]
struct Entry {
    /// `struct erofs_xattr_entry` with name, value and padding.
    bytes: Arc<[u8]>,
    /// Bytes of the full name.
    name_length: u16,
    /// Whether more than one inode has it.
    repeated: bool,
    /// Its identifier, if it is in the shared area.
    shared: Option<u32>,
}

impl Entry {
    /// The prefix's number and the rest of the name: no inode may have two entries with the same.
    fn name(&self) -> (u8, &[u8]) {
        let rest = &self.bytes[XATTR_ENTRY_SIZE..];
        (self.bytes[1], &rest[..usize::from(self.bytes[0])])
    }
}

/// An attribute of an inode, in a linked list.
#[derive(Debug)]
struct Use {
    entry: u32,
    next: u32,
}

/// The attributes of an inode; the default has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XattrList(u32);

impl Default for XattrList {
    fn default() -> Self {
        Self(END)
    }
}

impl XattrTable {
    /// Adds an attribute to `list`.
    pub(crate) fn add(
        &mut self,
        list: &mut XattrList,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), ImageError> {
        let bytes = encode(name, value)?;
        let entry = match self.numbers.get(bytes.as_slice()) {
            Some(&number) => {
                self.entries[number as usize].repeated = true;
                number
            }
            None => self.insert(bytes.into(), name)?,
        };
        let number = index(self.uses.len())?;
        self.uses.push(Use {
            entry,
            next: list.0,
        });
        list.0 = number;
        Ok(())
    }

    fn insert(&mut self, bytes: Arc<[u8]>, name: &[u8]) -> Result<u32, ImageError> {
        let number = index(self.entries.len())?;
        self.numbers.insert(Arc::clone(&bytes), number);
        self.entries.push(Entry {
            bytes,
            name_length: u16::try_from(name.len())
                .map_err(|_too_long| ImageError::XattrNameLength(name.len()))?,
            repeated: false,
            shared: None,
        });
        Ok(number)
    }

    /// Decides which entries are shared. Nothing may be added after that.
    pub(crate) fn share(&mut self) -> Result<(), ImageError> {
        for entry in &mut self.entries {
            if entry.repeated || entry.bytes.len() > SHARED_ABOVE {
                let identifier = self.shared_size / XATTR_ENTRY_SIZE as u64;
                entry.shared =
                    Some(u32::try_from(identifier).map_err(|_too_large| ImageError::ImageSize)?);
                self.shared_size += entry.bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// Bytes of the shared area.
    pub(crate) fn shared_size(&self) -> u64 {
        self.shared_size
    }

    /// The entries of the shared area.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &[u8]> {
        let shared = self.entries.iter().filter(|entry| entry.shared.is_some());
        shared.map(|entry| &*entry.bytes)
    }

    /// Checks the attributes of `node`. Returns the bytes that they take after the inode.
    pub(crate) fn size(&self, list: XattrList, node: NodeId) -> Result<u32, ImageError> {
        if list.0 == END {
            return Ok(0);
        }
        let entries = self.entries(list);
        if entries
            .windows(2)
            .any(|pair| pair[0].name() == pair[1].name())
        {
            return Err(ImageError::DuplicateXattr(node));
        }
        let names: usize = entries
            .iter()
            .map(|entry| usize::from(entry.name_length) + 1)
            .sum();
        let size = Body::new(&entries).size();
        if names > MAX_XATTR_LIST || size > MAX_XATTR_BODY {
            return Err(ImageError::XattrSpace(node));
        }
        u32::try_from(size).map_err(|_too_large| ImageError::XattrSpace(node))
    }

    /// `struct erofs_xattr_ibody_header` with the identifiers of shared entries, and other entries.
    pub(crate) fn encode(&self, list: XattrList) -> Vec<u8> {
        if list.0 == END {
            return Vec::new();
        }
        Body::new(&self.entries(list)).encode()
    }

    /// The entries of a list, by name.
    fn entries(&self, list: XattrList) -> Vec<&Entry> {
        let mut entries = Vec::new();
        let mut next = list.0;
        while let Some(link) = self.uses.get(next as usize) {
            entries.push(&self.entries[link.entry as usize]);
            next = link.next;
        }
        entries.sort_unstable_by_key(|entry| entry.name());
        entries
    }
}

/// The attributes that follow an inode.
struct Body<'a> {
    shared: Vec<u32>,
    inline: Vec<&'a Entry>,
}

impl<'a> Body<'a> {
    fn new(entries: &[&'a Entry]) -> Self {
        let (mut shared, mut inline) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry.shared {
                Some(identifier) if shared.len() < MAX_SHARED => shared.push(identifier),
                _ => inline.push(*entry),
            }
        }
        Self { shared, inline }
    }

    fn size(&self) -> usize {
        let inline: usize = self.inline.iter().map(|entry| entry.bytes.len()).sum();
        XATTR_HEADER_SIZE + self.shared.len() * 4 + inline
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; XATTR_HEADER_SIZE];
        // h_shared_count
        bytes[4] = u8::try_from(self.shared.len()).unwrap_or(u8::MAX);
        bytes.extend(
            self.shared
                .iter()
                .flat_map(|identifier| identifier.to_le_bytes()),
        );
        bytes.extend(self.inline.iter().flat_map(|entry| entry.bytes.iter()));
        bytes
    }
}

/// `struct erofs_xattr_entry` with name, value and padding.
fn encode(name: &[u8], value: &[u8]) -> Result<Vec<u8>, ImageError> {
    if name.len() > MAX_XATTR_NAME {
        return Err(ImageError::XattrNameLength(name.len()));
    }
    let (prefix, rest) = split(name).ok_or_else(|| ImageError::XattrName(name.to_vec()))?;
    let value_length = u16::try_from(value.len())
        .ok()
        .filter(|_| value.len() <= MAX_XATTR_VALUE);
    let value_length = value_length.ok_or(ImageError::XattrValueLength(value.len()))?;
    let name_length =
        u8::try_from(rest.len()).map_err(|_too_long| ImageError::XattrNameLength(name.len()))?;

    let mut bytes = vec![name_length, prefix];
    bytes.extend(value_length.to_le_bytes());
    bytes.extend(rest);
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(XATTR_ENTRY_SIZE), 0);
    Ok(bytes)
}

/// Returns the number of a name's prefix and the rest of the name, or none if Linux could not read
/// the attribute back.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.contains(&0) {
        return None;
    }
    let acl = POSIX_ACLS.iter().find(|(_, acl)| *acl == name);
    acl.map(|(number, _)| (*number, &b""[..])).or_else(|| {
        let prefixed =
            |(number, prefix): &(u8, &[u8])| Some((*number, name.strip_prefix(*prefix)?));
        PREFIXES
            .iter()
            .find_map(prefixed)
            .filter(|(_, rest)| !rest.is_empty())
    })
}

fn index(length: usize) -> Result<u32, ImageError> {
    u32::try_from(length)
        .ok()
        .filter(|index| *index != END)
        .ok_or(ImageError::ImageSize)
}

#[cfg(test)]
mod tests {
    use super::{XattrList, XattrTable, encode};
    use crate::error::ImageError;
    use crate::node::NodeId;

    const NODE: NodeId = NodeId(3);

    #[test]
    fn entries_are_padded() {
        assert_eq!(encode(b"user.ab", b"c").unwrap(), b"\x02\x01\x01\0abc\0");
        assert_eq!(
            encode(b"trusted.overlay.opaque", b"y").unwrap(),
            b"\x0e\x04\x01\0overlay.opaquey\0"
        );
        assert_eq!(encode(b"security.a", b"").unwrap(), b"\x01\x06\0\0a\0\0\0");
        assert_eq!(
            encode(b"system.posix_acl_access", b"acl!").unwrap(),
            b"\0\x02\x04\0acl!"
        );
        assert_eq!(
            encode(b"system.posix_acl_default", b"").unwrap(),
            b"\0\x03\0\0"
        );
    }

    #[test]
    fn names_without_a_prefix_are_errors() {
        for name in [
            &b""[..],
            b"user.",
            b"user",
            b"system.x",
            b"system.posix_acl_accessx",
            b"lustre.a",
            b"user.a\0b",
        ] {
            assert!(
                matches!(encode(name, b""), Err(ImageError::XattrName(_))),
                "{name:?}"
            );
        }
        assert!(matches!(
            encode(&[b'u'; 256], b""),
            Err(ImageError::XattrNameLength(256))
        ));
        assert!(matches!(
            encode(b"user.a", &[0; 65536]),
            Err(ImageError::XattrValueLength(65536))
        ));
        assert!(encode(b"user.a", &[0; 65535]).is_ok());
    }

    #[test]
    fn lists_do_not_depend_on_the_order_of_calls() {
        let body = |names: [&[u8]; 3]| {
            let (mut table, mut list) = (XattrTable::default(), XattrList::default());
            names
                .iter()
                .for_each(|name| table.add(&mut list, name, b"v").unwrap());
            table.share().unwrap();
            table.encode(list)
        };
        assert_eq!(
            body([b"user.a", b"security.b", b"user.c"]),
            body([b"user.c", b"user.a", b"security.b"])
        );
    }

    #[test]
    fn repeated_and_long_entries_are_shared() {
        let mut table = XattrTable::default();
        let (mut one, mut two) = (XattrList::default(), XattrList::default());
        table.add(&mut one, b"user.same", b"v").unwrap();
        table.add(&mut two, b"user.same", b"v").unwrap();
        table.add(&mut two, b"user.own", b"v").unwrap();
        table.add(&mut two, b"user.long", &[7; 600]).unwrap();
        table.share().unwrap();
        assert_eq!(table.size(one, NODE).unwrap(), 12 + 4);
        assert_eq!(table.size(two, NODE).unwrap(), 12 + 4 + 4 + 8);
        assert_eq!(
            table.shared().map(<[u8]>::len).collect::<Vec<_>>(),
            [12, 608]
        );
        assert_eq!(table.shared_size(), 620);
        // Identifiers count four bytes: the long entry is the fourth.
        assert_eq!(
            table.encode(two)[4..20],
            [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn an_inode_shares_at_most_255() {
        let mut table = XattrTable::default();
        let (mut one, mut two) = (XattrList::default(), XattrList::default());
        for number in 0..300 {
            let name = format!("user.{number:03}");
            table.add(&mut one, name.as_bytes(), b"v").unwrap();
            table.add(&mut two, name.as_bytes(), b"v").unwrap();
        }
        table.share().unwrap();
        assert_eq!(table.size(one, NODE).unwrap(), 12 + 255 * 4 + 45 * 8);
        assert_eq!(table.encode(one).len(), 12 + 255 * 4 + 45 * 8);
        assert_eq!(table.encode(one)[4], 255);
    }

    #[test]
    fn lists_have_limits() {
        let (mut table, mut list) = (XattrTable::default(), XattrList::default());
        table.add(&mut list, b"user.a", b"1").unwrap();
        table.add(&mut list, b"user.a", b"2").unwrap();
        assert!(matches!(
            table.size(list, NODE),
            Err(ImageError::DuplicateXattr(NODE))
        ));

        let mut list = XattrList::default();
        for number in 0..6000 {
            table
                .add(&mut list, format!("user.{number:06}").as_bytes(), b"")
                .unwrap();
        }
        assert!(matches!(
            table.size(list, NODE),
            Err(ImageError::XattrSpace(NODE))
        ));
    }
}
