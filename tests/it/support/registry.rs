//! A registry in this process: a real peer that holds images, records its requests, and breaks on
//! command.
//!
//! ```ignore
//! let registry = Registry::start().await;                // 127.0.0.1, a free port, until dropped
//! let image = ImageBuilder::new(7).layers(3).build();    // support/image.rs
//! registry.push("library/app", "v1", &image);
//! registry.on("/blobs/").times(1).cut_after(1000);       // faults: see `On`
//! let gate = Gate::new();
//! registry.on("/manifests/").method("GET").gate(&gate);  // held back until gate.open();
//! gate.reached(1).await;                                 // waits for the first request
//! // … use registry.url() …
//! assert_eq!(registry.count("GET", "/manifests/v1"), 1); // requests; `seen` has the headers
//! ```

mod answer;
mod auth;
mod fault;
mod profiles;
mod pull;
mod upload;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::{Mutex, MutexGuard};
use starlift::oci::Digest;

use self::auth::Tokens;
pub(crate) use self::auth::{Auth, Team, TokenAuth};
use self::fault::{Fault, Rule};
pub(crate) use self::fault::{Gate, On};
use self::profiles::Profiles;
use super::image::Image;

/// The fake registry; dropping it ends its server.
#[derive(Debug)]
pub(crate) struct Registry {
    scheme: &'static str,
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path_and_query: String,
    pub(crate) headers: HeaderMap,
    /// The client's end of the connection.
    pub(crate) connection: Option<SocketAddr>,
}

/// The features that this registry lacks, as some real ones do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lacks {
    pub(crate) ranges: bool,
    /// The last bytes by `bytes=-N`: the registry sends the whole blob, as some object stores do.
    pub(crate) suffix_ranges: bool,
    pub(crate) digest_header: bool,
    pub(crate) referrers: bool,
    /// Uploads by one PUT after the POST: the registry accepts bytes only by PATCH.
    pub(crate) monolithic_upload: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    host: String,
    blobs: HashMap<Digest, Bytes>,
    manifests: HashMap<(String, Digest), (String, Bytes)>,
    tags: BTreeMap<(String, String), Digest>,
    uploads: HashMap<String, Vec<u8>>,
    next_upload: usize,
    seen: Vec<Seen>,
    rules: Vec<Rule>,
    lacks: Lacks,
    auth: Option<Auth>,
    tokens: Tokens,
    /// Set if the registry is a Starlift server.
    profiles: Option<Profiles>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Contents> {
        self.state.lock()
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, router) = registry_at(address);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self {
            scheme: "http",
            address,
            shared,
            server,
        }
    }

    /// The same over TLS.
    pub(crate) async fn start_tls(config: rustls::ServerConfig) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, router) = registry_at(address);
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move { server.serve(service).await.unwrap() });
        Self {
            scheme: "https",
            address,
            shared,
            server,
        }
    }

    /// Returns `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns `http://127.0.0.1:PORT`, or `https:` with TLS.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn require(&self, auth: Auth) {
        self.shared.state().auth = Some(auth);
    }

    /// Invalidates every token issued so far.
    pub(crate) fn expire_tokens(&self) {
        self.shared.state().tokens.expire();
    }

    pub(crate) fn lack(&self, lacks: Lacks) {
        self.shared.state().lacks = lacks;
    }

    /// Begins a fault for requests whose path and query contain `path`.
    pub(crate) fn on(&self, path: &str) -> On<'_> {
        On::new(self, path)
    }

    /// Removes all faults.
    pub(crate) fn heal(&self) {
        self.shared.state().rules.clear();
    }

    pub(crate) fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        self.shared.state().blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Stores bytes that do not match the digest.
    pub(crate) fn put_wrong_blob(&self, digest: &Digest, bytes: impl Into<Bytes>) {
        self.shared
            .state()
            .blobs
            .insert(digest.clone(), bytes.into());
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.state().blobs.get(digest).cloned()
    }

    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let key = (repository.to_owned(), digest.clone());
        self.shared
            .state()
            .manifests
            .insert(key, (media_type.to_owned(), bytes));
        digest
    }

    /// Returns the media type and bytes of a tag or digest.
    pub(crate) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        self.shared
            .state()
            .manifest(repository, reference)
            .map(|(_, media_type, bytes)| (media_type, bytes))
    }

    pub(crate) fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.shared
            .state()
            .tags
            .insert((repository.to_owned(), tag.to_owned()), digest.clone());
    }

    /// Stores an image and everything that it names, under a tag.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Image) -> Digest {
        let digest = self.push_untagged(repository, image);
        self.tag(repository, tag, &digest);
        digest
    }

    pub(crate) fn push_untagged(&self, repository: &str, image: &Image) -> Digest {
        for blob in &image.blobs {
            self.put_blob(blob.clone());
        }
        for child in &image.children {
            self.push_untagged(repository, child);
        }
        self.put_manifest(repository, &image.media_type, image.bytes.clone())
    }

    /// Returns all requests so far, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Returns the number of requests with this method and `part` in their path and query.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let fits = |seen: &&Seen| seen.method == method && seen.path_and_query.contains(part);
        self.shared.state().seen.iter().filter(fits).count()
    }

    pub(crate) fn forget_requests(&self) {
        self.shared.state().seen.clear();
    }
}

