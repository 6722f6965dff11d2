//! One registry host: requests with the authorization it wants, its refusals as errors.

use reqwest::header::HeaderMap;
use reqwest::{Body, Method, StatusCode};
use url::Url;

use super::answer::Answer;
use super::auth::{Action, Authenticator, Credentials};
use super::error::Error;
use super::http::{Fetch, Http, same_origin};
use crate::oci::Repository;

/// A token known, a challenge, and a second one because the token had expired.
const MAX_ROUNDS: usize = 3;

/// One host that speaks the distribution API.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: Http,
    /// Scheme, host and port.
    base: Url,
    /// What stands in front of every repository name: empty, or ends with `/`.
    prefix: String,
    /// The registry that this one is a mirror of, told by `?ns=` as containerd does.
    mirror_of: Option<String>,
    auth: Authenticator,
}

/// A read of something below a repository.
#[derive(Debug, Clone)]
pub(super) struct Read<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a Repository,
    /// What follows the repository: `manifests/v1`.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
}

impl<'a> Read<'a> {
    pub(super) fn get(repository: &'a Repository, path: String) -> Self {
        Self { method: Method::GET, repository, path, query: Vec::new(), headers: HeaderMap::new() }
    }

    pub(super) fn head(repository: &'a Repository, path: String) -> Self {
        Self { method: Method::HEAD, ..Self::get(repository, path) }
    }
}

impl Endpoint {
    pub(super) fn new(http: Http, url: &Url, mirror_of: Option<String>, credentials: Credentials) -> Self {
        let mut base = url.clone();
        base.set_path("/");
        base.set_query(None);
        base.set_fragment(None);
        let path = url.path().trim_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let auth = Authenticator::new(http.clone(), base.clone(), credentials);
        Self { http, base, prefix, mirror_of, auth }
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    fn name_of(&self, repository: &Repository) -> String {
        format!("{}{repository}", self.prefix)
    }

    fn url(&self, repository: &Repository, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{path}", self.name_of(repository)));
        if let Some(name) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", name);
        }
        url
    }

    /// Reads, logging in where the registry wants it. An answer that is no success is an error.
    pub(super) async fn read(&self, read: &Read<'_>) -> Result<Answer, Error> {
        let mut url = self.url(read.repository, &read.path);
        for (name, value) in &read.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        self.read_url(read, url).await
    }

    /// Reads a link that the registry gave; one to another host is refused.
    pub(super) async fn follow(&self, read: &Read<'_>, link: Url) -> Result<Answer, Error> {
        if !same_origin(&link, &self.base) {
            return Err(Error::Malformed("a link leads to another host".to_owned()));
        }
        self.read_url(read, link).await
    }

    async fn read_url(&self, read: &Read<'_>, url: Url) -> Result<Answer, Error> {
        let name = self.name_of(read.repository);
        let mut authorization = self.auth.known(&name, Action::Pull).await?;
        for _ in 0..MAX_ROUNDS {
            let fetch = Fetch {
                method: read.method.clone(),
                url: url.clone(),
                headers: read.headers.clone(),
                authorization: authorization.as_ref().map(|authorization| authorization.header.clone()),
            };
            let answer = self.http.fetch(&fetch).await?;
            // A challenge of a host behind a redirect is none of ours.
            if answer.status() != StatusCode::UNAUTHORIZED || !answer.is_own {
                return answer.accepted();
            }
            let headers = answer.headers();
            authorization = Some(self.auth.after_refusal(headers, &name, Action::Pull, authorization.as_ref()).await?);
        }
        Err(Error::Unauthorized)
    }

    /// Writes, logging in first where the registry wants it: `make_body` is called once for each time it is sent.
    pub(super) async fn write(
        &self,
        method: Method,
        repository: &Repository,
        url: Option<Url>,
        path: &str,
        headers: HeaderMap,
        mut make_body: impl FnMut() -> Option<Body>,
    ) -> Result<Answer, Error> {
        let name = self.name_of(repository);
        let url = url.unwrap_or_else(|| self.url(repository, path));
        let mut authorization = self.auth.known(&name, Action::Push).await?;
        for _ in 0..MAX_ROUNDS {
            // A body that can be sent but once is gone after a refusal.
            let body = make_body().ok_or(Error::Unauthorized)?;
            let header = authorization.as_ref().map(|authorization| authorization.header.clone());
            let header = header.filter(|_| same_origin(&url, &self.base));
            let answer = self.http.send(method.clone(), url.clone(), headers.clone(), header, body).await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                return answer.accepted();
            }
            let headers = answer.headers();
            authorization = Some(self.auth.after_refusal(headers, &name, Action::Push, authorization.as_ref()).await?);
        }
        Err(Error::Unauthorized)
    }
}
