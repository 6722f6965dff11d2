//! The walk along the stream, which looks up each entry of the tar in the TOC and compares it.
//!
//! A path may occur in the tar several times. The last entry counts, as when unpacking.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::compare;
use super::finding::Finding;
use super::members::Log;
use super::toc_entries::{File, TocEntries};
use super::with_causes;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::entry::EntryKind;
use crate::footer::Footer;
use crate::tar::{self, Header, Walker};
use crate::toc::TocError;
use crate::toc::json::RawEntry;
use crate::toc::unverified::TOC_NAME;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;
const LANDMARKS: [&[u8]; 2] = [b".prefetch.landmark", b".no.prefetch.landmark"];
/// The content of a landmark.
const LANDMARK_CONTENT: u8 = 0x0f;

/// The comparison of a stream with a TOC.
pub(super) struct Walk<'a> {
    toc: TocEntries<'a>,
    footer: Footer,
    toc_digest: Digest,
    log: Rc<RefCell<Log>>,
    /// The findings for the last entry of a path, by number in the TOC. An empty list means that it
    /// was seen.
    seen: BTreeMap<usize, Vec<Finding>>,
    unlisted: BTreeSet<Vec<u8>>,
    /// Hard links that differ between TOC and tar.
    moved: BTreeSet<Vec<u8>>,
    toc_seen: bool,
    general: Vec<Finding>,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        json: &'a [u8],
        footer: &Footer,
        toc_digest: Digest,
        log: Rc<RefCell<Log>>,
    ) -> Result<Self, TocError> {
        let mut toc = TocEntries::new(json)?;
        let mut offsets = toc.take_offsets();
        offsets.extend(footer.toc_range().map(|range| range.start));
        log.borrow_mut().want(offsets);
        Ok(Self {
            toc,
            footer: footer.clone(),
            toc_digest,
            log,
            seen: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            moved: BTreeSet::new(),
            toc_seen: false,
            general: Vec::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Walks the whole stream: the archive, and the one that may be hidden after its end marker.
    pub(super) fn stream<R: Read>(&mut self, members: R, source_size: Option<u64>) {
        let mut walker = Walker::new(members);
        let result = self.both_archives(&mut walker, source_size);
        if let Err(error) = result.and_then(|()| self.read_out(&mut walker)) {
            let at = self.log.borrow().inflated();
            self.general.push(Finding::Stream {
                at,
                reason: with_causes(&error),
            });
            // The rest that can be read counts for the digests.
            let _already_reported = self.read_out(&mut walker);
        }
        self.check_places();
    }

    /// Returns the findings in the order of the TOC, and the number of its entries.
    pub(super) fn finish(self) -> (Vec<Finding>, u64) {
        let mut findings = self.general;
        let not_in_toc = self
            .unlisted
            .iter()
            .filter(|path| self.toc.slot(path).is_none());
        findings.extend(not_in_toc.map(|path| Finding::NotInToc {
            path: tar::lossy(path),
        }));
        let mut missing: Vec<_> = self
            .toc
            .slots()
            .filter(|(_, slot)| !self.seen.contains_key(&slot.number))
            .collect();
        missing.sort_by_key(|(_, slot)| slot.number);
        findings.extend(missing.into_iter().map(|(path, _)| Finding::NotInTar {
            path: tar::lossy(path),
        }));
        findings.extend(self.seen.into_values().flatten());
        (findings, self.toc.entries())
    }

    fn both_archives<R: Read>(
        &mut self,
        walker: &mut Walker<R>,
        source_size: Option<u64>,
    ) -> Result<(), tar::Error> {
        self.archive(walker, 0)?;
        self.skip_to(walker, source_size.unwrap_or(0))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = walker.read_trailing(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            if let Some(first) = buffer[..read].iter().position(|byte| *byte != 0) {
                let base = walker.position() - (read - first) as u64;
                let rest = Rest { walker };
                let mut hidden = Walker::new(buffer[first..read].chain(rest));
                return self.archive(&mut hidden, base);
            }
        }
    }

    fn read_out<R: Read>(&mut self, walker: &mut Walker<R>) -> Result<(), tar::Error> {
        while walker.read_trailing(&mut self.buffer)? > 0 {}
        Ok(())
    }

    /// Reads the bytes of the source after its end marker.
    fn skip_to<R: Read>(
        &mut self,
        walker: &mut Walker<R>,
        position: u64,
    ) -> Result<(), tar::Error> {
        while let Some(left) = position
            .checked_sub(walker.position())
            .filter(|left| *left > 0)
        {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            if walker.read_trailing(&mut self.buffer[..wanted])? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Compares the entries of one archive, which begins at `base` of the stream.
    fn archive<R: Read>(&mut self, walker: &mut Walker<R>, base: u64) -> Result<(), tar::Error> {
        let mut raw = Vec::new();
        loop {
            raw.clear();
            let before = base + walker.position() + walker.payload_left();
            let Some(header) = walker.next_header(&mut raw)? else {
                return Ok(());
            };
            let payload = base + walker.position();
            let path = tar::clean(&header.path);
            if path == TOC_NAME {
                self.toc_entry(walker, before..payload)?;
                continue;
            }
            let Some(slot) = self.toc.slot(&path) else {
                if !LANDMARKS.contains(&path.as_slice()) {
                    self.unlisted.insert(path);
                }
                continue;
            };
            let Ok(file) = self.toc.file(slot) else {
                continue;
            };
            let mut findings = compare::fields(&header, &file.entry, self.toc.owners(slot));
            if header.kind == EntryKind::Hardlink {
                // Only the trees show whether a difference is right: the entry of a replaced target
                // has the path of the first link to it.
                if findings.is_empty() {
                    self.moved.remove(&path);
                } else {
                    self.moved.insert(path);
                }
                self.seen.insert(slot.number, Vec::new());
                continue;
            }
            self.moved.remove(&path);
            if header.sparse.is_some() {
                // Its content with the holes follows after the source.
                self.seen.remove(&slot.number);
                continue;
            }
            if header.kind == EntryKind::Reg && header.size == file.entry.size {
                self.content(walker, &header, &file, payload, &mut findings)?;
            }
            self.seen.insert(slot.number, findings);
        }
    }

    /// Returns the paths of hard links that differ between TOC and tar.
    pub(super) fn moved(&mut self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut self.moved)
    }

    /// Compares the entry of the TOC itself, unless it is an entry of the source with the same
    /// name.
    fn toc_entry<R: Read>(
        &mut self,
        walker: &mut Walker<R>,
        header: std::ops::Range<u64>,
    ) -> Result<(), tar::Error> {
        let Some(range) = self.footer.toc_range() else {
            return Ok(());
        };
        let start = self.log.borrow().start_of(range.start);
        if !start.is_some_and(|start| header.contains(&start)) {
            return Ok(());
        }
        let mut hash = Sha256::new();
        loop {
            let read = walker.read_payload(&mut self.buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&self.buffer[..read]);
        }
        self.toc_seen = Digest::from(hash) == self.toc_digest;
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        walker: &mut Walker<R>,
        header: &Header,
        file: &File<'_>,
        payload: u64,
        findings: &mut Vec<Finding>,
    ) -> Result<(), tar::Error> {
        let path = || tar::lossy(&header.path);
        let mut whole = Sha256::new();
        let mut last_byte = None;
        if header.size > 0 {
            for chunk in std::iter::once(&file.entry).chain(&file.chunks) {
                let left = file.entry.size - chunk.chunk_offset.min(file.entry.size);
                let size = if chunk.chunk_size == 0 {
                    left
                } else {
                    chunk.chunk_size
                };
                let actual = self.chunk(walker, size, &mut whole, &mut last_byte)?;
                let file_offset = chunk.chunk_offset;
                let expected = chunk_digest(chunk, size == file.entry.size);
                if expected.is_some_and(|expected| expected != actual.to_string()) {
                    let expected = expected.unwrap_or_default().to_owned();
                    findings.push(Finding::ChunkDigest {
                        path: path(),
                        file_offset,
                        expected,
                        actual,
                    });
                }
                let start = self.log.borrow().start_of(chunk.offset);
                let is_hole = !chunk.chunk_type.is_empty();
                if !is_hole
                    && start.map(|start| start + chunk.inner_offset) != Some(payload + file_offset)
                {
                    findings.push(Finding::ChunkPlace {
                        path: path(),
                        file_offset,
                        offset: chunk.offset,
                    });
                }
            }
        }
        let actual = Digest::from(whole);
        if !file.entry.digest.is_empty() && file.entry.digest != actual.to_string() {
            let expected = file.entry.digest.clone().into_owned();
            findings.push(Finding::FileDigest {
                path: path(),
                expected,
                actual,
            });
        }
        let is_landmark = LANDMARKS.contains(&tar::clean(&header.path).as_slice());
        if is_landmark && (header.size, last_byte) != (1, Some(LANDMARK_CONTENT)) {
            findings.push(Finding::Landmark { path: path() });
        }
        Ok(())
    }

    fn chunk<R: Read>(
        &mut self,
        walker: &mut Walker<R>,
        size: u64,
        whole: &mut Sha256,
        last_byte: &mut Option<u8>,
    ) -> Result<Digest, tar::Error> {
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let read = walker.read_payload(&mut self.buffer[..wanted])?;
            if read == 0 {
                break;
            }
            let bytes = &self.buffer[..read];
            hash.update(bytes);
            whole.update(bytes);
            *last_byte = bytes.last().copied();
            left -= read as u64;
        }
        Ok(hash.into())
    }

    fn check_places(&mut self) {
        let is_gzip = self.footer.codec() == Codec::Gzip;
        if let Some(range) = self
            .footer
            .toc_range()
            .filter(|_| is_gzip && !self.toc_seen)
        {
            self.general.push(Finding::TocPlace {
                offset: range.start,
            });
        }
        let start = self.footer.start();
        if is_gzip && self.log.borrow().last_start() != Some(start) {
            self.general.push(Finding::FooterPlace { offset: start });
        }
    }
}

/// Returns the digest of a chunk in the TOC: that of the file if the file is one chunk.
fn chunk_digest<'e>(chunk: &'e RawEntry<'_>, is_whole: bool) -> Option<&'e str> {
    let text = if chunk.chunk_digest.is_empty() && is_whole {
        &chunk.digest
    } else {
        &chunk.chunk_digest
    };
    Some(text.as_ref()).filter(|text| !text.is_empty())
}

/// The bytes after the end marker, as a reader.
struct Rest<'w, R> {
    walker: &'w mut Walker<R>,
}

impl<R: Read> Read for Rest<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.walker
            .read_trailing(buffer)
            .map_err(std::io::Error::other)
    }
}
