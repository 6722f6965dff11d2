//! The conversions ahead of a pull in the server's configuration: who may announce pushes, and which
//! images are converted again and again.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A registry that announces pushes to `POST /api/v1/notifications/NAME` on `serve.listen`: the
/// notifications of docker-registry (distribution), webhooks of Harbor in both formats, events of
/// zot, and other CloudEvents. Pushed images are converted before the first pull. To the access
/// rules it is `user:source:NAME` and needs `warm` for the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotificationConfig {
    /// The name in the path and in the rules: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The name of the upstream in which the announced images are, whatever host an event mentions.
    pub upstream: String,
    /// A file with the secret, of 20 characters or more, that the sender shows in `Authorization`:
    /// by itself, as `Bearer SECRET`, or as the password of any user. Each line is one secret, so
    /// that a new one can be added before the old one is removed. It is read at each notification.
    pub secret_file: PathBuf,
    /// Convert manifests too that were pushed without a tag. Most of these are the platforms of an
    /// index, which `convert.platforms` chooses from when the index arrives.
    #[serde(default)]
    pub untagged: bool,
}

/// Images that this server keeps converted, with its own rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmConfig {
    /// Images as clients name them: `docker.io/library/nginx:1.21.1`, `local/app:1`. They are
    /// converted at the start of the server, and again when their tag has moved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// How often the tags of `images` are resolved again.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl NotificationConfig {
    /// Whether the name can be a component of a path and of a user's name.
    fn has_name(&self) -> bool {
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !self.name.is_empty() && self.name.bytes().all(is_plain)
    }

    /// Whether the names are valid and different.
    pub(super) fn are_named(sources: &[Self]) -> bool {
        let is_new = |(at, source): (usize, &Self)| {
            sources[..at].iter().all(|other| other.name != source.name)
        };
        sources.iter().all(Self::has_name) && sources.iter().enumerate().all(is_new)
    }
}

impl Default for WarmConfig {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            interval: Duration::from_secs(60 * 60),
        }
    }
}
