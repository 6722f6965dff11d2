//! HTTP requests under the dial rules: redirects are followed here, hop by hop, and secrets stay
//! with their host.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Client, ClientBuilder, Method, Proxy, StatusCode, redirect};
use tracing::Instrument as _;
use tracing::field::Empty;
use url::{Origin, Url};

use super::answer::{Answer, Reading, heard};
use super::config::Config;
use super::dial::{DialRules, PublicResolver, Reach};
use super::error::{Error, excerpt};
use super::headers;
use super::health::Health;
use super::memory::Memory;
use super::proxy::Proxies;
use super::starlift::is_starlift;
use super::tls::Tls;
use super::unanswered::transport;
use crate::budget::Budget;
use crate::telemetry::log::chain;
use crate::telemetry::metrics;
use crate::telemetry::traces::{self, TRACEPARENT, child_span};
use crate::tls_provider;

/// Registries redirect once, to their storage; some object stores once more, to a region.
const MAX_REDIRECTS: usize = 5;
/// The longest target of a redirect; signed URLs with a session's token have a few KiB.
const MAX_LOCATION: usize = 16 << 10;
/// Documents of upstreams that are read at once, in bytes: sixteen of the largest manifests.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;
/// Lists of tags and referrers that are collected or held at once, in bytes: four of the longest,
/// or thousands of ordinary ones.
const MAX_LIST_BYTES: u64 = 64 << 20;

const USER_AGENT: &str = concat!("starlift/", env!("CARGO_PKG_VERSION"));

/// Connection pools. All trust the same authorities. Client certificates, and the permission to
/// skip verification, apply only to the hosts that they are configured for.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    /// Presents the client certificate, or accepts any server certificate, if the configuration
    /// says so.
    given: Client,
    /// Dials any address, or goes through a proxy.
    any: Client,
    /// Dials public addresses only.
    public: Client,
}

impl Clients {
    /// Builds the pools from the configuration, and from `tls` if it is given, whose files are
    /// read. Blocking.
    pub(super) fn new(config: &Config, tls: Option<&Tls>) -> Result<Self, Error> {
        tls_provider::install();
        let authorities = tls.map_or(Ok(Vec::new()), Tls::certificates)?;
        let proxies = config.proxies();
        let builder = || {
            Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                .no_proxy()
                .connect_timeout(config.connect_timeout)
                .tcp_user_timeout(config.read_timeout)
        };
        let any = || {
            let proxies = proxies.clone();
            builder().proxy(Proxy::custom(move |url| proxies.of(url).cloned()))
        };
        let public = || builder().dns_resolver(PublicResolver);
        let mut given = any();
        if let Some(identity) = tls.map(Tls::identity).transpose()?.flatten() {
            given = given.identity(identity);
        }
        if tls.is_some_and(|tls| tls.skip_verify) {
            given = given.tls_danger_accept_invalid_certs(true);
        }
        let built =
            |builder: ClientBuilder| builder.tls_certs_merge(authorities.iter().cloned()).build();
        match (built(given), built(any()), built(public())) {
            (Ok(given), Ok(any), Ok(public)) => Ok(Self { given, any, public }),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) if tls.is_none() => {
                // A machine without certificates of its own can still use upstreams over plain
                // HTTP.
                tracing::warn!(
                    error = chain(&error),
                    "the system has no certificates: no HTTPS upstream will be trusted"
                );
                let bare = |builder: ClientBuilder| {
                    builder
                        .tls_certs_only([])
                        .build()
                        .map_err(|error| no_client(&error))
                };
                let any = bare(any())?;
                Ok(Self {
                    given: any.clone(),
                    any,
                    public: bare(public())?,
                })
            }
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => Err(no_client(&error)),
        }
    }
}

fn no_client(error: &reqwest::Error) -> Error {
    Error::Configuration(chain(error))
}

/// A read, which may be redirected and repeated.
#[derive(Debug, Clone)]
pub(super) struct Fetch {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Sent to the origin of `url` only.
    pub(super) secrets: HeaderMap,
}

/// The state that all requests share.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) health: Health,
    pub(super) memory: Arc<Memory>,
    pub(super) reading: Reading,
    /// The pause before a single repetition.
    pub(super) pause: Duration,
}

impl Context {
    pub(super) fn new(config: &Config) -> Self {
        let documents = Budget::new("documents of upstreams", MAX_DOCUMENT_BYTES);
        let lists = Budget::new("lists of upstreams", MAX_LIST_BYTES);
        Self {
            health: Health::default(),
            memory: Arc::default(),
            reading: Reading {
                patience: config.read_timeout,
                documents,
                lists,
            },
            pause: config.retry_delay,
        }
    }
}

/// The HTTP client of one upstream, restricted by its dial rules.
#[derive(Debug, Clone)]
pub(super) struct Http {
    clients: Clients,
    rules: Arc<DialRules>,
    proxies: Arc<Proxies>,
    /// The hosts to which client certificates, and the permission to skip verification, apply.
    given_for: Arc<[Url]>,
    /// The upstream whose quota is measured.
    quota_of: Option<Arc<str>>,
    context: Context,
}

