//! Parses the store's location and opens buckets: S3, Google Cloud Storage, Azure Blob Storage.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::backend::Backend;
use super::config::{Config, Secret};
use super::error::Error;
use crate::tls_provider;

/// A body that makes no progress for this long has failed. There is no limit on the total time,
/// because layers are large.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A client waits for the answer, so this is shorter than its timeout (containerd's is 30 s).
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_RETRIES: usize = 6;

/// The folder or bucket that `location` names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Location {
    Folder(PathBuf),
    Bucket(Bucket),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    cloud: Cloud,
    name: String,
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cloud {
    S3,
    Google,
    Azure,
}

impl Location {
    pub(super) fn parse(config: &Config) -> Result<Self, Error> {
        let location = config.location.as_str();
        let Some((scheme, rest)) = location.split_once("://") else {
            return match location {
                "" => Err(Error::Config("`location` is empty".to_owned())),
                folder => Ok(Self::Folder(folder.into())),
            };
        };
        let cloud = match scheme {
            "file" => return Ok(Self::Folder(rest.into())),
            "s3" => Cloud::S3,
            "gs" => Cloud::Google,
            "az" => Cloud::Azure,
            _ => {
                return Err(Error::Config(format!(
                    "{scheme}:// is neither s3://, gs:// nor az://"
                )));
            }
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() || name.contains(['@', '?', '#', ':']) {
            return Err(Error::Config(format!("{location} does not name a bucket")));
        }
        Ok(Self::Bucket(Bucket {
            cloud,
            name: name.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        }))
    }
}

/// Opens the bucket. Sends nothing yet.
pub(super) fn open(config: &Config, bucket: &Bucket) -> Result<Backend, Error> {
    tls_provider::install();
    let prefix = Path::parse(&bucket.prefix)
        .map_err(|error| Error::Config(format!("`location`: {error}")))?;
    let refused =
        |error: object_store::Error| Error::Config(format!("{}: {error}", config.location));
    match bucket.cloud {
        Cloud::S3 => {
            let objects = Arc::new(s3(config, &bucket.name).build().map_err(refused)?);
            Ok(Backend::bucket(
                Arc::clone(&objects) as _,
                prefix,
                Some(objects),
            ))
        }
        Cloud::Google => {
            let objects = Arc::new(google(config, &bucket.name).build().map_err(refused)?);
            Ok(Backend::bucket(
                Arc::clone(&objects) as _,
                prefix,
                Some(objects),
            ))
        }
        Cloud::Azure => {
            let objects = Arc::new(azure(config, &bucket.name).build().map_err(refused)?);
            Ok(Backend::bucket(
                Arc::clone(&objects) as _,
                prefix,
                Some(objects),
            ))
        }
    }
}

fn s3(config: &Config, bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_allow_http(config.allow_http)
        .with_client_options(client(config))
        .with_retry(retry());
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(secret.reveal());
    }
    match config.session_token.as_ref().map(Secret::reveal) {
        Some(token) => builder.with_token(token),
        None => builder,
    }
}

fn google(config: &Config, bucket: &str) -> GoogleCloudStorageBuilder {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client(config))
        .with_retry(retry());
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_config(object_store::gcp::GoogleConfigKey::BaseUrl, endpoint);
    }
    match &config.service_account {
        Some(file) => builder.with_service_account_path(file.to_string_lossy()),
        None => builder,
    }
}

fn azure(config: &Config, container: &str) -> MicrosoftAzureBuilder {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_allow_http(config.allow_http)
        .with_client_options(client(config))
        .with_retry(retry());
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(account) = &config.access_key_id {
        builder = builder.with_account(account);
    }
    match config.secret_access_key.as_ref().map(Secret::reveal) {
        Some(key) => builder.with_access_key(key),
        None => builder,
    }
}

fn client(config: &Config) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(3),
        base: 2.0,
    };
    RetryConfig {
        backoff,
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(location: &str) -> Result<Location, Error> {
        Location::parse(&Config {
            location: location.to_owned(),
            ..Config::default()
        })
    }

    #[test]
    fn locations_are_folders_or_buckets() {
        assert_eq!(
            parse("some/folder").unwrap(),
            Location::Folder("some/folder".into())
        );
        assert_eq!(
            parse("file:///srv/store").unwrap(),
            Location::Folder("/srv/store".into())
        );
        let bucket = Bucket {
            cloud: Cloud::S3,
            name: "images".to_owned(),
            prefix: "a/b".to_owned(),
        };
        assert_eq!(parse("s3://images/a/b/").unwrap(), Location::Bucket(bucket));
        for location in ["", "ftp://x", "s3://", "s3:///x", "s3://key:secret@bucket"] {
            assert!(
                matches!(parse(location), Err(Error::Config(_))),
                "{location:?}"
            );
        }
    }

    #[test]
    fn the_configuration_is_enough_to_open_each_cloud() {
        for location in ["s3://bucket/prefix", "gs://bucket", "az://container"] {
            let config = Config {
                location: location.to_owned(),
                access_key_id: Some("account".to_owned()),
                secret_access_key: Some(Secret::new("c2VjcmV0")),
                ..Config::default()
            };
            let Location::Bucket(bucket) = Location::parse(&config).unwrap() else {
                panic!("{location}")
            };
            assert!(open(&config, &bucket).unwrap().signer().is_some());
        }
    }
}
