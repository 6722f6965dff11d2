//! The registry client against a registry that breaks on command.

mod auth;
mod blobs;
mod dial;
mod hosts;
mod identity;
mod layout;
mod manifests;
mod mirrors;
mod proxy;
mod push;
mod tls;

use std::time::Duration;

use starlift::oci::{Digest, Reference, Repository};
use starlift::registry::{Config, Error, UpstreamConfig};
use starlift::transport::{Source, Upstreams};

use crate::support::registry::Registry;

/// Returns a configuration that ignores this machine's settings and does not wait between attempts.
fn config() -> Config {
    Config {
        docker_config: Some("/nonexistent".into()),
        credential_helpers: Some("/nonexistent".into()),
        retry_delay: Duration::from_millis(1),
        ..Config::default()
    }
}

/// Returns the upstream `local` of a configuration with this upstream only.
fn source_of(config: Config, upstream: UpstreamConfig) -> Source {
    let config = Config {
        upstream: [("local".to_owned(), upstream)].into(),
        ..config
    };
    Upstreams::new(&config).unwrap().get("local").unwrap()
}

/// Returns an upstream with a URL and defaults.
fn at(url: String) -> UpstreamConfig {
    UpstreamConfig {
        url,
        ..UpstreamConfig::default()
    }
}

fn source(registry: &Registry) -> Source {
    source_of(config(), at(registry.url()))
}

fn app() -> Repository {
    "library/app".parse().unwrap()
}

fn v1() -> Reference {
    "v1".parse().unwrap()
}

/// Reads a blob to its end; returns the received bytes and the result.
async fn read(
    source: &Source,
    digest: &Digest,
    range: Option<std::ops::Range<u64>>,
) -> (Vec<u8>, Result<(), Error>) {
    use futures::TryStreamExt as _;
    let mut got = Vec::new();
    let mut body = match source.blob(&app(), digest, range).await {
        Ok(body) => body.stream,
        Err(error) => return (got, Err(error)),
    };
    loop {
        match body.try_next().await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => return (got, Ok(())),
            Err(error) => return (got, Err(error)),
        }
    }
}
