//! One registry host: sends requests with the authorization that it requires, and turns refusals
//! into errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap};
use reqwest::{Body, Method, StatusCode};
use url::Url;

use super::answer::{Answer, Reading};
use super::auth::{Authenticator, Authorization, ClientLogin, Credentials};
use super::error::Error;
use super::health::host_key;
use super::http::{Fetch, Http, same_origin};
use super::memory::EndpointId;
use super::starlift::{PURPOSE_HEADER, Purpose};
use super::token::Action;
use super::urls::host_of;
use crate::oci::Repository;

/// The attempts of one request: with a known token, after a challenge, after a second challenge
/// because the token had expired, and after a momentary refusal.
const MAX_ROUNDS: usize = 4;

/// The root path of the distribution API on nearly every host.
pub(super) const API_ROOT: &str = "/v2";

/// One host that speaks the distribution API.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: Http,
    place: Place,
    key: Arc<str>,
    id: EndpointId,
    auth: Authenticator,
    /// The identity of this machine, which is tried first.
    identity: Option<Authenticator>,
    /// Whether its last answer said that it is a Starlift server.
    is_starlift: AtomicBool,
}

/// The location of the API, and the settings of requests to it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Scheme, host and port.
    pub(super) base: Url,
    /// The root path of the API.
    pub(super) root: String,
    /// The prefix of every repository name: empty, or ends with `/`.
    pub(super) prefix: String,
    /// The registry that this one is a mirror of, sent as `?ns=` like containerd does.
    pub(super) mirror_of: Option<String>,
    pub(super) capabilities: Capabilities,
    /// Sent with every request, and to no other host.
    pub(super) headers: HeaderMap,
    /// Whether the configuration names the host. An image's name does not count.
    pub(super) is_named: bool,
}

/// The kinds of requests that a host serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Objects by digest.
    pub(super) pull: bool,
    /// Tags.
    pub(super) resolve: bool,
}

/// How a host lets this machine in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It asks for no credentials.
    Open,
    /// It takes a token for nobody in particular.
    Anonymous,
    /// It takes the credentials of this machine.
    Login,
    /// It takes only credentials, and this machine has none for it.
    Closed,
}

impl Capabilities {
    pub(super) const ALL: Self = Self {
        pull: true,
        resolve: true,
    };

    /// Whether these capabilities include all of `wanted`.
    pub(super) fn cover(self, wanted: Self) -> bool {
        (self.pull || !wanted.pull) && (self.resolve || !wanted.resolve)
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::ALL
    }
}

impl Place {
    /// Returns the place at the host of `url`; the path is ignored.
    pub(super) fn at(url: &Url) -> Self {
        let mut base = url.clone();
        base.set_path("/");
        base.set_query(None);
        base.set_fragment(None);
        Self {
            base,
            root: API_ROOT.to_owned(),
            prefix: String::new(),
            mirror_of: None,
            capabilities: Capabilities::ALL,
            headers: HeaderMap::new(),
            is_named: false,
        }
    }

    /// Returns the place at the host of `url`, with its path as the prefix of repository names.
    pub(super) fn with_prefix(url: &Url) -> Self {
        let path = url.path().trim_matches('/');
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        Self {
            prefix,
            ..Self::at(url)
        }
    }
}

/// A read of a path below a repository.
#[derive(Debug, Clone)]
pub(super) struct Read<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a Repository,
    /// The path after the repository: `manifests/v1`.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    /// Sent only to a Starlift server.
    pub(super) purpose: Option<Purpose>,
}

impl<'a> Read<'a> {
    pub(super) fn get(repository: &'a Repository, path: String) -> Self {
        let (query, headers) = (Vec::new(), HeaderMap::new());
        Self {
            method: Method::GET,
            repository,
            path,
            query,
            headers,
            purpose: None,
        }
    }

    pub(super) fn head(repository: &'a Repository, path: String) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(repository, path)
        }
    }
}

impl Endpoint {
    pub(super) fn new(http: Http, place: Place, credentials: Credentials) -> Self {
        let memory = Arc::clone(&http.context().memory);
        let id = memory.endpoint();
        let auth = Authenticator::new(http.clone(), place.base.clone(), credentials, memory, id);
        let key = host_key(&place.base);
        Self {
            http,
            place,
            key,
            id,
            auth,
            identity: None,
            is_starlift: AtomicBool::new(false),
        }
    }

