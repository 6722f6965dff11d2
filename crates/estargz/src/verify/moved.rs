//! Hard links that differ between TOC and tar because the path of their target went to another
//! entry. The trees decide whether that is right.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;

use super::against::{AgainstError, Comparison};
use super::finding::Finding;
use super::members::{Log, Members};
use super::{Expected, VerifyError, source, with_causes};
use crate::archive::read_range;
use crate::footer::Footer;
use crate::tar;
use crate::toc::{Node, Toc};

/// Compares the entries at `paths` with the tree that the blob's own tar unpacks to.
pub(super) fn check<B: Read + Seek>(
    blob: &mut B,
    footer: &Footer,
    toc: &Toc,
    paths: &BTreeSet<Vec<u8>>,
    expected: &Expected<'_>,
) -> Result<Vec<Finding>, VerifyError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    blob.seek(SeekFrom::Start(0)).map_err(VerifyError::Read)?;
    let log = Rc::new(RefCell::new(Log::new(
        None,
        expected.limits.max_stream_bytes,
    )));
    let members = Members::new(
        blob.by_ref().take(footer.payload_end()),
        footer.codec(),
        log,
    );
    let source = match source::tree(members, toc, expected) {
        Ok(source) => source,
        Err(AgainstError::Tree(error)) => return Err(error.into()),
        Err(AgainstError::Blob(error)) => return Err(error),
        Err(error @ (AgainstError::Source(_) | AgainstError::Tar(_))) => {
            return Ok(vec![Finding::Stream {
                at: 0,
                reason: with_causes(&error),
            }]);
        }
    };
    let mut comparison = Comparison::default();
    for path in paths {
        let text = tar::lossy(path);
        match (source.lookup(path), toc.lookup(path)) {
            (Some(source), Some(toc)) => {
                comparison.node(&text, source, toc);
                comparison.findings.extend(places(blob, &text, toc)?);
            }
            (Some(_), None) => comparison.findings.push(Finding::NotInToc { path: text }),
            (None, Some(_)) => comparison.findings.push(Finding::NotInTar { path: text }),
            (None, None) => {}
        }
    }
    Ok(comparison.findings)
}

/// Returns the chunks that are not where the TOC places them.
fn places<B: Read + Seek>(
    blob: &mut B,
    path: &str,
    node: Node<'_>,
) -> Result<Vec<Finding>, VerifyError> {
    let mut findings = Vec::new();
    for chunk in node.chunks().filter(|chunk| !chunk.range.is_empty()) {
        if chunk
            .decode(&read_range(blob, chunk.range.clone())?)
            .is_err()
        {
            let (file_offset, offset) = (chunk.file_offset, chunk.range.start);
            findings.push(Finding::ChunkPlace {
                path: path.to_owned(),
                file_offset,
                offset,
            });
        }
    }
    Ok(findings)
}
