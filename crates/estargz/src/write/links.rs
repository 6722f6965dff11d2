//! Hard links to listed entries: they keep its content when another entry takes its path.

use std::collections::{HashMap, HashSet, VecDeque};

use super::path_states::Path;

/// The file that a hard link shares its content with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Entry(u32),
    /// A file that is listed after the whole source.
    Postponed(Path),
}

#[derive(Debug, Default)]
pub(super) struct Links {
    target: HashMap<u32, Target>,
    /// The links to each entry in their order, including links that have been removed since.
    of: HashMap<u32, VecDeque<u32>>,
    postponed: HashSet<Path>,
    /// Entries that have the path of a link to them.
    moved: HashSet<u32>,
}

impl Links {
    pub(super) fn add(&mut self, link: u32, target: Target) {
        match &target {
            Target::Entry(entry) => self.of.entry(*entry).or_default().push_back(link),
            Target::Postponed(path) => drop(self.postponed.insert(path.clone())),
        }
        self.target.insert(link, target);
    }

    pub(super) fn target_of(&self, link: u32) -> Option<Target> {
        self.target.get(&link).cloned()
    }

    /// Removes a link.
    pub(super) fn forget(&mut self, link: u32) {
        self.target.remove(&link);
    }

    /// Removes the first link to `entry` and returns it. The entry takes its path.
    pub(super) fn successor(&mut self, entry: u32) -> Option<u32> {
        let links = self.of.get_mut(&entry)?;
        while let Some(link) = links.pop_front() {
            // Numbers of entries are never reused, so the number of a removed link is not another
            // entry.
            if self.target.remove(&link).is_some() {
                self.moved.insert(entry);
                return Some(link);
            }
        }
        None
    }

    pub(super) fn is_postponed(&self, path: &Path) -> bool {
        self.postponed.contains(path)
    }

    pub(super) fn end_postponement(&mut self) {
        self.postponed.clear();
    }

    pub(super) fn has_moved(&self, entry: u32) -> bool {
        self.moved.contains(&entry)
    }
}