    /// Adds the identity of this machine, which is tried before other credentials.
    pub(super) fn with_identity(self, credentials: Option<Credentials>) -> Self {
        let base = self.place.base.clone();
        let memory = Arc::clone(&self.http.context().memory);
        let identity = credentials.map(|credentials| {
            let id = memory.endpoint();
            Authenticator::new(self.http.clone(), base, credentials, memory, id)
        });
        Self { identity, ..self }
    }

    /// Returns the same host with the credentials of a client in place of all others. Nothing that
    /// was remembered for other credentials is used.
    pub(super) fn for_client(&self, login: &ClientLogin) -> Self {
        let mut place = self.place.clone();
        place.headers.remove(AUTHORIZATION);
        Self::new(self.http.clone(), place, Credentials::of_client(login))
    }

    /// Whether it is a Starlift server: the configuration names the host, and its answers say so.
    pub(super) fn is_starlift(&self) -> bool {
        self.place.is_named && self.is_starlift.load(Ordering::Relaxed)
    }

    pub(super) fn id(&self) -> EndpointId {
        self.id
    }

    /// Returns the settings for reading answers.
    pub(super) fn reading(&self) -> &Reading {
        &self.http.context().reading
    }

    /// Returns the tags of a repository if they were collected a moment ago.
    pub(super) async fn gathered_tags(&self, repository: &Repository) -> Option<Arc<Vec<String>>> {
        self.http
            .context()
            .memory
            .tags
            .get(&(self.id, repository.clone()))
            .await
    }

    pub(super) async fn remember_tags(&self, repository: &Repository, tags: Arc<Vec<String>>) {
        let known = &self.http.context().memory.tags;
        known.insert((self.id, repository.clone()), tags).await;
        // By itself, the cache shrinks to its capacity only after some dozen lists.
        known.run_pending_tasks().await;
    }

