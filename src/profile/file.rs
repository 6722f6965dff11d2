//! One file that a container read.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::extents::Extents;

/// The longest path (Linux, `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// The use of one file: which parts were read, and when. Never its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileUse {
    /// The layer that holds the file, counted from the bottom.
    pub layer: u32,
    /// The path in that layer: `usr/bin/env`. A file whose name is not UTF-8 is in no profile.
    pub path: String,
    #[serde(default, skip_serializing_if = "Extents::is_empty")]
    pub extents: Extents,
    /// The time from the container's start to the first use.
    #[serde(default, rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
}

impl FileUse {
    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.path.len() + self.extents.weight()
    }

    pub(super) fn is_well_formed(&self) -> bool {
        is_well_formed(&self.path)
    }
}

/// Whether a path names a file within an image, in its canonical form.
pub(super) fn is_well_formed(path: &str) -> bool {
    let is_name = |name: &str| !matches!(name, "" | "." | "..");
    path.len() <= MAX_PATH_BYTES && !path.contains('\0') && path.split('/').all(is_name)
}

/// A duration as whole milliseconds.
pub(super) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::profile) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in crate::profile) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lie_within_the_image() {
        for path in ["a", "usr/bin/env", "a/..b", "ü/ö", "a b"] {
            assert!(is_well_formed(path), "{path:?}");
        }
        for path in [
            "",
            "/etc/shadow",
            "../a",
            "a/../../b",
            "a//b",
            "a/",
            "./a",
            "a\0b",
            &"a/".repeat(3000),
        ] {
            assert!(!is_well_formed(path), "{path:?}");
        }
    }
}
