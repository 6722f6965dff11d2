//! Writes the JSON of a TOC, byte for byte like Go's `json.MarshalIndent(toc, "", "\t")`, because
//! its digest depends on the layout.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::entry::{Entry, EntryKind};

/// Collects entries into the JSON of a TOC.
#[derive(Debug, Clone)]
pub struct TocWriter {
    json: String,
    entries: u64,
}

impl Default for TocWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl TocWriter {
    /// A TOC without entries.
    pub fn new() -> Self {
        Self {
            json: "{\n\t\"version\": 1,\n\t\"entries\": ".to_owned(),
            entries: 0,
        }
    }

    /// As [`new`](Self::new), with room for `bytes` bytes of JSON. Without it, growing holds the
    /// JSON in memory twice for a moment.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut writer = Self::new();
        writer.json.reserve(bytes);
        writer
    }

    /// Adds the next entry.
    pub fn push(&mut self, entry: &Entry) {
        self.json.push_str(if self.entries == 0 {
            "[\n\t\t{"
        } else {
            ",\n\t\t{"
        });
        self.entries += 1;
        Object {
            json: &mut self.json,
            empty: true,
        }
        .entry(entry);
        self.json.push_str("\n\t\t}");
    }

    /// Bytes of JSON so far.
    pub fn len(&self) -> usize {
        self.json.len()
    }

    /// Whether no entry has been added.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Returns the JSON. Without entries the list is `null`, as in Go.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.push_str(if self.entries == 0 {
            "null\n}"
        } else {
            "\n\t]\n}"
        });
        self.json.into_bytes()
    }
}

/// An object of the entry list under construction.
struct Object<'a> {
    json: &'a mut String,
    empty: bool,
}

impl Object<'_> {
    fn entry(&mut self, entry: &Entry) {
        self.bytes(
            "name",
            entry.raw_name.as_deref().unwrap_or(entry.name.as_bytes()),
        );
        self.bytes("type", kind_name(entry.kind).as_bytes());
        self.unsigned("size", entry.size);
        self.text("modtime", &entry.mod_time);
        let link_name = entry
            .raw_link_name
            .as_deref()
            .unwrap_or(entry.link_name.as_bytes());
        if !link_name.is_empty() {
            self.bytes("linkName", link_name);
        }
        self.signed("mode", entry.mode);
        self.signed("uid", entry.uid);
        self.signed("gid", entry.gid);
        self.text("userName", &entry.user_name);
        self.text("groupName", &entry.group_name);
        self.unsigned("offset", entry.offset);
        self.unsigned("innerOffset", entry.inner_offset);
        self.signed("devMajor", entry.dev_major);
        self.signed("devMinor", entry.dev_minor);
        self.signed("NumLink", entry.num_link);
        self.xattrs(entry);
        self.text("digest", &entry.digest);
        self.unsigned("chunkOffset", entry.chunk_offset);
        self.unsigned("chunkSize", entry.chunk_size);
        self.text("chunkDigest", &entry.chunk_digest);
        self.base64("rawName", entry.raw_name.as_deref());
        self.base64("rawLinkName", entry.raw_link_name.as_deref());
    }

    fn key(&mut self, key: &str) {
        let separator = if self.empty { "" } else { "," };
        self.empty = false;
        for part in [separator, "\n\t\t\t\"", key, "\": "] {
            self.json.push_str(part);
        }
    }

    fn bytes(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        push_string(self.json, value);
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.bytes(key, value.as_bytes());
        }
    }

    fn unsigned(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.key(key);
            push_display(self.json, value);
        }
    }

    fn signed(&mut self, key: &str, value: i64) {
        if value != 0 {
            self.key(key);
            push_display(self.json, value);
        }
    }

    fn base64(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.key(key);
            push_string(self.json, STANDARD.encode(value).as_bytes());
        }
    }

    fn xattrs(&mut self, entry: &Entry) {
        if entry.xattrs.is_empty() {
            return;
        }
        self.key("xattrs");
        for (index, (name, value)) in entry.xattrs.iter().enumerate() {
            self.json.push_str(if index == 0 {
                "{\n\t\t\t\t"
            } else {
                ",\n\t\t\t\t"
            });
            push_string(self.json, name.as_bytes());
            self.json.push_str(": ");
            push_string(self.json, STANDARD.encode(value).as_bytes());
        }
        self.json.push_str("\n\t\t\t}");
    }
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Dir => "dir",
        EntryKind::Reg => "reg",
        EntryKind::Symlink => "symlink",
        EntryKind::Hardlink => "hardlink",
        EntryKind::Char => "char",
        EntryKind::Block => "block",
        EntryKind::Fifo => "fifo",
        EntryKind::Chunk => "chunk",
    }
}

fn push_display(json: &mut String, value: impl std::fmt::Display) {
    let _infallible = write!(json, "{value}");
}

/// Writes a JSON string like Go 1.19 with HTML escaping, which is its default. Each byte that is
/// not UTF-8 becomes the escape `\ufffd`.
fn push_string(json: &mut String, bytes: &[u8]) {
    json.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_character(json, character);
        }
        for _invalid_byte in chunk.invalid() {
            json.push_str("\\ufffd");
        }
    }
    json.push('"');
}

fn push_character(json: &mut String, character: char) {
    match character {
        '"' => json.push_str("\\\""),
        '\\' => json.push_str("\\\\"),
        '\n' => json.push_str("\\n"),
        '\r' => json.push_str("\\r"),
        '\t' => json.push_str("\\t"),
        '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
            let _infallible = write!(json, "\\u{:04x}", u32::from(character));
        }
        plain => json.push(plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut json = String::new();
        push_string(&mut json, bytes);
        json
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        assert_eq!(text(b"a<b>&c"), r#""a\u003cb\u003e\u0026c""#);
        assert_eq!(
            text(b"\"\\\n\r\t\x08\x0c\x01\x1f\x7f/"),
            "\"\\\"\\\\\\n\\r\\t\\u0008\\u000c\\u0001\\u001f\x7f/\""
        );
        assert_eq!(
            text("\u{2028}\u{2029}\u{fffd}é😀".as_bytes()),
            "\"\\u2028\\u2029\u{fffd}é😀\""
        );
        assert_eq!(text(b"\xe2\x82 \xff"), r#""\ufffd\ufffd \ufffd""#);
    }

    #[test]
    fn no_entries_are_null() {
        assert_eq!(
            TocWriter::new().finish(),
            b"{\n\t\"version\": 1,\n\t\"entries\": null\n}"
        );
    }

    #[test]
    fn a_nested_object_is_indented_with_tabs() {
        let entry: Entry = serde_json::from_str(
            r#"{"name":"a/","type":"dir","mode":493,"uid":-1,"xattrs":{"user.b":"AA==","user.a":""},"rawName":"YS8="}"#,
        )
        .unwrap();
        let mut writer = TocWriter::new();
        writer.push(&entry);
        writer.push(&entry);
        let object = "\t\t{\n\t\t\t\"name\": \"a/\",\n\t\t\t\"type\": \"dir\",\n\t\t\t\"mode\": 493,\n\t\t\t\"uid\": -1,\n\
                      \t\t\t\"xattrs\": {\n\t\t\t\t\"user.a\": \"\",\n\t\t\t\t\"user.b\": \"AA==\"\n\t\t\t},\n\
                      \t\t\t\"rawName\": \"YS8=\"\n\t\t}";
        let expected =
            format!("{{\n\t\"version\": 1,\n\t\"entries\": [\n{object},\n{object}\n\t]\n}}");
        assert_eq!(String::from_utf8(writer.finish()).unwrap(), expected);
    }
}
