//! The client of one registry: pulls, and pushes for the command line.
//!
//! ```text
//! Registry ▶ mirrors, retry ▶ Endpoint ▶ auth ▶ Http (redirects) ▶ dial rules ▶ the network
//! ```

mod address;
mod answer;
mod auth;
mod blob;
mod builder;
mod challenge;
mod client;
mod config;
mod dial;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod health;
mod hosted;
mod hosts;
mod http;
mod manifest;
mod memory;
mod origin;
mod part;
mod peer;
mod proxy;
mod push;
mod referrers;
mod retry;
mod starlift;
mod tags;
mod tls;
mod token;
mod unanswered;
mod verify;

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use url::Url;

pub use self::auth::{Login, Logins};
pub(crate) use self::builder::Builder;
pub(crate) use self::client::Registry;
pub use self::config::{Config, HostPattern, Secret, UpstreamConfig};
pub use self::error::Error;
pub(crate) use self::error::excerpt;
pub(crate) use self::hosted::Hosted;
pub use self::origin::Origin;
pub use self::peer::Peer;
pub use self::proxy::ProxyUrl;
pub use self::starlift::Purpose;
pub(crate) use self::verify::verified;

/// The host that serves Docker Hub.
const HUB_URL: &str = "https://registry-1.docker.io";

fn registry_url(text: &str) -> Result<Url, Error> {
    let unusable = |why: &str| Error::Configuration(format!("{text:?} {why}"));
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| unusable(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable(
            "is neither http:// nor https://, oci:DIR nor docker-archive:FILE",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not repeated: it holds a password.
        return Err(Error::Configuration(
            "credentials do not belong into a URL".to_owned(),
        ));
    }
    Ok(url)
}

/// The `host[:port]` of a registry that serves nothing below a path.
pub(crate) fn bare_host(url: &str) -> Option<String> {
    registry_url(url)
        .ok()
        .filter(|url| url.path() == "/")
        .map(|url| host_of(&url))
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A blob's bytes on their way.
pub struct Body {
    /// Length of the whole blob.
    pub blob_size: u64,
    /// What of it the stream holds.
    pub range: Range<u64>,
    /// Ends with [`Error::WrongDigest`] instead of its last bytes when a whole blob is not what was asked for.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
    /// Who gives it, where that is a Starlift server.
    pub peer: Option<Peer>,
    /// The registry host it comes from; none for a layout.
    pub origin: Option<Origin>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("blob_size", &self.blob_size)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// A page of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    pub tags: Vec<String>,
    /// Whether there are more behind the last.
    pub more: bool,
}
