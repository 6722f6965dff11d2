//! The state of each path after unpacking the tar up to the current entry.
//!
//! Unpackers disagree about an entry below a symbolic link, and about the entries of a directory
//! that is replaced. Readers of a TOC see no order that could settle it. Unpackers follow a hard
//! link to a path below a symbolic link, readers do not. Such a tar is refused.

use std::collections::HashMap;

use super::Error;
use crate::digest::Digest;
use crate::tar;

/// The most directories that readers follow ([`Limits`](crate::Limits)).
const MAX_DEPTH: usize = 1024;

/// The digest of a path, which is shorter than most paths.
type PathKey = [u8; 16];

/// A path in the form that is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Path {
    clean: Vec<u8>,
    key: PathKey,
}

/// The entry at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathState {
    /// Its number in the TOC builder; `None` for a directory that is only implied and for a
    /// postponed sparse file.
    pub(super) entry: Option<u32>,
    pub(super) is_directory: bool,
    has_entries: bool,
}

#[derive(Debug, Default)]
pub(super) struct PathStates {
    at: HashMap<PathKey, PathState>,
    /// The directory of the last entry. Most entries are in the same directory as the one before.
    last_parent: Option<Vec<u8>>,
}

impl Path {
    pub(super) fn new(name: &[u8]) -> Self {
        Self::of_clean(tar::clean(name))
    }

    fn of_clean(clean: Vec<u8>) -> Self {
        let digest = Digest::of(&clean);
        let (key, _) = digest.as_bytes().split_at(size_of::<PathKey>());
        Self {
            clean,
            key: key.try_into().unwrap_or_default(),
        }
    }

    pub(super) fn clean(&self) -> &[u8] {
        &self.clean
    }

    pub(super) fn refused(&self, reason: &'static str) -> Error {
        Error::Path {
            path: tar::lossy(&self.clean),
            reason,
        }
    }
}

impl PathStates {
    pub(super) fn get(&self, path: &Path) -> Option<PathState> {
        self.at.get(&path.key).copied()
    }

    /// Fails for a path below something that is not a directory.
    pub(super) fn check_target(&self, target: &Path) -> Result<(), Error> {
        let state = |end: &usize| self.get(&Path::of_clean(target.clean[..*end].to_vec()));
        let slashes = target
            .clean
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(end, _)| end).collect();
        // All directories above a known path are known, so a binary search finds the deepest.
        let known = ends.partition_point(|end| state(end).is_some());
        match ends[..known].last().and_then(state) {
            Some(deepest) if !deepest.is_directory => Err(target.refused(
                "it is the target of a hard link and below something that is not a directory",
            )),
            _ => Ok(()),
        }
    }

    /// Places an entry at `path` and returns the one that it replaces. `entry` is `None` for one
    /// that is listed later.
    pub(super) fn put(
        &mut self,
        path: &Path,
        entry: Option<u32>,
        is_directory: bool,
    ) -> Result<Option<u32>, Error> {
        if path.clean.is_empty() && !is_directory {
            return Err(path.refused("the root must be a directory"));
        }
        self.check_parents(path)?;
        let before = self.get(path);
        let has_entries = before.is_some_and(|before| before.has_entries);
        if has_entries && !is_directory {
            return Err(path.refused("it replaces a directory that has entries"));
        }
        self.at.insert(
            path.key,
            PathState {
                entry,
                is_directory,
                has_entries,
            },
        );
        Ok(before.and_then(|before| before.entry))
    }

    /// Sets the number of the entry at `path`.
    pub(super) fn move_entry(&mut self, path: &Path, entry: u32) {
        if let Some(state) = self.at.get_mut(&path.key) {
            state.entry = Some(entry);
        }
    }

    /// Checks that everything above `path` is a directory. Directories that no entry describes are
    /// implied.
    fn check_parents(&mut self, path: &Path) -> Result<(), Error> {
        if path.clean.contains(&0) {
            return Err(path.refused("its name contains a NUL byte"));
        }
        let Some(parent) = parent_of(&path.clean) else {
            return Ok(());
        };
        if self.last_parent.as_deref() == Some(parent) {
            return Ok(());
        }
        if path.clean.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
            return Err(Error::Limit {
                what: "directories in a path",
                limit: MAX_DEPTH as u64,
            });
        }
        let mut above = Some(parent);
        while let Some(directory) = above {
            let key = Path::of_clean(directory.to_vec()).key;
            let implied = PathState {
                entry: None,
                is_directory: true,
                has_entries: false,
            };
            let state = self.at.entry(key).or_insert(implied);
            if !state.is_directory {
                return Err(path.refused("it is below something that is not a directory"));
            }
            // If a directory has entries, everything above it is known.
            if std::mem::replace(&mut state.has_entries, true) {
                break;
            }
            above = parent_of(directory);
        }
        self.last_parent = Some(parent.to_vec());
        Ok(())
    }
}

