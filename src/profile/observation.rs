//! One node's observation of one start.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::file::FileUse;

/// The most files of one observation. A start that reads more gains little from an order.
pub const MAX_FILES: usize = 16_384;
/// The longest document of an observation: the most files, with paths of some 100 bytes.
pub const MAX_OBSERVATION_BYTES: usize = 2 << 20;

/// The files that a start used, in the order of their first use, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    files: Vec<FileUse>,
}

/// The reason why a document is not an observation.
#[derive(Debug, thiserror::Error)]
pub enum ObservationError {
    #[error("longer than {MAX_OBSERVATION_BYTES} bytes")]
    TooLong,
    #[error("not the JSON of an observation: {0}")]
    Json(#[from] serde_json::Error),
    #[error("unknown version {0}")]
    Version(u32),
    #[error("no files")]
    Empty,
    #[error("more than {MAX_FILES} files")]
    TooMany,
    #[error("{0:?} is not a path within an image")]
    Path(String),
    #[error("layer {layer} of an image of {layers}")]
    Layer { layer: u32, layers: usize },
}

/// The document as it is sent.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<Files> {
    version: u32,
    files: Files,
}

const VERSION: u32 = 1;

impl Observation {
    /// Sorts files by their first use. The earlier use of a repeated file counts, and files beyond
    /// [`MAX_FILES`] are left out.
    pub fn new(mut files: Vec<FileUse>) -> Self {
        files.sort_by_key(|file| file.after);
        let mut seen = HashSet::new();
        files.retain(|file| file.is_well_formed() && seen.insert((file.layer, file.path.clone())));
        files.truncate(MAX_FILES);
        Self { files }
    }

    /// Parses a node's observation of an image of `layers` layers.
    ///
    /// # Errors
    /// If the document is not an observation, is too large, or names a file or layer that cannot be
    /// in the image.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, ObservationError> {
        if bytes.len() > MAX_OBSERVATION_BYTES {
            return Err(ObservationError::TooLong);
        }
        let Document { version, files } = serde_json::from_slice::<Document<Vec<FileUse>>>(bytes)?;
        if version != VERSION {
            return Err(ObservationError::Version(version));
        }
        if files.is_empty() {
            return Err(ObservationError::Empty);
        }
        if files.len() > MAX_FILES {
            return Err(ObservationError::TooMany);
        }
        for file in &files {
            if !file.is_well_formed() {
                return Err(ObservationError::Path(file.path.clone()));
            }
            if usize::try_from(file.layer).map_or(true, |layer| layer >= layers) {
                return Err(ObservationError::Layer {
                    layer: file.layer,
                    layers,
                });
            }
        }
        Ok(Self::new(files))
    }

    /// The document as it is sent.
    ///
    /// # Errors
    /// Never: everything in it has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Document {
            version: VERSION,
            files: &self.files,
        })
    }

    /// Leaves out the files that `is_there` rejects, and returns their number.
    pub fn retain(&mut self, is_there: impl FnMut(&FileUse) -> bool) -> usize {
        let before = self.files.len();
        self.files.retain(is_there);
        before - self.files.len()
    }

    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.files.iter().map(FileUse::weight).sum()
    }

    pub fn files(&self) -> &[FileUse] {
        &self.files
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::profile::Extents;

    fn file(layer: u32, path: &str, after: u64) -> FileUse {
        FileUse {
            layer,
            path: path.to_owned(),
            extents: Extents::default(),
            after: Duration::from_millis(after),
        }
    }

    fn parsed(text: &str) -> Result<Observation, ObservationError> {
        Observation::parse(text.as_bytes(), 2)
    }

    #[test]
    fn files_are_in_the_order_of_their_first_use() {
        let observation = Observation::new(vec![
            file(0, "b", 9),
            file(1, "a", 3),
            file(0, "b", 1),
            file(0, "../c", 0),
        ]);
        assert_eq!(observation.files(), [file(0, "b", 1), file(1, "a", 3)]);
    }

    #[test]
    fn a_sent_observation_parses_again() {
        let extents = Extents::new([0..4096, 8192..9000]);
        let observation = Observation::new(vec![
            file(0, "a", 0),
            FileUse {
                extents,
                ..file(1, "b/ü", 7)
            },
        ]);
        let json = observation.to_json().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&json)
                .matches("[0,4096],[8192,9000]")
                .count(),
            1
        );
        assert_eq!(Observation::parse(&json, 2).unwrap(), observation);
    }

    #[test]
    fn an_impossible_observation_is_refused_with_its_reason() {
        let many: Vec<String> = (0..=MAX_FILES)
            .map(|at| format!(r#"{{"layer":0,"path":"{at}"}}"#))
            .collect();
        let cases = [
            (String::new(), "JSON"),
            (r#"{"version":1,"files":[],"x":1}"#.to_owned(), "JSON"),
            (
                r#"{"version":1,"files":[{"layer":0,"path":"a","argv":["secret"]}]}"#.to_owned(),
                "JSON",
            ),
            (r#"{"version":2,"files":[]}"#.to_owned(), "version 2"),
            (r#"{"version":1,"files":[]}"#.to_owned(), "no files"),
            (
                r#"{"version":1,"files":[{"layer":0,"path":"/etc/shadow"}]}"#.to_owned(),
                "not a path within",
            ),
            (
                r#"{"version":1,"files":[{"layer":0,"path":"a/../../b"}]}"#.to_owned(),
                "not a path within",
            ),
            (
                r#"{"version":1,"files":[{"layer":2,"path":"a"}]}"#.to_owned(),
                "layer 2 of an image of 2",
            ),
            (
                r#"{"version":1,"files":[{"layer":-1,"path":"a"}]}"#.to_owned(),
                "JSON",
            ),
            (
                format!(r#"{{"version":1,"files":[{}]}}"#, many.join(",")),
                "more than",
            ),
            (" ".repeat(MAX_OBSERVATION_BYTES + 1), "longer than"),
        ];
        for (text, reason) in cases {
            let error = parsed(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes: Vec<u8>) {
            let _ = Observation::parse(&bytes, 3);
        }
    }
}