impl Http {
    pub(super) fn new(
        clients: Clients,
        rules: DialRules,
        proxies: Arc<Proxies>,
        given_for: Vec<Url>,
        quota_of: Option<Arc<str>>,
        context: Context,
    ) -> Self {
        Self {
            clients,
            rules: Arc::new(rules),
            proxies,
            given_for: given_for.into(),
            quota_of,
            context,
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the record of failed hosts.
    pub(super) fn health(&self) -> &Health {
        &self.context.health
    }

    /// Returns the pool for `url`. A name that a proxy resolves is judged only by the name; the
    /// proxy itself may have any address.
    fn client(&self, url: &Url) -> Result<&Client, Error> {
        let is_given_for = || self.given_for.iter().any(|given| same_origin(given, url));
        Ok(match self.rules.judge(url)? {
            Reach::AnyAddress if is_given_for() => &self.clients.given,
            Reach::AnyAddress => &self.clients.any,
            Reach::PublicAddresses if self.proxies.of(url).is_some() => &self.clients.any,
            Reach::PublicAddresses => &self.clients.public,
        })
    }

    /// Follows redirects and returns the last answer, whatever its status.
    ///
    /// A redirect from HTTPS to HTTP is refused, as is a chain of more than [`MAX_REDIRECTS`].
    pub(super) async fn fetch(&self, fetch: &Fetch) -> Result<Answer, Error> {
        let mut url = fetch.url.clone();
        let mut headers = fetch.headers.clone();
        let mut says_starlift = false;
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for _ in 0..=MAX_REDIRECTS {
            let is_own = url.origin() == fetch.url.origin();
            let mut request = self
                .client(&url)?
                .request(fetch.method.clone(), url.clone());
            let watch = self.context.health.admit(&url)?;
            if is_own {
                request = request.headers(fetch.secrets.clone());
            }
            let span = child_span!(
                "upstream",
                otel.kind = "client",
                http.request.method = fetch.method.as_str(),
                server.address = traces::short(host_of(&url)),
                url.path = traces::short(url.path()),
                http.response.status_code = Empty,
                otel.status_code = Empty,
            );
            // The storage behind a redirect has no part in the trace.
            if is_own && let Some(context) = span.in_scope(traces::traceparent) {
                request = request.header(TRACEPARENT, context);
            }
            // Later headers replace earlier ones, so that configured headers cannot spoil a
            // request.
            let response = heard(
                self.context.reading.patience,
                request.headers(headers.clone()).send(),
            )
            .instrument(span.clone())
            .await;
            match &response {
                Ok(response) => {
                    span.record("http.response.status_code", response.status().as_u16());
                }
                Err(_) => {
                    span.record("otel.status_code", "ERROR");
                }
            }
            metrics().count_upstream(
                url.path(),
                response
                    .as_ref()
                    .ok()
                    .map(|response| response.status().as_u16()),
            );
            match &response {
                Ok(_) => watch.heard(),
                Err(_) => watch.failed(),
            }
            let response = response?;
            if is_own {
                says_starlift = is_starlift(response.headers());
                self.note_quota(response.headers());
            }
            if !is_redirect(response.status()) {
                return Ok(
                    Answer::new(response, url, is_own, self.context.reading.clone())
                        .of_starlift(says_starlift),
                );
            }
            url = redirected(&url, response.headers())?;
        }
        Err(Error::Malformed(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    /// Sets the metrics of the upstream's quota, if its answer names one.
    fn note_quota(&self, answer: &HeaderMap) {
        let Some(upstream) = &self.quota_of else {
            return;
        };
        let gauges = [
            ("ratelimit-remaining", &metrics().upstream_quota),
            ("ratelimit-limit", &metrics().upstream_quota_limit),
        ];
        for (header, gauge) in gauges {
            if let Some(requests) = headers::quota(answer, header) {
                gauge
                    .get_or_create(&[("upstream", upstream.to_string())])
                    .set(requests);
            }
        }
    }

    /// Sends a request with a body, once, without following redirects.
    ///
    /// There is no time limit, because the body may take long. TCP detects a connection whose other
    /// end is gone.
    pub(super) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Answer, Error> {
        let request = self
            .client(&url)?
            .request(method, url.clone())
            .headers(headers)
            .body(body);
        let response = request.send().await.map_err(transport)?;
        Ok(Answer::new(
            response,
            url,
            true,
            self.context.reading.clone(),
        ))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirected(from: &Url, headers: &HeaderMap) -> Result<Url, Error> {
    let location = headers
        .get(LOCATION)
        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let location = location.filter(|location| location.len() <= MAX_LOCATION);
    let target = location.and_then(|location| from.join(location).ok());
    let target =
        target.ok_or_else(|| Error::Malformed("redirect without a valid target".to_owned()))?;
    refuse_downgrade(from, &target)?;
    Ok(target)
}

/// Refuses a step from HTTPS to a URL without TLS.
pub(super) fn refuse_downgrade(from: &Url, to: &Url) -> Result<(), Error> {
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(Error::Refused(format!(
            "{} without TLS",
            excerpt(host_of(to))
        )));
    }
    Ok(())
}

pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    matches!(one.origin(), Origin::Tuple(..)) && one.origin() == other.origin()
}

fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or("a URL without a host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_tls() {
        let headers = |location: &'static str| {
            HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(location))])
        };
        let from: Url = "https://a.example/v2/x".parse().unwrap();
        assert_eq!(
            redirected(&from, &headers("/y")).unwrap().as_str(),
            "https://a.example/y"
        );
        assert!(matches!(
            redirected(&from, &headers("http://a.example/")),
            Err(Error::Refused(_))
        ));
        assert!(matches!(
            redirected(&from, &HeaderMap::new()),
            Err(Error::Malformed(_))
        ));
    }
}
