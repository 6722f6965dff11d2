//! A registry request, parsed once: the location of the repository and the client's headers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Uri};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use crate::oci::route::{Location, Operation, Route, RouteError};
use crate::oci::{Reference, Repository};
use crate::store::{self, Holder};

use super::access::{Action, Admission, ClientCertificate, Proof, Refusal};
use super::account::Account;
use super::app::App;
use super::caller::Caller;
use super::error::{ApiError, Subject};
use super::{client_address, guard, token};

/// The header that containerd's `hosts.toml` can be configured to send if a client sends no `ns`.
const NAMESPACE_HEADER: &str = "oci-namespace";

pub(crate) struct RegistryRequest {
    /// The repository as the client named it.
    pub(crate) name: Repository,
    pub(crate) operation: Operation,
    pub(crate) location: Location,
    /// The repository, as the owner of links to the objects that may be read under its name.
    pub(crate) holder: Holder,
    /// The upstream, with the credentials that count for this request.
    pub(crate) admission: Admission,
    pub(crate) account: Arc<Account>,
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
    /// Parses a request, and admits it.
    ///
    /// # Errors
    /// If it is malformed, or its sender may not pull from the repository.
    pub(crate) async fn read(app: &App, request: Request) -> Result<Self, ApiError> {
        let started = Instant::now();
        let (parts, _body) = request.into_parts();
        let path = parts
            .uri
            .path()
            .strip_prefix("/v2/")
            .ok_or_else(|| ApiError::route(&RouteError::Endpoint))?;
        let path = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_not_utf8| ApiError::route(&RouteError::Name))?;
        let Route { name, operation } =
            Route::parse(&path).map_err(|error| ApiError::route(&error))?;
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
        let location =
            locate(app, &name, named).ok_or_else(|| ApiError::route(&RouteError::Name))?;
        let holder = Holder::repository(&location.upstream, &location.repository);
        let is_head = parts.method == Method::HEAD;
        let client = client_address::address(&app.config, &parts.headers, &parts.extensions);
        let is_browser = guard::is_browser(&parts.headers);
        let headers = parts.headers;
        let sender = Sender {
            headers: &headers,
            uri: &parts.uri,
            certificate: parts.extensions.get(),
            name: Some(&name),
            is_mirror,
        };
        let account = Account::current();
        account.asks_for_object(&operation);
        let proof = proof(app, &holder, &operation);
        let admission = admit(app, &sender, Action::Pull, &location, proof).await?;
        Ok(Self {
            name,
            operation,
            location,
            holder,
            admission,
            account,
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

/// The sender of a request, as the access rules see it.
pub(crate) struct Sender<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) uri: &'a Uri,
    pub(crate) certificate: Option<&'a ClientCertificate>,
    /// The repository as the client named it.
    pub(crate) name: Option<&'a Repository>,
    pub(crate) is_mirror: bool,
}

impl<'a> Sender<'a> {
    /// The sender of a request that is about no repository.
    pub(crate) fn of(caller: &'a Caller) -> Self {
        Self {
            headers: &caller.headers,
            uri: &caller.uri,
            certificate: caller.certificate.as_ref(),
            name: None,
            is_mirror: false,
        }
    }

    /// The answer to a refusal.
    pub(crate) fn refused(&self, app: &App, refusal: &Refusal) -> ApiError {
        let name = self.name.map(Repository::as_str);
        let is_bad = self.headers.contains_key(AUTHORIZATION);
        let challenge = token::challenge(app, self.headers, self.uri, name, is_bad);
        // A client that has shown only its certificate may have other credentials too.
        match refusal {
            Refusal::Denied if !is_bad => ApiError::access(&Refusal::Unidentified, challenge),
            other => ApiError::access(other, challenge),
        }
    }
}

/// Admits an action on an image, with the credentials that count for it.
pub(crate) async fn admit(
    app: &App,
    sender: &Sender<'_>,
    action: Action,
    location: &Location,
    proof: impl Future<Output = Result<Proof, store::Error>>,
) -> Result<Admission, ApiError> {
    let refused = |refusal: Refusal| sender.refused(app, &refusal);
    let account = Account::current();
    account.asks_for(action, location);
    let identity = app.access.identify(sender.headers, sender.certificate);
    let identity = identity.await.map_err(refused)?;
    account.identified(&identity);
    let upstream = app
        .source(&location.upstream)
        .map_err(|error| ApiError::upstream(&error, Subject::Repository, sender.is_mirror))?;
    let admitted = app
        .access
        .admit(&identity, action, location, upstream, proof);
    let admission = admitted.await.map_err(refused)?;
    account
        .admit(app, &identity, &admission, &location.upstream)
        .map_err(|not_now| ApiError::not_now(&not_now, sender.is_mirror))?;
    Ok(Admission {
        source: account.on_behalf(&app.budgets, admission.source),
        ..admission
    })
}

/// Whether the client treats this server as a mirror and has other hosts to try.
pub(crate) fn is_from_mirror(headers: &HeaderMap, uri: &Uri) -> bool {
    let mut query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    headers.contains_key(NAMESPACE_HEADER)
        || query.any(|(name, value)| name == "ns" && !value.is_empty())
}

/// An object with which the upstream shows that the sender may pull.
async fn proof(app: &App, holder: &Holder, operation: &Operation) -> Result<Proof, store::Error> {
    let (digest, otherwise) = match operation {
        Operation::Tags => return Ok(Proof::Tags),
        Operation::Manifest(reference @ Reference::Tag(_)) => {
            return Ok(Proof::Manifest(reference.clone()));
        }
        Operation::Manifest(Reference::Digest(digest)) | Operation::Referrers(digest) => {
            let reference = Reference::Digest(digest.clone());
            (digest, Proof::Manifest(reference))
        }
        Operation::Blob(digest) => (digest, Proof::Blob(digest.clone())),
    };
    // The upstream knows nothing of converted images. It knows the source image.
    let link = app.store.link_of(holder, digest).await?;
    let image = link.and_then(|link| link.image);
    Ok(image.map_or(otherwise, |image| Proof::Manifest(Reference::Digest(image))))
}

/// The location that `name` and a mirror client's namespace mean. An upstream has one name,
/// however the client spells it.
pub(crate) fn locate(app: &App, name: &Repository, namespace: Option<&str>) -> Option<Location> {
    let location = Location::of(name, namespace, |name| app.upstreams.is_configured(name))?;
    Some(Location {
        upstream: app.upstreams.name_of(&location.upstream).to_owned(),
        ..location
    })
}

fn value<'a>(query: &'a [(String, String)], key: &str) -> Option<&'a str> {
    query
        .iter()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.as_str())
}
