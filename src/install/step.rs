//! A step of an installation, as it is shown to people.

use std::path::PathBuf;

/// A step that was done, or would be done in a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A file is written, with these lines taken out and put in.
    Write {
        path: PathBuf,
        removed: Vec<String>,
        added: Vec<String>,
    },
    Delete(PathBuf),
    /// A command is run.
    Run(String),
    /// Something that people have to know or do.
    Note(String),
}