/// Returns the directory above a clean path. The path of the root is empty; nothing is above it.
fn parent_of(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    (!path.is_empty()).then(|| &path[..slash.unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path_states: &mut PathStates, name: &str, is_directory: bool) -> Result<(), String> {
        let put = path_states.put(&Path::new(name.as_bytes()), Some(0), is_directory);
        put.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn only_directories_have_entries_below_them() {
        let mut path_states = PathStates::default();
        put(&mut path_states, "usr/lib/x", false).unwrap();
        put(&mut path_states, "./lib", false).unwrap();
        assert_eq!(
            put(&mut path_states, "lib/deep/er/x", false).unwrap_err(),
            "\"lib/deep/er/x\" cannot be listed: it is below something that is not a directory"
        );
        put(&mut path_states, "lib", true).unwrap();
        put(&mut path_states, "lib/x", false).unwrap();
        assert!(
            put(&mut path_states, "x", false).is_ok()
                && put(&mut path_states, "x/y", false).is_err()
        );
        assert!(
            put(&mut path_states, "./", false).is_err()
                && put(&mut path_states, "./", true).is_ok()
        );
    }

    #[test]
    fn a_directory_with_entries_stays_one() {
        let mut path_states = PathStates::default();
        for name in ["a/b/c", "d/e"] {
            put(&mut path_states, name, false).unwrap();
        }
        for name in ["a", "a/b", "d"] {
            assert!(put(&mut path_states, name, false).is_err(), "{name}");
            put(&mut path_states, name, true).unwrap();
        }
        put(&mut path_states, "empty/", true).unwrap();
        put(&mut path_states, "empty", false).unwrap();
    }

    #[test]
    fn targets_below_files_are_found_at_any_depth() {
        let mut path_states = PathStates::default();
        put(&mut path_states, "a/b/c/link", false).unwrap();
        put(&mut path_states, "d", false).unwrap();
        let check = |target: &str| {
            path_states
                .check_target(&Path::new(target.as_bytes()))
                .is_ok()
        };
        for target in ["a/b/c/link/x", "/a/b/c/link/x/y/z/", "d/e", "./d/e/f/g"] {
            assert!(!check(target), "{target}");
        }
        for target in [
            "",
            "a",
            "d",
            "x/d/e",
            "a/b/c/other/x/y",
            "a/b/c/link",
            "a/b/c/x",
            "d/../a/b",
        ] {
            assert!(check(target), "{target}");
        }
    }

    #[test]
    fn names_and_depths_that_readers_refuse_are_refused() {
        let mut path_states = PathStates::default();
        assert!(put(&mut path_states, "a\0b", false).is_err());
        assert!(put(&mut path_states, &"d/".repeat(MAX_DEPTH), true).is_ok());
        assert!(put(&mut path_states, &"e/".repeat(MAX_DEPTH + 1), true).is_err());
    }
}