    /// Returns the key under which the host is remembered.
    pub(super) fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Returns `host[:port]`.
    pub(super) fn host(&self) -> String {
        host_of(&self.place.base)
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    pub(super) fn can(&self, wanted: Capabilities) -> bool {
        self.place.capabilities.cover(wanted)
    }

    fn name_of(&self, repository: &Repository) -> String {
        format!("{}{repository}", self.place.prefix)
    }

    /// Returns the headers that are sent only to this host.
    fn secrets(&self, authorization: Option<&Authorization>) -> HeaderMap {
        let mut headers = self.place.headers.clone();
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.header.clone());
        }
        headers
    }

    /// Adds the repository to the query of a Starlift server's own API, as a pull from this host
    /// names it: `name` is the path below `/v2/`, `ns` the registry that the host is a mirror of.
    fn name_repository(&self, repository: &Repository, url: &mut Url) {
        let below = self.place.root.strip_prefix(API_ROOT).unwrap_or_default();
        let below = below.trim_matches('/');
        let name = self.name_of(repository);
        let name = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        let mut query = url.query_pairs_mut();
        query.append_pair("name", &name);
        if let Some(namespace) = &self.place.mirror_of {
            query.append_pair("ns", namespace);
        }
    }

    fn url(&self, repository: &Repository, path: &str) -> Url {
        let mut url = self.place.base.clone();
        url.set_path(&format!(
            "{}/{}/{path}",
            self.place.root,
            self.name_of(repository)
        ));
        if let Some(name) = &self.place.mirror_of {
            url.query_pairs_mut().append_pair("ns", name);
        }
        url
    }

    /// Sends a read, and logs in if the registry requires it. An answer that is not a success is an
    /// error.
    pub(super) async fn read(&self, read: &Read<'_>) -> Result<Answer, Error> {
        let mut url = self.url(read.repository, &read.path);
        for (name, value) in &read.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        self.read_url(read, url).await
    }

    /// Reads the root of the API, and logs in if the host requires it. Also returns the time of the
    /// host's clock, from its first answer, whatever else that is.
    pub(super) async fn reach(&self) -> (Option<SystemTime>, Result<Entry, Error>) {
        let first = match self.fetch_root(None).await {
            Ok(answer) => answer,
            Err(error) => return (None, Err(error)),
        };
        let date = first
            .header(DATE)
            .and_then(|date| httpdate::parse_http_date(date).ok());
        if first.status() != StatusCode::UNAUTHORIZED {
            return (date, first.accepted().map(|_answer| Entry::Open));
        }
        let mut outcome = Err(Error::Unauthorized);
        for auth in self.identity.iter().chain([&self.auth]) {
            outcome = self.enter(auth, first.headers()).await;
            if outcome.is_ok() {
                break;
            }
        }
        (date, outcome)
    }

    /// Reads the root of the API with the authorization that a challenge asks for.
    async fn enter(&self, auth: &Authenticator, challenge: &HeaderMap) -> Result<Entry, Error> {
        let entered = async {
            // No repository: the login itself is tried, and no right to any image.
            let authorization = auth
                .after_refusal(challenge, "", Action::Pull, None)
                .await?;
            self.fetch_root(Some(&authorization)).await?.accepted()
        };
        match (entered.await, auth.is_anonymous().await) {
            (Ok(_answer), true) => Ok(Entry::Anonymous),
            (Ok(_answer), false) => Ok(Entry::Login),
            (Err(Error::Unauthorized | Error::Denied), true) => Ok(Entry::Closed),
            (Err(error), _) => Err(error),
        }
    }

    fn root_url(&self) -> Url {
        let mut url = self.place.base.clone();
        url.set_path(&format!("{}/", self.place.root));
        if let Some(name) = &self.place.mirror_of {
            url.query_pairs_mut().append_pair("ns", name);
        }
        url
    }

    async fn fetch_root(&self, authorization: Option<&Authorization>) -> Result<Answer, Error> {
        let fetch = Fetch {
            method: Method::GET,
            url: self.root_url(),
            headers: HeaderMap::new(),
            secrets: self.secrets(authorization),
        };
        self.http.fetch(&fetch).await
    }

    /// Reads a link from the registry's answer. A link to another host is refused.
    pub(super) async fn follow(&self, read: &Read<'_>, link: &Url) -> Result<Answer, Error> {
        let elsewhere = || Error::Malformed("link to another host".to_owned());
        self.read_url(read, linked(&self.place.base, link).ok_or_else(elsewhere)?)
            .await
    }

    async fn read_url(&self, read: &Read<'_>, url: Url) -> Result<Answer, Error> {
        let name = self.name_of(read.repository);
        if let Some(identity) = self.identity_for(&name) {
            let answer = self.read_as(identity, &name, read, &url).await;
            if !is_refused(&answer) {
                return answer;
            }
        }
        let answer = self.read_as(&self.auth, &name, read, &url).await;
        self.note_refusal(&name, &answer).await;
        answer
    }

    /// Returns the identity of this machine, if it has one that the server has not refused for this
    /// repository. The credentials of a pull are tried after it: they expire, and it is renewed.
    fn identity_for(&self, name: &str) -> Option<&Authenticator> {
        let refusals = &self.http.context().memory.refusals;
        let is_refused = |_: &&Authenticator| refusals.contains_key(&(self.id, name.to_owned()));
        self.identity
            .as_ref()
            .filter(|identity| !is_refused(identity))
    }

    /// Remembers that the credentials of a pull were needed. If they are refused too, the identity
    /// is tried again.
    async fn note_refusal(&self, name: &str, answer: &Result<Answer, Error>) {
        if self.identity.is_none() {
            return;
        }
        let refusals = &self.http.context().memory.refusals;
        let key = (self.id, name.to_owned());
        if answer.is_ok() {
            refusals.insert(key, ()).await;
        } else if is_refused(answer) {
            refusals.invalidate(&key).await;
        }
    }

    async fn read_as(
        &self,
        auth: &Authenticator,
        name: &str,
        read: &Read<'_>,
        url: &Url,
    ) -> Result<Answer, Error> {
        let mut authorization = auth.known(name, Action::Pull).await?;
        let mut is_second_chance = false;
        for _ in 0..MAX_ROUNDS {
            let mut secrets = self.secrets(authorization.as_ref());
            if let Some(purpose) = read.purpose.filter(|_| self.is_starlift()) {
                secrets.insert(PURPOSE_HEADER, purpose.header());
            }
            let (method, headers) = (read.method.clone(), read.headers.clone());
            let answer = self
                .http
                .fetch(&Fetch {
                    method,
                    url: url.clone(),
                    headers,
                    secrets,
                })
                .await?;
            self.is_starlift
                .store(answer.is_starlift, Ordering::Relaxed);
            let is_challenge = answer.status() == StatusCode::UNAUTHORIZED && answer.is_own;
            let is_refusal = matches!(
                answer.status(),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            );
            if is_challenge && !authorization.as_ref().is_some_and(|sent| sent.is_fresh) {
                let headers = answer.headers();
                authorization = Some(
                    auth.after_refusal(headers, name, Action::Pull, authorization.as_ref())
                        .await?,
                );
                continue;
            }
            // Replicas that do not know a new token yet, and stores that do not know a new grant,
            // refuse for a moment.
            let may_be_momentary = answer.status() == StatusCode::FORBIDDEN
                || authorization.as_ref().is_some_and(|sent| sent.is_token);
            if !is_refusal || is_second_chance || !may_be_momentary {
                return answer.accepted();
            }
            is_second_chance = true;
            tokio::time::sleep(self.http.context().pause).await;
            authorization = auth.renewed(name, Action::Pull).await?;
        }
        Err(Error::Unauthorized)
    }

    /// Sends a write, and logs in if the registry requires it. `make_body` is called once for each
    /// attempt.
    pub(super) async fn write(
        &self,
        method: Method,
        repository: &Repository,
        url: Option<Url>,
        path: &str,
        headers: HeaderMap,
        make_body: impl FnMut() -> Option<Body>,
    ) -> Result<Answer, Error> {
        let url = url.unwrap_or_else(|| self.url(repository, path));
        self.send(Action::Push, method, repository, url, headers, make_body)
            .await
    }

    /// Sends a request of a Starlift server's own API, with the authorization to pull from the
    /// repository, which the query names.
    pub(super) async fn call(
        &self,
        method: Method,
        repository: &Repository,
        path: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Error> {
        let mut url = self.place.base.clone();
        url.set_path(path);
        url.query_pairs_mut().extend_pairs(query);
        self.name_repository(repository, &mut url);
        self.send(Action::Pull, method, repository, url, headers, || {
            Some(body.clone().into())
        })
        .await
    }

    async fn send(
        &self,
        action: Action,
        method: Method,
        repository: &Repository,
        url: Url,
        headers: HeaderMap,
        mut make_body: impl FnMut() -> Option<Body>,
    ) -> Result<Answer, Error> {
        let name = self.name_of(repository);
        let request = (method, url, headers);
        if let Some(identity) = self.identity_for(&name) {
            let sent = self.send_as(identity, &name, action, &request, &mut make_body);
            let answer = sent.await;
            if !is_refused(&answer) {
                return answer;
            }
        }
        let sent = self.send_as(&self.auth, &name, action, &request, make_body);
        let answer = sent.await;
        self.note_refusal(&name, &answer).await;
        answer
    }

    async fn send_as(
        &self,
        auth: &Authenticator,
        name: &str,
        action: Action,
        (method, url, headers): &(Method, Url, HeaderMap),
        mut make_body: impl FnMut() -> Option<Body>,
    ) -> Result<Answer, Error> {
        let mut authorization = auth.known(name, action).await?;
        for _ in 0..MAX_ROUNDS {
            // A body that can be sent only once is gone after a refusal.
            let body = make_body().ok_or(Error::Unauthorized)?;
            let mut headers = headers.clone();
            if same_origin(url, &self.place.base) {
                headers.extend(self.secrets(authorization.as_ref()));
            }
            let answer = self
                .http
                .send(method.clone(), url.clone(), headers, body)
                .await?;
            if answer.status() != StatusCode::UNAUTHORIZED {
                return answer.accepted();
            }
            let headers = answer.headers();
            authorization = Some(
                auth.after_refusal(headers, name, action, authorization.as_ref())
                    .await?,
            );
        }
        Err(Error::Unauthorized)
    }
}

/// Whether the host refuses the credentials, or their file cannot be read.
fn is_refused(answer: &Result<Answer, Error>) -> bool {
    matches!(
        answer,
        Err(Error::Unauthorized | Error::Denied | Error::Configuration(_))
    )
}

/// Resolves a link of the registry at `base`; `None` if it leads to another host. The scheme and
/// port of `base` are kept, because a registry behind a proxy often does not know its own.
fn linked(base: &Url, link: &Url) -> Option<Url> {
    let mut url = base.clone();
    url.set_path(link.path());
    url.set_query(link.query());
    (link.host_str() == base.host_str()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_with_the_registry() {
        let linked = |link: &str| {
            linked(
                &"https://a.example/".parse().unwrap(),
                &link.parse().unwrap(),
            )
        };
        for link in [
            "https://a.example/v2/x?n=1",
            "http://a.example/v2/x?n=1",
            "https://a.example:8443/v2/x?n=1",
        ] {
            assert_eq!(linked(link).unwrap().as_str(), "https://a.example/v2/x?n=1");
        }
        assert_eq!(linked("https://b.example/v2/x"), None);
    }
}
