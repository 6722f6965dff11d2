//! Compares the file tree of a blob with the one that its source unpacks to.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, Read, Seek};

use super::finding::Finding;
use super::source::{self, is_zeros};
use super::{Expected, MAX_FINDINGS, VerifyError};
use crate::archive::open;
use crate::tar;
use crate::toc::{Kind, Located, Node, NodeId, Toc, TocError};

/// Names at the root that belong to the format and not to the image.
const FORMAT_NAMES: [&[u8]; 3] = [
    b"stargz.index.json",
    b".prefetch.landmark",
    b".no.prefetch.landmark",
];

/// Why a blob and its source cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgainstError {
    /// The blob cannot be opened.
    #[error(transparent)]
    Blob(#[from] VerifyError),
    /// The reader of the source failed.
    #[error("source cannot be read")]
    Source(#[source] io::Error),
    /// The source is not a tar.
    #[error("source is not a readable tar archive")]
    Tar(#[from] tar::Error),
    /// The tree of the source exceeds a limit or contradicts itself.
    #[error("file tree of the source cannot be built")]
    Tree(#[from] TocError),
}

/// Compares the file tree of `blob` with that of `source`, a plain tar: paths, types, modes,
/// owners, times, extended attributes, devices, links and content. Content is compared through the
/// TOC's digests, which [`blob`](super::blob()) compares with the blob's own bytes; times to the
/// second, as a TOC has them.
///
/// # Errors
/// If one of the two cannot be read. A difference is not an error but a finding; at most 1000 are
/// returned.
pub fn against<B: Read + Seek, S: Read>(
    mut blob: B,
    expected: &Expected<'_>,
    source: S,
) -> Result<Vec<Finding>, AgainstError> {
    let (_, unverified) = open(&mut blob, expected.external_toc, &expected.limits)?;
    let toc = unverified.trust().map_err(VerifyError::from)?;
    let source = source::tree(source, &toc, expected)?;
    let mut findings = compare(&source, &toc);
    findings.truncate(MAX_FINDINGS);
    Ok(findings)
}

/// Both trees are walked in the same order.
fn compare(source: &Toc, toc: &Toc) -> Vec<Finding> {
    let mut comparison = Comparison::default();
    comparison.node("", source.root(), toc.root());
    let is_in_image = |entry: &Located<'_>| !FORMAT_NAMES.contains(&entry.path.as_slice());
    let mut listed = toc.entries().filter(is_in_image).peekable();
    let mut unpacked = source.entries().filter(is_in_image).peekable();
    loop {
        let order = match (unpacked.peek(), listed.peek()) {
            (Some(source), Some(toc)) => in_tree_order(&source.path, &toc.path),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return comparison.findings,
        };
        let source = if order.is_le() { unpacked.next() } else { None };
        let toc = if order.is_ge() { listed.next() } else { None };
        match (source, toc) {
            (Some(source), Some(toc)) => {
                comparison.node(&tar::lossy(&toc.path), source.node, toc.node)
            }
            (Some(source), None) => comparison.findings.push(Finding::NotInToc {
                path: tar::lossy(&source.path),
            }),
            (None, Some(toc)) => comparison.findings.push(Finding::NotInTar {
                path: tar::lossy(&toc.path),
            }),
            (None, None) => {}
        }
    }
}

fn in_tree_order(a: &[u8], b: &[u8]) -> Ordering {
    let names = |path| <[u8]>::split(path, |byte: &u8| *byte == b'/');
    names(a).cmp(names(b))
}

#[derive(Default)]
pub(super) struct Comparison {
    pub(super) findings: Vec<Finding>,
    /// The node of the TOC that each file of the source was first compared with, and the other way
    /// round.
    partners: [HashMap<NodeId, NodeId>; 2],
}

impl Comparison {
    pub(super) fn node(&mut self, path: &str, source: Node<'_>, toc: Node<'_>) {
        self.field(
            path,
            "type",
            &format!("{:?}", source.kind()),
            &format!("{:?}", toc.kind()),
        );
        self.field(
            path,
            "mode",
            &format!("{:04o}", source.mode()),
            &format!("{:04o}", toc.mode()),
        );
        self.field(path, "uid", &source.uid(), &toc.uid());
        self.field(path, "gid", &source.gid(), &toc.gid());
        // A TOC cannot express that an id has no name after it had one.
        if !source.user().is_empty() {
            self.field(path, "userName", source.user(), toc.user());
        }
        if !source.group().is_empty() {
            self.field(path, "groupName", source.group(), toc.group());
        }
        self.field(path, "modtime", &seconds(source), &seconds(toc));
        self.field(path, "size", &source.size(), &toc.size());
        self.field(
            path,
            "device",
            &format!("{:?}", source.device()),
            &format!("{:?}", toc.device()),
        );
        self.field(
            path,
            "linkName",
            &tar::lossy(source.target()),
            &tar::lossy(toc.target()),
        );
        if !source.xattrs().eq(toc.xattrs()) {
            let names = |node: Node<'_>| {
                node.xattrs()
                    .map(|(name, _)| tar::lossy(name))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let path = path.to_owned();
            self.findings.push(Finding::Field {
                path,
                field: "xattrs",
                tar: names(source),
                toc: names(toc),
            });
        }
        if source.kind() != Kind::Directory {
            self.links(path, source.id(), toc.id());
        }
        if source.size() == toc.size() && !same_content(source, toc) {
            self.findings.push(Finding::Content {
                path: path.to_owned(),
            });
        }
    }

    fn field<T: ToString + PartialEq + ?Sized>(
        &mut self,
        path: &str,
        field: &'static str,
        tar: &T,
        toc: &T,
    ) {
        if tar != toc {
            let path = path.to_owned();
            self.findings.push(Finding::Field {
                path,
                field,
                tar: tar.to_string(),
                toc: toc.to_string(),
            });
        }
    }

    fn links(&mut self, path: &str, source: NodeId, toc: NodeId) {
        let [to_toc, to_source] = &mut self.partners;
        let is_same = *to_toc.entry(source).or_insert(toc) == toc
            && *to_source.entry(toc).or_insert(source) == source;
        if !is_same {
            self.findings.push(Finding::Links {
                path: path.to_owned(),
            });
        }
    }
}

/// Rounds to seconds. A TOC has whole seconds, except one by containers/storage, which has
/// nanoseconds.
fn seconds(node: Node<'_>) -> i64 {
    let time = node.modified();
    time.seconds
        .saturating_add(i64::from(time.nanoseconds >= 500_000_000))
}

fn same_content(source: Node<'_>, toc: Node<'_>) -> bool {
    source.chunks().len() == toc.chunks().len()
        && source.chunks().zip(toc.chunks()).all(|(source, toc)| {
            match (source.digest, toc.digest) {
                (Some(digest), None) => source.size == toc.size && is_zeros(digest, toc.size),
                (unpacked, listed) => source.size == toc.size && unpacked == listed,
            }
        })
}
