//! Changes of text files: shown, applied together, and taken back together.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::step::Step;
use crate::failure::Failure;
use crate::tempfiles;

/// The end of the name of the copy of a file before its first change. containerd imports only names
/// that end with `.toml`.
const BACKUP: &str = ".before-starlift";

/// The text of a file before and after. `None`: there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    before: Option<String>,
    after: Option<String>,
    /// Whether the text before is kept beside the file.
    is_backed_up: bool,
}

/// Returns the text of a file, or `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::when(format!("cannot read {}", path.display()))(
            error,
        )),
    }
}

/// Returns the path of the copy of a file before its first change.
pub(super) fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BACKUP);
    PathBuf::from(name)
}

impl Change {
    /// Returns the change of a file that others own: a copy of it is kept.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn edit(path: &Path, after: Option<String>) -> Result<Self, Failure> {
        Ok(Self {
            is_backed_up: true,
            ..Self::whole(path, after)?
        })
    }

    /// Returns the change of a file that is written or deleted as a whole.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn whole(path: &Path, after: Option<String>) -> Result<Self, Failure> {
        Ok(Self {
            path: path.to_owned(),
            before: read(path)?,
            after,
            is_backed_up: false,
        })
    }

    pub(super) fn is_needed(&self) -> bool {
        self.before != self.after
    }

    pub(super) fn step(&self) -> Step {
        let lines = |text: &Option<String>| -> Vec<String> {
            let lines = text.iter().flat_map(|text| text.lines());
            lines.map(str::to_owned).collect()
        };
        let (before, after) = (lines(&self.before), lines(&self.after));
        if self.after.is_none() {
            return Step::Delete(self.path.clone());
        }
        Step::Write {
            path: self.path.clone(),
            removed: without(&before, &after),
            added: without(&after, &before),
        }
    }

    fn apply(&self) -> io::Result<()> {
        let kept = backup(&self.path);
        if let Some(before) = &self.before
            && self.is_backed_up
            && !kept.exists()
        {
            tempfiles::write_atomically(&kept, before.as_bytes())?;
        }
        write(&self.path, self.after.as_deref())?;
        // A file that is again as it was before the first change needs no copy.
        if self.is_backed_up && fs::read_to_string(&kept).ok() == self.after {
            write(&kept, None)?;
        }
        Ok(())
    }

    fn take_back(&self) {
        // The failure that led here is reported. A second one cannot be mended here either.
        let _ = write(&self.path, self.before.as_deref());
    }
}

/// Applies the changes in order. If one fails, those before it are taken back.
///
/// # Errors
/// If a file cannot be written or deleted.
pub(super) fn apply(changes: &[Change]) -> Result<(), Failure> {
    for (done, change) in changes.iter().enumerate() {
        if let Err(error) = change.apply() {
            take_back(&changes[..=done]);
            return Err(Failure::when(format!(
                "cannot change {}",
                change.path.display()
            ))(error));
        }
    }
    Ok(())
}

/// Restores the files as they were before the changes.
pub(super) fn take_back(changes: &[Change]) {
    changes.iter().rev().for_each(Change::take_back);
}

fn write(path: &Path, text: Option<&str>) -> io::Result<()> {
    match text {
        Some(text) => tempfiles::write_atomically(path, text.as_bytes()),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Returns the lines that are not among `others`.
fn without(lines: &[String], others: &[String]) -> Vec<String> {
    let mut left = others.to_vec();
    let is_new = |line: &&String| match left.iter().position(|other| other == *line) {
        Some(place) => {
            left.swap_remove(place);
            false
        }
        None => true,
    };
    lines.iter().filter(is_new).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_applied_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "before\n").unwrap();
        fs::write(path("file"), "").unwrap();
        let changes = [
            Change::edit(&path("one"), Some("after\n".to_owned())).unwrap(),
            // Its folder is a file.
            Change {
                path: path("file/two"),
                before: None,
                after: Some("new\n".to_owned()),
                is_backed_up: false,
            },
        ];
        apply(&changes).unwrap_err();
        assert_eq!(read(&path("one")).unwrap().unwrap(), "before\n");

        apply(&changes[..1]).unwrap();
        assert_eq!(read(&path("one")).unwrap().unwrap(), "after\n");
        assert_eq!(read(&backup(&path("one"))).unwrap().unwrap(), "before\n");
        let undo = Change::edit(&path("one"), Some("before\n".to_owned())).unwrap();
        apply(&[undo]).unwrap();
        assert_eq!(read(&backup(&path("one"))).unwrap(), None);
    }

    #[test]
    fn a_step_shows_the_lines_that_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "a\nb\nb\n").unwrap();
        let change = Change::whole(&path, Some("a\nb\nc\n".to_owned())).unwrap();
        assert!(change.is_needed());
        let step = Step::Write {
            path: path.clone(),
            removed: vec!["b".to_owned()],
            added: vec!["c".to_owned()],
        };
        assert_eq!(change.step(), step);
        let deletion = Change::whole(&path, None).unwrap();
        assert_eq!(deletion.step(), Step::Delete(path));
    }
}
