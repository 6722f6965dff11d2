//! The profile: the files to prefetch, as nodes and people receive it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::extents::Extents;
use super::file::{self, FileUse, milliseconds};
use super::observation::MAX_FILES;
use super::workload::Workload;
use crate::oci::Digest;

/// The media type of a profile's document, and the artifact type of an image's referrer that
/// carries one.
pub const MEDIA_TYPE: &str = "application/vnd.dev.starlift.profile.v1+json";

/// The longest document: the most files, with paths of some 200 bytes.
pub const MAX_PROFILE_BYTES: usize = 4 << 20;

/// The memory of a file's sources: one node of a tree.
const BYTES_OF_SOURCES: usize = 32;

/// The reason why a file is in a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A person ran and recorded the workload.
    ByHand,
    /// Nodes observed that it is read.
    Agents,
    /// Lazy clients requested its bytes.
    Ranges,
    /// Static analysis of the image's configuration and files predicted it.
    Static,
}

pub type Sources = BTreeSet<Source>;

impl Source {
    pub const ALL: [Self; 4] = [Self::ByHand, Self::Agents, Self::Ranges, Self::Static];

    /// The name shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByHand => "by hand",
            Self::Agents => "agents",
            Self::Ranges => "ranges",
            Self::Static => "static",
        }
    }
}

/// The files of an image that a workload reads, in the order in which to fetch them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub version: u32,
    /// Digest of the configuration of the source image.
    pub image: Digest,
    pub workload: Workload,
    /// The number of nodes and clients that it was learned from.
    pub observers: usize,
    pub files: Vec<ProfiledFile>,
}

/// A [`FileUse`] and the sources that it is known from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfiledFile {
    pub layer: u32,
    pub path: String,
    #[serde(default, skip_serializing_if = "Extents::is_empty")]
    pub extents: Extents,
    #[serde(default, rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
    pub sources: Sources,
}

/// The reason why a document is not a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("longer than {MAX_PROFILE_BYTES} bytes")]
    TooLong,
    #[error("not the JSON of a profile: {0}")]
    Json(#[from] serde_json::Error),
    #[error("unknown version {0}")]
    Version(u32),
    #[error("more than {MAX_FILES} files")]
    TooMany,
}

impl Profile {
    pub(super) const VERSION: u32 = 1;

    /// Parses a profile. Files with impossible paths are left out, because the others are still
    /// useful.
    ///
    /// # Errors
    /// If the document is not a profile or is too large.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        if bytes.len() > MAX_PROFILE_BYTES {
            return Err(ProfileError::TooLong);
        }
        let mut profile: Self = serde_json::from_slice(bytes)?;
        if profile.version != Self::VERSION {
            return Err(ProfileError::Version(profile.version));
        }
        if profile.files.len() > MAX_FILES {
            return Err(ProfileError::TooMany);
        }
        profile
            .files
            .retain(|file| file::is_well_formed(&file.path));
        Ok(profile)
    }

    /// The document as it is sent.
    ///
    /// # Errors
    /// Never: everything in it has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        let file = |file: &ProfiledFile| {
            size_of::<ProfiledFile>() + file.path.len() + file.extents.weight() + BYTES_OF_SOURCES
        };
        size_of::<Self>() + self.files.iter().map(file).sum::<usize>()
    }
}

impl From<ProfiledFile> for FileUse {
    fn from(file: ProfiledFile) -> Self {
        let ProfiledFile {
            layer,
            path,
            extents,
            after,
            ..
        } = file;
        Self {
            layer,
            path,
            extents,
            after,
        }
    }
}

impl ProfiledFile {
    pub(super) fn new(file: FileUse, sources: Sources) -> Self {
        let FileUse {
            layer,
            path,
            extents,
            after,
        } = file;
        Self {
            layer,
            path,
            extents,
            after,
            sources,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let file = FileUse {
            layer: 2,
            path: "a".to_owned(),
            extents: Extents::new(Some(0..9)),
            after: Duration::from_millis(4),
        };
        Profile {
            version: Profile::VERSION,
            image: Digest::sha256_of(b""),
            workload: Workload::default(),
            observers: 1,
            files: vec![ProfiledFile::new(
                file,
                Sources::from([Source::Agents, Source::ByHand]),
            )],
        }
    }

    #[test]
    fn a_written_profile_parses_again() {
        let json = profile().to_json().unwrap();
        assert!(String::from_utf8_lossy(&json).contains(r#""sources":["by-hand","agents"]"#));
        assert_eq!(Profile::parse(&json).unwrap(), profile());
    }

    #[test]
    fn other_documents_are_refused_and_impossible_paths_left_out() {
        assert!(matches!(Profile::parse(b"{}"), Err(ProfileError::Json(_))));
        let newer = Profile {
            version: 2,
            ..profile()
        };
        assert!(matches!(
            Profile::parse(&newer.to_json().unwrap()),
            Err(ProfileError::Version(2))
        ));
        let one = &profile().files[0];
        let files = vec![one.clone(); MAX_FILES + 1];
        assert!(matches!(
            Profile::parse(&Profile { files, ..profile() }.to_json().unwrap()),
            Err(ProfileError::TooMany)
        ));
        assert!(matches!(
            Profile::parse(&vec![b' '; MAX_PROFILE_BYTES + 1]),
            Err(ProfileError::TooLong)
        ));
        let files = vec![
            ProfiledFile {
                path: "../a".to_owned(),
                ..one.clone()
            },
            one.clone(),
        ];
        let parsed = Profile::parse(&Profile { files, ..profile() }.to_json().unwrap()).unwrap();
        assert_eq!(parsed, profile());
    }
}
