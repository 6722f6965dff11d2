//! Compares the fields of one entry in the tar and in the TOC.

use std::collections::BTreeMap;
use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::finding::Finding;
use crate::entry::EntryKind;
use crate::tar::{self, Header};
use crate::time::Time;
use crate::toc::build::exact;
use crate::toc::json::RawEntry;

/// The bits of a mode that a file system keeps. Some archivers set others too.
const MODE_BITS: i64 = 0o7777;

/// Returns every field that differs. `owners` are the names of the TOC's entry.
pub(super) fn fields(header: &Header, entry: &RawEntry<'_>, owners: (&str, &str)) -> Vec<Finding> {
    let mut differences = Differences {
        path: tar::lossy(&header.path),
        findings: Vec::new(),
    };
    differences.compare(
        "type",
        &format!("{:?}", header.kind),
        &format!("{:?}", entry.kind),
    );
    differences.compare("mode", &octal(header.mode), &octal(entry.mode));
    differences.compare("uid", &header.uid, &entry.uid);
    differences.compare("gid", &header.gid, &entry.gid);
    // A TOC cannot express that an id has no name after it had one.
    if !header.user_name.is_empty() {
        differences.compare("userName", tar::lossy(&header.user_name).as_str(), owners.0);
    }
    if !header.group_name.is_empty() {
        differences.compare(
            "groupName",
            tar::lossy(&header.group_name).as_str(),
            owners.1,
        );
    }
    differences.time(header, entry);
    differences.name(header, entry);
    differences.xattrs(header, entry);
    match header.kind {
        EntryKind::Reg => differences.compare("size", &header.size, &entry.size),
        EntryKind::Symlink | EntryKind::Hardlink => differences.link(header, entry),
        EntryKind::Char | EntryKind::Block => {
            differences.compare("devMajor", &header.dev_major, &entry.dev_major);
            differences.compare("devMinor", &header.dev_minor, &entry.dev_minor);
        }
        EntryKind::Dir | EntryKind::Fifo | EntryKind::Chunk => {}
    }
    differences.findings
}

struct Differences {
    path: String,
    findings: Vec<Finding>,
}

impl Differences {
    fn compare<T: Display + PartialEq + ?Sized>(&mut self, field: &'static str, tar: &T, toc: &T) {
        if tar != toc {
            let path = self.path.clone();
            self.findings.push(Finding::Field {
                path,
                field,
                tar: tar.to_string(),
                toc: toc.to_string(),
            });
        }
    }

    /// The time of a TOC is rounded to seconds, as in the reference, or exact, as in
    /// containers/storage.
    fn time(&mut self, header: &Header, entry: &RawEntry<'_>) {
        let exact = Time::from_rfc3339(&entry.mod_time);
        if exact != header.mod_time {
            self.compare(
                "modtime",
                header.mod_time.rfc3339().as_str(),
                entry.mod_time.as_ref(),
            );
        }
    }

    fn name(&mut self, header: &Header, entry: &RawEntry<'_>) {
        self.bytes("name", &header.path, &entry.name, entry.raw_name.as_deref());
    }

    fn link(&mut self, header: &Header, entry: &RawEntry<'_>) {
        self.bytes(
            "linkName",
            &header.link,
            &entry.link_name,
            entry.raw_link_name.as_deref(),
        );
    }

    /// Bytes that are not UTF-8 are exact in the raw field, or lossy if the writer has no such
    /// field.
    fn bytes(&mut self, field: &'static str, tar: &[u8], text: &str, raw: Option<&str>) {
        let toc = exact(text, raw, &self.path, field).unwrap_or_default();
        if *toc != *tar && (raw.is_some() || text != tar::lossy(tar)) {
            self.compare(field, tar::lossy(tar).as_str(), text);
        }
    }

    fn xattrs(&mut self, header: &Header, entry: &RawEntry<'_>) {
        let in_tar: BTreeMap<String, String> = header
            .xattrs
            .iter()
            .map(|(name, value)| (tar::lossy(name), STANDARD.encode(value)))
            .collect();
        let in_toc = entry.xattrs.clone().unwrap_or_default();
        let in_toc: BTreeMap<String, String> = in_toc
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect();
        if in_tar != in_toc {
            self.compare("xattrs", &format!("{in_tar:?}"), &format!("{in_toc:?}"));
        }
    }
}

fn octal(mode: i64) -> String {
    format!("{:04o}", mode & MODE_BITS)
}
