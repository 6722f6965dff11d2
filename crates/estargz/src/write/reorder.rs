//! The prioritized order: the files that a container reads first come first.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::{Error, LANDMARK_CONTENT, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};
use crate::entry::EntryKind;
use crate::tar::{self, END_MARKER, Walker, build};

/// A tar in prioritized order, to be read once and written with
/// [`Landmark::InSource`](super::Landmark::InSource).
#[derive(Debug)]
pub struct Reordered<R> {
    tar: R,
    pieces: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
    missing: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Piece {
    Source(Range<u64>),
    /// Bytes, and how many of them have been read.
    Bytes(Vec<u8>, usize),
}

/// An entry of the source and its range, including padding.
#[derive(Debug)]
struct Place {
    path: Vec<u8>,
    hard_link: Option<Vec<u8>>,
    range: Range<u64>,
    /// Zeros to add after it, because the last entry of a source may lack its padding.
    missing: usize,
    is_taken: bool,
    /// Whether a hard link to it follows.
    is_linked: bool,
}

/// Moves the entries named by `prioritized`, in that order, to the front of `tar`: each after its
/// parents and, if it is a hard link, after its target. The landmark follows, then the other
/// entries in their order. As in the reference, a path that occurs several times keeps its last
/// entry. Names without an entry are in [`missing`](Reordered::missing).
///
/// # Errors
/// If `tar` cannot be read or is not a tar, or if an entry replaces a file that has hard links: in
/// another order they would be links to the replacement.
pub fn reorder<R: Read + Seek>(mut tar: R, prioritized: &[Vec<u8>]) -> Result<Reordered<R>, Error> {
    tar.seek(SeekFrom::Start(0)).map_err(Error::Source)?;
    let mut order = Order::read(&mut tar)?;
    let mut missing = Vec::new();
    for name in prioritized {
        if !order.prioritize(name) {
            missing.push(name.clone());
        }
    }
    let name = if prioritized.is_empty() {
        NO_PREFETCH_LANDMARK
    } else {
        PREFETCH_LANDMARK
    };
    let mut pieces = order.front;
    pieces.push(Piece::Bytes(build::file(name, LANDMARK_CONTENT), 0));
    for place in order.places.iter().filter(|place| !place.is_taken) {
        push(&mut pieces, place);
    }
    pieces.push(Piece::Bytes(END_MARKER.to_vec(), 0));
    Ok(Reordered {
        tar,
        pieces: pieces.into_iter(),
        current: None,
        missing,
    })
}

impl<R> Reordered<R> {
    /// The prioritized names that have no entry.
    pub fn missing(&self) -> &[Vec<u8>] {
        &self.missing
    }
}

impl<R: Read + Seek> Read for Reordered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = match &mut self.current {
                Some(Piece::Bytes(bytes, at)) => {
                    let read = (&bytes[*at..]).read(buffer)?;
                    *at += read;
                    read
                }
                Some(Piece::Source(range)) => {
                    let left = range.end - range.start;
                    let read = (&mut self.tar).take(left).read(buffer)?;
                    range.start += read as u64;
                    if read == 0 && left > 0 && !buffer.is_empty() {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    read
                }
                None => 0,
            };
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.current = self.pieces.next();
            match &self.current {
                Some(Piece::Source(range)) => drop(self.tar.seek(SeekFrom::Start(range.start))?),
                Some(Piece::Bytes(..)) => {}
                None => return Ok(0),
            }
        }
    }
}

#[derive(Debug)]
struct Order {
    places: Vec<Place>,
    latest: HashMap<Vec<u8>, usize>,
    front: Vec<Piece>,
}

impl Order {
    fn read<R: Read>(tar: R) -> Result<Self, Error> {
        let mut order = Self {
            places: Vec::new(),
            latest: HashMap::new(),
            front: Vec::new(),
        };
        let mut walker = Walker::new(tar);
        let mut raw = Vec::new();
        let mut padding = 0;
        loop {
            raw.clear();
            let before = walker.position() + walker.payload_left() + padding;
            let Some(header) = walker.next_header(&mut raw)? else {
                break;
            };
            padding = tar::padding(header.stored) as u64;
            let end = walker.position() + header.stored + padding;
            let path = tar::clean(&header.path);
            if [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK]
                .iter()
                .any(|name| path == name.as_bytes())
            {
                continue;
            }
            let hard_link = (header.kind == EntryKind::Hardlink).then(|| tar::clean(&header.link));
            if let Some(target) = hard_link.as_ref().filter(|target| **target != path)
                && let Some(target) = order.latest.get(target)
            {
                order.places[*target].is_linked = true;
            }
            if let Some(earlier) = order.latest.insert(path.clone(), order.places.len()) {
                order.places[earlier].is_taken = true;
                if order.places[earlier].is_linked {
                    let reason = "it replaces a file that has hard links, so its entries cannot be reordered";
                    return Err(Error::Path {
                        path: tar::lossy(&path),
                        reason,
                    });
                }
            }
            let place = Place {
                path,
                hard_link,
                range: before..end,
                missing: 0,
                is_taken: false,
                is_linked: false,
            };
            order.places.push(place);
        }
        if let Some(last) = order
            .places
            .last_mut()
            .filter(|last| last.range.end > walker.position())
        {
            last.range.end = walker.position();
            last.missing = walker.missing().saturating_sub(END_MARKER.len());
        }
        Ok(order)
    }

    /// Moves the entry of `name` to the front, after everything it depends on. Returns false if
    /// there is none.
    fn prioritize(&mut self, name: &[u8]) -> bool {
        let Some(index) = self.latest.get(&tar::clean(name)).copied() else {
            return false;
        };
        // Entries still to be moved, last first. The dependencies of an entry are pushed above it
        // once.
        let mut pending = vec![(index, false)];
        let mut seen = std::collections::HashSet::new();
        while let Some((index, is_ready)) = pending.pop() {
            if self.places[index].is_taken {
                continue;
            }
            if is_ready || !seen.insert(index) {
                self.places[index].is_taken = true;
                push(&mut self.front, &self.places[index]);
                continue;
            }
            pending.push((index, true));
            let place = &self.places[index];
            let target = place
                .hard_link
                .as_ref()
                .and_then(|target| self.latest.get(target));
            pending.extend(
                target
                    .filter(|target| !seen.contains(target))
                    .map(|target| (*target, false)),
            );
            let parents = parents(&place.path).filter_map(|parent| self.latest.get(parent));
            pending.extend(
                parents
                    .filter(|parent| !seen.contains(parent))
                    .map(|parent| (*parent, false)),
            );
        }
        true
    }
}

/// Returns the directories above a clean path, the nearest first, the root last.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'/')
        .map(|(at, _)| at);
    let above = slashes.map(|at| &path[..at]);
    above.chain((!path.is_empty()).then_some(&path[..0]))
}

/// Adds an entry. It is joined to the one before if they touch.
fn push(pieces: &mut Vec<Piece>, place: &Place) {
    match pieces.last_mut() {
        Some(Piece::Source(last)) if last.end == place.range.start => last.end = place.range.end,
        _ => pieces.push(Piece::Source(place.range.clone())),
    }
    if place.missing > 0 {
        pieces.push(Piece::Bytes(vec![0; place.missing], 0));
    }
}
