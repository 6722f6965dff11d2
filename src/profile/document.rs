//! The profile: what is to be fetched ahead, as nodes and people get it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::extents::Extents;
use super::file::{self, FileUse, milliseconds};
use super::observation::MAX_FILES;
use super::workload::Workload;
use crate::oci::Digest;

/// Of a profile's document, and the artifact type of an image's referrer that carries one.
pub const MEDIA_TYPE: &str = "application/vnd.dev.starlift.profile.v1+json";

/// The longest document: the most files with paths of 200 bytes or so.
pub const MAX_PROFILE_BYTES: usize = 4 << 20;

/// How a file got into a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Someone ran the workload and recorded it.
    ByHand,
    /// Nodes saw it in use.
    Agents,
    /// Lazy clients asked for its bytes.
    Ranges,
    /// The image's configuration and files suggest it.
    Static,
}

pub type Sources = BTreeSet<Source>;

impl Source {
    pub const ALL: [Self; 4] = [Self::ByHand, Self::Agents, Self::Ranges, Self::Static];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByHand => "by hand",
            Self::Agents => "agents",
            Self::Ranges => "ranges",
            Self::Static => "static",
        }
    }
}

/// The files of an image that a workload reads, those to fetch first in front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub version: u32,
    /// Digest of the configuration of the source image.
    pub image: Digest,
    pub workload: Workload,
    /// How many nodes and clients it was learned of.
    pub observers: usize,
    pub files: Vec<ProfiledFile>,
}

/// A [`FileUse`] and where it is known from.
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

/// Why a document is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("it is longer than {MAX_PROFILE_BYTES} bytes")]
    TooLong,
    #[error("it is not the JSON of a profile: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is of version {0}, which is not known here")]
    Version(u32),
    #[error("it has more than {MAX_FILES} files")]
    TooMany,
}

impl Profile {
    pub(super) const VERSION: u32 = 1;

    /// Reads a profile. Files that cannot be in an image are left out: the others are as good as they were.
    ///
    /// # Errors
    /// When it is none or too large.
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

    /// As it is sent.
    ///
    /// # Errors
    /// Never: everything in it has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
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
    fn a_profile_is_read_again() {
        let json = profile().to_json().unwrap();
        assert!(String::from_utf8_lossy(&json).contains(r#""sources":["by-hand","agents"]"#));
        assert_eq!(Profile::parse(&json).unwrap(), profile());
    }

    #[test]
    fn other_documents_are_refused_and_odd_paths_left_out() {
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
