//! Names: paths in comparable form, and bytes that are not UTF-8 as text.

/// Returns the path below the root that `name` means: no `.`, `..` or empty components, no slash at
/// either end.
pub fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Returns `bytes` as text. As in Go, each byte that is not part of valid UTF-8 becomes U+FFFD.
pub fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_go_cleans_rooted_paths() {
        for (name, path) in [
            ("./a//b/", "a/b"),
            ("/a/../b", "b"),
            ("../../x", "x"),
            ("./", ""),
            ("a/.", "a"),
        ] {
            assert_eq!(clean(name.as_bytes()), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn each_invalid_byte_is_one_replacement() {
        assert_eq!(lossy(b"a\xe2\x82b"), "a\u{fffd}\u{fffd}b");
        assert_eq!(lossy(b"\xed\xa0\x80"), "\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(lossy("é".as_bytes()), "é");
    }
}