fn registry_at(address: SocketAddr) -> (Arc<Shared>, Router) {
    let shared = Arc::new(Shared::default());
    shared.state().host = address.to_string();
    let router = Router::new()
        .fallback(handle)
        .with_state(Arc::clone(&shared));
    (shared, router)
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Contents {
    fn manifest(&self, repository: &str, reference: &str) -> Option<(Digest, String, Bytes)> {
        let digest = match reference.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => self
                .tags
                .get(&(repository.to_owned(), reference.to_owned()))?
                .clone(),
        };
        let (media_type, bytes) = self
            .manifests
            .get(&(repository.to_owned(), digest.clone()))?
            .clone();
        Some((digest, media_type, bytes))
    }

    fn faults(&mut self, method: &str, path_and_query: &str) -> Vec<Fault> {
        let met = self.rules.iter_mut().filter_map(|rule| {
            rule.meets(method, path_and_query)
                .then(|| rule.fault.clone())
        });
        met.collect()
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .unwrap_or_default();
    let path_and_query = parts
        .uri
        .path_and_query()
        .map_or("/", |whole| whole.as_str())
        .to_owned();
    let connection = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    let faults = {
        let mut state = shared.state();
        state.seen.push(Seen {
            method: parts.method.to_string(),
            path_and_query: path_and_query.clone(),
            headers: parts.headers.clone(),
            connection: connection.map(|ConnectInfo(address)| *address),
        });
        state.faults(parts.method.as_str(), &path_and_query)
    };
    for fault in &faults {
        match fault {
            Fault::Answer {
                status,
                headers,
                body,
            } => {
                let mut response = answer::empty(*status).map(|_| body.clone());
                response.headers_mut().extend(headers.iter().cloned());
                return response.map(Body::from);
            }
            Fault::Gate { gate, after: 0 } => gate.pass().await,
            Fault::Gate { .. }
            | Fault::CutAfter(_)
            | Fault::WrongBytes
            | Fault::WithoutHeader(_)
            | Fault::WithHeader(..) => {}
        }
    }
    let response = respond(&mut shared.state(), &parts, body);
    let response = fault::apply(response, faults);
    if parts.method == "HEAD" {
        response.map(|_| Body::empty())
    } else {
        response
    }
}

fn respond(
    state: &mut Contents,
    parts: &axum::http::request::Parts,
    body: Bytes,
) -> Response<Bytes> {
    let path = parts.uri.path();
    if path == "/token" {
        let Some(Auth::Token(settings)) = state.auth.clone() else {
            return answer::empty(StatusCode::NOT_FOUND);
        };
        return auth::token(&settings, &mut state.tokens, parts, &body);
    }
    if let Some(auth) = &state.auth
        && !path.starts_with("/elsewhere/")
        && let Some(refusal) = auth::refuse(auth, &state.tokens, &state.host, parts)
    {
        return refusal;
    }
    let own = profiles::respond(state, parts, &body);
    let mut response = own.unwrap_or_else(|| match parts.method.as_str() {
        "GET" | "HEAD" => pull::respond(state, parts),
        "POST" | "PATCH" | "PUT" => upload::respond(state, parts, body),
        _ => answer::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
    });
    profiles::sign(state, &mut response);
    response
}

impl Seen {
    /// Returns the value of the `Authorization` header.
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
    }
}
