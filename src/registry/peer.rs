//! A Starlift server among the hosts that images come from. Requests and reports for its own API
//! are sent to no other host.
//!
//! It is recognised by the `Server` header of its own answers. Requests go to the host that
//! answered, under the rules, certificates and credentials that are used for its blobs. Redirects
//! are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::client::Registry;
use super::endpoint::Endpoint;
use super::error::Error;
use crate::oci::Repository;

/// How long one exchange may take, its body included.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer to a report. Nobody reads it.
const MAX_RECEIPT: u64 = 64 << 10;
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A Starlift server that sent a part of an image.
#[derive(Debug, Clone)]
pub struct Peer {
    registry: Arc<Registry>,
    number: usize,
    repository: Repository,
}

impl Peer {
    pub(super) fn new(registry: &Arc<Registry>, number: usize, repository: &Repository) -> Self {
        Self {
            registry: Arc::clone(registry),
            number,
            repository: repository.clone(),
        }
    }

    fn endpoint(&self) -> &Endpoint {
        self.registry.endpoint(self.number)
    }

    /// Returns `host[:port]`, for messages and logs.
    pub fn host(&self) -> String {
        self.endpoint().host()
    }

    /// Reads a document of at most `limit` bytes of the server's own API.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the server does not have it; others if it cannot be read in time.
    pub async fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        limit: u64,
    ) -> Result<Bytes, Error> {
        let headers = HeaderMap::from_iter([(ACCEPT, JSON)]);
        self.exchange(Method::GET, path, query, headers, Bytes::new(), limit)
            .await
    }

    /// Sends a JSON document to the server's own API, once.
    ///
    /// # Errors
    /// If the server does not accept it.
    pub async fn post(&self, path: &str, query: &[(&str, &str)], json: Bytes) -> Result<(), Error> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
        self.exchange(Method::POST, path, query, headers, json, MAX_RECEIPT)
            .await
            .map(drop)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Bytes,
        limit: u64,
    ) -> Result<Bytes, Error> {
        let exchange = async {
            let answer = self
                .endpoint()
                .call(method, &self.repository, path, query, headers, body)
                .await?;
            answer.limited_body(limit).await
        };
        let silent = || {
            Error::Unavailable(format!(
                "no answer within {}",
                humantime::format_duration(EXCHANGE_LIMIT)
            ))
        };
        tokio::time::timeout(EXCHANGE_LIMIT, exchange)
            .await
            .unwrap_or_else(|_elapsed| Err(silent()))
    }
}
