//! Hard links to what is listed: they keep its content when another entry takes its path.

use std::collections::{HashMap, HashSet, VecDeque};

use super::path_states::Path;

/// What a hard link shares its content with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Entry(u32),
    /// A file that is listed when all of the source has been.
    Postponed(Path),
}

#[derive(Debug, Default)]
pub(super) struct Links {
    target: HashMap<u32, Target>,
    /// The links to each entry in the order they came, among them some that are listed no more.
    of: HashMap<u32, VecDeque<u32>>,
    postponed: HashSet<Path>,
    /// Entries that are listed under the path of a link to them.
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

    /// The link is listed no more.
    pub(super) fn forget(&mut self, link: u32) {
        self.target.remove(&link);
    }

    /// Takes out the first link to `entry`, which is to be listed under its path.
    pub(super) fn successor(&mut self, entry: u32) -> Option<u32> {
        let links = self.of.get_mut(&entry)?;
        while let Some(link) = links.pop_front() {
            // Entries have their numbers for good, so that a link forgotten is not another one's.
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
