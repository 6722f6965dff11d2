//! Fetches an issuer's keys over HTTPS.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Certificate, Client, redirect};
use serde::Deserialize;
use url::Url;

use super::check::fetchable;
use super::config::IssuerConfig;
use super::keys::{JwksError, Keys, MAX_JWKS};
use crate::registry::Secret;
use crate::tls_provider;

/// How long a fetch of keys may take, both requests included.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// The largest discovery document. They have a few KiB.
const MAX_DISCOVERY: usize = 64 << 10;
/// The path of the discovery document (OpenID Connect Discovery 1.0, section 4).
const DISCOVERY: &str = ".well-known/openid-configuration";

/// Why keys are not here.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("request failed")]
    Request(#[from] reqwest::Error),
    #[error("status {0}")]
    Status(u16),
    #[error("no answer within 5 s")]
    Slow,
    #[error("answer longer than {0} bytes")]
    TooLarge(usize),
    #[error("no discovery document of this issuer with a jwks_uri of https")]
    Discovery,
    #[error("keys")]
    Keys(#[from] JwksError),
    #[error("{}", file.display())]
    File {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// The place of an issuer's keys.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    issuer: String,
    /// `None`: the discovery document names it.
    keys: Option<Url>,
    token_file: Option<PathBuf>,
}

impl Fetcher {
    /// Reads the authorities. Blocking.
    pub(super) fn new(config: &IssuerConfig) -> Result<Self, FetchError> {
        tls_provider::install();
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(FETCH_LIMIT)
            .timeout(FETCH_LIMIT);
        if let Some(file) = &config.ca_file {
            let pem = std::fs::read(file).map_err(|source| unreadable(file, source))?;
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self {
            client: builder.build()?,
            issuer: config.issuer.clone(),
            keys: config.jwks_url.as_deref().and_then(fetchable),
            token_file: config.token_file.clone(),
        })
    }

    /// Fetches the keys.
    pub(super) async fn keys(&self) -> Result<Keys, FetchError> {
        let fetched = tokio::time::timeout(FETCH_LIMIT, self.fetched());
        fetched.await.map_err(|_elapsed| FetchError::Slow)?
    }

    async fn fetched(&self) -> Result<Keys, FetchError> {
        let token = match &self.token_file {
            Some(file) => Some(token(file).await?),
            None => None,
        };
        let document = match &self.keys {
            Some(url) => self.get(url, token.as_ref(), MAX_JWKS).await?,
            None => {
                let base = self.issuer.trim_end_matches('/');
                let url = fetchable(&format!("{base}/{DISCOVERY}")).ok_or(FetchError::Discovery)?;
                let found = self.get(&url, token.as_ref(), MAX_DISCOVERY).await?;
                let keys = self.discovered(&found).ok_or(FetchError::Discovery)?;
                // The token is for the issuer's host.
                let token = token.filter(|_| keys.origin() == url.origin());
                self.get(&keys, token.as_ref(), MAX_JWKS).await?
            }
        };
        Ok(Keys::parse(&document)?)
    }

    fn discovered(&self, document: &[u8]) -> Option<Url> {
        let found: Discovery = serde_json::from_slice(document).ok()?;
        (found.issuer == self.issuer).then(|| fetchable(&found.jwks_uri))?
    }

    async fn get(
        &self,
        url: &Url,
        token: Option<&Secret>,
        limit: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let mut request = self.client.get(url.clone());
        request = request.header(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = token {
            request = request.bearer_auth(token.expose());
        }
        let mut answer = request.send().await?;
        if answer.status() != 200 {
            return Err(FetchError::Status(answer.status().as_u16()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if bytes.len() + piece.len() > limit {
                return Err(FetchError::TooLarge(limit));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

async fn token(file: &Path) -> Result<Secret, FetchError> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|source| unreadable(file, source))?;
    Ok(Secret::new(text.trim()))
}

/// Reads keys from a file. Blocking.
pub(super) fn from_file(file: &Path) -> Result<Keys, FetchError> {
    let size = std::fs::metadata(file).map_err(|source| unreadable(file, source))?;
    if size.len() > MAX_JWKS as u64 {
        return Err(JwksError::TooLarge.into());
    }
    let bytes = std::fs::read(file).map_err(|source| unreadable(file, source))?;
    Ok(Keys::parse(&bytes)?)
}

fn unreadable(file: &Path, source: io::Error) -> FetchError {
    FetchError::File {
        file: file.to_owned(),
        source,
    }
}
