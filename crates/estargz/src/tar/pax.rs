//! Pax extended headers: `LENGTH KEY=VALUE\n` records.

use std::collections::BTreeMap;

/// The records of the pax headers that belong to one entry; later records replace earlier ones.
#[derive(Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
}

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// Adds the records of one extended header. The error is a noun phrase for
    /// [`Error::Header`](super::Error::Header).
    pub(super) fn parse(&mut self, mut text: &[u8]) -> Result<(), &'static str> {
        // Version 0.0 of the sparse format repeats these two keys in turn, once for each segment.
        let mut sparse_map: Vec<u8> = Vec::new();
        let mut sparse_values = 0_usize;
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or("a malformed pax record")?;
            text = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let wants_length = sparse_values % 2 == 1;
                    if wants_length != (key == b"GNU.sparse.numbytes") || value.contains(&b',') {
                        return Err("sparse records out of order");
                    }
                    if sparse_values > 0 {
                        sparse_map.push(b',');
                    }
                    sparse_map.extend_from_slice(value);
                    sparse_values += 1;
                }
                _ => {
                    self.values.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        if !sparse_map.is_empty() {
            self.values.insert(b"GNU.sparse.map".to_vec(), sparse_map);
        }
        Ok(())
    }

    /// The value of `key`; an empty one means "as in the plain header".
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values
            .get(key.as_bytes())
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    pub(super) fn xattrs(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let named = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            Some((key.strip_prefix(XATTR_PREFIX)?.to_vec(), value.clone()))
        };
        self.values.iter().filter_map(named).collect()
    }
}

/// Splits off the first record: its key, its value and the rest.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    if length <= space + 2 || length > text.len() {
        return None;
    }
    let (record, rest) = text.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    let has_nul = key.contains(&0) || (is_text && value.contains(&0));
    (!has_nul && !key.is_empty()).then_some((key, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_anything_after_the_key() {
        let mut records = Records::default();
        records
            .parse(b"30 SCHILY.xattr.user.a=\0\n\xff=x\n\n12 path=a/b\n")
            .unwrap();
        assert_eq!(records.get("path"), Some(&b"a/b"[..]));
        assert_eq!(
            records.xattrs().get(&b"user.a"[..]),
            Some(&b"\0\n\xff=x\n"[..].to_vec())
        );
    }

    #[test]
    fn malformed_records_are_errors() {
        for text in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"6 ab\nxx",
            b"3 =\n",
            b"x a=b\n",
            b"11 path=a\0b\n",
            b"6 a=bc",
        ] {
            assert!(Records::default().parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_repeated_keys_of_sparse_0_0_become_one_map() {
        let mut records = Records::default();
        records
            .parse(
                b"23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=5\n23 GNU.sparse.offset=9\n25 GNU.sparse.numbytes=1\n",
            )
            .unwrap();
        assert_eq!(records.get("GNU.sparse.map"), Some(&b"0,5,9,1"[..]));
        assert!(
            Records::default()
                .parse(b"25 GNU.sparse.numbytes=5\n")
                .is_err()
        );
    }
}
