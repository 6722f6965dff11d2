//! Headers that the writer makes: landmarks, the TOC, and sparse files written out.

use super::{BLOCK, Header, padding};

/// A ustar header of a regular file. Mode, owner and time are zero, as in the reference.
pub fn file_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, name.as_bytes());
    for (at, digits) in [(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)] {
        put_octal(&mut block, at, digits, 0);
    }
    put_octal(&mut block, 124, 12, size);
    block[156] = b'0';
    put(&mut block, 257, b"ustar\x0000");
    seal(&mut block);
    block
}

/// A file with its content, padding included.
pub fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK + content.len() + BLOCK);
    bytes.extend_from_slice(&file_header(name, content.len() as u64));
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len() + padding(content.len() as u64), 0);
    bytes
}

/// A pax extended header with `records`, to be placed before another header.
pub fn pax_header(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length = length.to_string().len() + body;
        }
        text.extend_from_slice(length.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(key);
        text.push(b'=');
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    let mut bytes = file("PaxHeaders.0/entry", &text);
    if let Some(block) = bytes.first_chunk_mut::<BLOCK>() {
        block[156] = b'x';
        seal(block);
    }
    bytes
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes octal digits and a NUL, or base 256 if the value does not fit.
fn put_octal(block: &mut [u8; BLOCK], at: usize, field: usize, value: u64) {
    let text = format!("{value:0width$o}", width = field - 1);
    if text.len() < field {
        put(block, at, text.as_bytes());
        return;
    }
    put(block, at + field - 8, &value.to_be_bytes());
    block[at] = 0x80;
}

fn seal(block: &mut [u8; BLOCK]) {
    put(block, 148, b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

/// The headers of `header` as an ordinary entry, for a sparse file that is written out.
pub fn plain(header: &Header) -> Vec<u8> {
    let numbers = [
        ("size", header.size.to_string()),
        ("uid", header.uid.to_string()),
        ("gid", header.gid.to_string()),
    ];
    let mod_time = header.mod_time.pax();
    let mut records: Vec<(&[u8], &[u8])> =
        vec![(b"path", &header.path), (b"mtime", mod_time.as_bytes())];
    records.extend(
        numbers
            .iter()
            .map(|(key, value)| (key.as_bytes(), value.as_bytes())),
    );
    for (key, name) in [
        (&b"uname"[..], &header.user_name),
        (b"gname", &header.group_name),
    ] {
        if !name.is_empty() {
            records.push((key, name));
        }
    }
    let attributes: Vec<(Vec<u8>, &[u8])> = header
        .xattrs
        .iter()
        .map(|(key, value)| ([b"SCHILY.xattr.", &key[..]].concat(), &value[..]))
        .collect();
    records.extend(attributes.iter().map(|(key, value)| (&key[..], *value)));
    let mut bytes = pax_header(&records);
    let mut block = file_header("entry", 0);
    put_octal(&mut block, 100, 8, header.mode.cast_unsigned());
    seal(&mut block);
    bytes.extend_from_slice(&block);
    bytes
}
