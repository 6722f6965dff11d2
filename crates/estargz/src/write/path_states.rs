//! What stands at each path when the tar has been unpacked so far.
//!
//! Unpackers disagree about an entry below a symbolic link, and about what becomes of a directory that something else
//! replaces; readers of a TOC see no order that could settle it. A hard link to what lies below a symbolic link is one
//! that unpackers follow and readers do not. Such a tar is refused.

use std::collections::HashMap;

use super::Error;
use crate::digest::Digest;
use crate::tar;

/// As many directories as readers follow ([`Limits`](crate::Limits)).
const MAX_DEPTH: usize = 1024;

/// A path by its digest, which is shorter than most paths and as good.
type PathKey = [u8; 16];

/// A path as it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Path {
    clean: Vec<u8>,
    key: PathKey,
}

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathState {
    /// Its place in the listing; none for a directory that is only implied and for a sparse file yet to be listed.
    pub(super) entry: Option<u32>,
    pub(super) is_directory: bool,
    has_entries: bool,
}

#[derive(Debug, Default)]
pub(super) struct PathStates {
    at: HashMap<PathKey, PathState>,
    /// The directory of the last entry: the next one is mostly in the same.
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

    /// Fails for a path that leads below something that is not a directory.
    pub(super) fn check_target(&self, target: &Path) -> Result<(), Error> {
        let state = |end: &usize| self.get(&Path::of_clean(target.clean[..*end].to_vec()));
        let slashes = target
            .clean
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(end, _)| end).collect();
        // All above what stands stands too, so that few of many directories need a look.
        let known = ends.partition_point(|end| state(end).is_some());
        match ends[..known].last().and_then(state) {
            Some(deepest) if !deepest.is_directory => Err(target.refused(
                "it is the target of a hard link and below something that is not a directory",
            )),
            _ => Ok(()),
        }
    }

    /// Puts an entry at `path` and gives the one that it replaces. `entry` is none for one that is listed later.
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

    /// The entry at `path` is listed at another place.
    pub(super) fn move_entry(&mut self, path: &Path, entry: u32) {
        if let Some(state) = self.at.get_mut(&path.key) {
            state.entry = Some(entry);
        }
    }

    /// Makes sure that what is above `path` are directories, implied where nothing describes them.
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
            // Where something lies below already all above is known.
            if std::mem::replace(&mut state.has_entries, true) {
                break;
            }
            above = parent_of(directory);
        }
        self.last_parent = Some(parent.to_vec());
        Ok(())
    }
}

/// The directory above a clean path; the root's is empty, and there is none above it.
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
    fn only_directories_have_something_below_them() {
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
    fn names_and_depths_are_what_readers_take() {
        let mut path_states = PathStates::default();
        assert!(put(&mut path_states, "a\0b", false).is_err());
        assert!(put(&mut path_states, &"d/".repeat(MAX_DEPTH), true).is_ok());
        assert!(put(&mut path_states, &"e/".repeat(MAX_DEPTH + 1), true).is_err());
    }
}
