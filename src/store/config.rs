//! The store's section of the configuration.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize, Serializer};

/// Where the store is and how long it keeps objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A folder, or `s3://BUCKET[/PREFIX]`, `gs://BUCKET[/PREFIX]`, `az://CONTAINER[/PREFIX]`.
    pub location: String,
    /// The URL of an object store that is not the cloud's own, such as MinIO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether `endpoint` may be plain HTTP.
    pub allow_http: bool,
    /// The account: an S3 access key id or an Azure storage account. Without it the environment and
    /// the instance's own identity are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The key to `access_key_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// The session token of temporary S3 credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// A file with the key of a Google service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<PathBuf>,
    /// Layers are uploaded to a bucket in parts of this size, four at a time; S3 accepts at most
    /// 10,000 parts, and none under 5 MiB.
    pub part_size: ByteSize,
    /// How long the lease of a dead replica keeps others from the work it had begun.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    pub retention: Retention,
    pub scrub: Scrub,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<RangeCacheConfig>,
}

/// Pieces of a bucket's layers on this machine's disk, from which ranges are answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeCacheConfig {
    /// The folder, of this server alone. It is created if it is missing.
    pub folder: PathBuf,
    /// The most bytes that it takes, as the file system counts them, 10 GiB if this is not set; at
    /// the limit, pieces that are rarely requested go.
    #[serde(default = "RangeCacheConfig::default_size")]
    pub max_size: ByteSize,
}

impl RangeCacheConfig {
    fn default_size() -> ByteSize {
        ByteSize::gib(10)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            location: "starlift-store".to_owned(),
            endpoint: None,
            region: None,
            allow_http: false,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            service_account: None,
            part_size: ByteSize::mib(8),
            lease_ttl: Duration::from_secs(30),
            retention: Retention::default(),
            scrub: Scrub::default(),
            cache: None,
        }
    }
}

/// Which objects may be deleted, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Images and layers that were not requested for this long are deleted; without a value, they
    /// stay.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// Above this size, the images whose last request is the oldest are deleted, but none that was
    /// requested in the last ten minutes; an image for which there is no room is passed through.
    /// Without a value, there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// No younger or more recently used object is deleted, unless `max_size` is reached. It must be
    /// longer than any upload takes, and longer than clients keep a manifest before they request
    /// its layers.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// The search for corrupted objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scrub {
    /// How often everything in the store is read and compared with its digest, by one replica; `0s`
    /// never.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The most bytes per second that are read for it. Layers whose ranges are requested are
    /// checked at this rate too; with `0B`, the scrub has no limit, and range requests cause no
    /// checks.
    pub rate: ByteSize,
}

impl Default for Scrub {
    fn default() -> Self {
        // At this rate a terabyte takes a day and a half.
        Self {
            interval: Duration::from_secs(7 * 24 * 60 * 60),
            rate: ByteSize::mib(8),
        }
    }
}

/// How long a used object stays although the store is above `max_size`: longer than a client takes
/// from a manifest to its last layer, and twice as long as another replica may cache a deleted
/// object.
const IN_USE: Duration = Duration::from_secs(10 * 60);

/// How long an object that no image names yet stays although the store is above `max_size`: the
/// layers of an image whose last layer is still being converted.
const UNFINISHED: Duration = Duration::from_secs(60 * 60);

impl Retention {
    /// How long uncommitted uploads stay, and visible objects that no image names.
    pub(super) fn abandoned(&self) -> Duration {
        if self.max_size.is_some() {
            self.grace.min(UNFINISHED)
        } else {
            self.grace
        }
    }

    /// How long a use keeps an object in any case.
    pub(super) fn idle(&self) -> Duration {
        if self.max_size.is_some() {
            self.grace.min(IN_USE)
        } else {
            self.grace
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: Some(Duration::from_secs(30 * 24 * 60 * 60)),
            max_size: None,
            grace: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// The text shown in place of a secret.
const REDACTED: &str = "(redacted)";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_but_never_shown() {
        let config: Config = toml::from_str("secret_access_key = 'hunter2'").unwrap();
        assert_eq!(
            config.secret_access_key.as_ref().map(Secret::reveal),
            Some("hunter2")
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
    }

    #[test]
    fn units_are_written_out_and_typos_are_errors() {
        let config: Config =
            toml::from_str("lease_ttl = '1m'\n[retention]\nmax_size = '10GiB'").unwrap();
        assert_eq!(config.lease_ttl, Duration::from_secs(60));
        assert_eq!(config.retention.max_size, Some(ByteSize::gib(10)));
        assert!(toml::from_str::<Config>("locatoin = 'x'").is_err());
        assert!(toml::from_str::<Config>("[retention]\nmax_aeg = '1d'").is_err());
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }
}
