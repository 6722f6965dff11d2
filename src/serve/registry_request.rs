//! A registry request, parsed once: the location of the repository and the client's headers.

use std::net::IpAddr;

use axum::extract::Request;
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use crate::oci::Repository;
use crate::oci::route::{Location, Operation, Route, RouteError};

use super::app::App;
use super::{client_address, guard};

/// The header that containerd's `hosts.toml` can be configured to send if a client sends no `ns`.
const NAMESPACE_HEADER: &str = "oci-namespace";

pub(crate) struct RegistryRequest {
    /// The repository as the client named it.
    pub(crate) name: Repository,
    pub(crate) operation: Operation,
    pub(crate) location: Location,
    /// The `ns` of the query, which links must keep.
    pub(crate) namespace: Option<String>,
    /// Whether the client treats this server as a mirror and has other hosts to try.
    pub(crate) is_mirror: bool,
    pub(crate) is_head: bool,
    /// Whether the client is a browser: viewing an image starts no work.
    pub(crate) is_browser: bool,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    /// The client's address.
    pub(crate) client: Option<IpAddr>,
    pub(crate) started: Instant,
}

impl RegistryRequest {
    pub(crate) fn read(app: &App, request: Request) -> Result<Self, RouteError> {
        let started = Instant::now();
        let (parts, _body) = request.into_parts();
        let path = parts
            .uri
            .path()
            .strip_prefix("/v2/")
            .ok_or(RouteError::Endpoint)?;
        let path = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_not_utf8| RouteError::Name)?;
        let Route { name, operation } = Route::parse(&path)?;
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let namespace = value(&query, "ns")
            .filter(|ns| !ns.is_empty())
            .map(str::to_owned);
        let header = parts
            .headers
            .get(NAMESPACE_HEADER)
            .and_then(|value| value.to_str().ok());
        let named = namespace.as_deref().or(header.filter(|ns| !ns.is_empty()));
        let is_mirror = named.is_some();
        let location = Location::of(&name, named, |name| app.upstreams.is_configured(name))
            .ok_or(RouteError::Name)?;
        let is_head = parts.method == Method::HEAD;
        let client = client_address::address(&app.config, &parts.headers, &parts.extensions);
        let is_browser = guard::is_browser(&parts.headers);
        let headers = parts.headers;
        Ok(Self {
            name,
            operation,
            location,
            namespace,
            is_mirror,
            is_head,
            is_browser,
            query,
            headers,
            client,
            started,
        })
    }

    /// The first query parameter named `key`.
    pub(crate) fn query(&self, key: &str) -> Option<&str> {
        value(&self.query, key)
    }

    /// A header's first value, if it is text.
    pub(crate) fn header(&self, name: http::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn value<'a>(query: &'a [(String, String)], key: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
}
