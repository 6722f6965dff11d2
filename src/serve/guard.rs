//! Checks the name under which a request reaches this server, and refuses requests of other sites'
//! web pages.
//!
//! A web page can make a browser send requests to this server. If the page's own name resolves to
//! this server, the page can read the answers too. The name and the headers that only browsers send
//! are therefore checked before anything else. Registry clients send none of those headers.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use http::header::{ACCEPT_LANGUAGE, HOST, ORIGIN, USER_AGENT};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, StatusCode};

use crate::oci::error::ErrorCode;

use super::config::Config;
use super::error::ApiError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The names by which clients reach this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// In lower case, without a port.
    configured: Vec<String>,
    /// Whether only this machine reaches the server.
    is_loopback: bool,
}

/// The reason why a request is refused before it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The Host header is malformed or ambiguous.
    BadHost,
    /// The request is for a name that is not this server's.
    Misdirected,
    /// A page of another site sent it.
    CrossSite,
}

impl Refusal {
    /// The reason's label in the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::BadHost | Self::Misdirected => "host",
            Self::CrossSite => "cross-site",
        }
    }

    pub(crate) fn failure(self) -> ApiError {
        let (status, message) = match self {
            Self::BadHost => (StatusCode::BAD_REQUEST, "the Host header is no host's name"),
            Self::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "this server is not known by that name; serve.hosts lists its names",
            ),
            Self::CrossSite => (
                StatusCode::FORBIDDEN,
                "pages of other sites may not ask this server",
            ),
        };
        ApiError::new(status, ErrorCode::Denied, message).because(self.label())
    }
}

/// A host as a request names it, without its port.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without the root's dot.
    Name(String),
}

impl Host {
    fn of(authority: &Authority) -> Option<Self> {
        let text = authority.host();
        if let Some(inner) = text.strip_prefix('[') {
            return inner
                .strip_suffix(']')?
                .parse::<Ipv6Addr>()
                .ok()
                .map(|address| Self::Address(address.into()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_name = !name.is_empty() && name.bytes().all(is_of_name);
        is_name.then_some(Self::Name(name))
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

impl Names {
    pub(crate) fn new(config: &Config) -> Self {
        let configured = config
            .hosts
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect();
        Self {
            configured,
            is_loopback: !config.has_api_listener(),
        }
    }

    /// Whether `host` cannot be the name of a foreign page: an address is never a page's name, and
    /// browsers resolve `localhost` themselves.
    fn is_known(&self, host: &Host) -> bool {
        match host {
            Host::Address(_) => true,
            Host::Name(name) => {
                name == "localhost"
                    || name.ends_with(".localhost")
                    || self.configured.iter().any(|own| own == name)
            }
        }
    }

    /// Whether registry clients and nodes are answered under `host`. This server does not know the
    /// names of mirrors unless they are listed. Without a list, only browsers are restricted to the
    /// known names beyond loopback. A name without a dot does not belong to a page.
    fn is_answered(&self, host: &Host, headers: &HeaderMap) -> bool {
        if self.is_known(host) {
            return true;
        }
        let Host::Name(name) = host else { return true };
        let is_unlisted = self.configured.is_empty() && (!self.is_loopback || !name.contains('.'));
        is_unlisted && !is_browser(headers)
    }
}

/// Whether a browser sent the request. Every browser sends its languages, and no registry client
/// does. The other headers are for browsers whose language header a page can change.
pub(crate) fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map(http::HeaderValue::as_bytes);
    [ACCEPT_LANGUAGE, ORIGIN, SEC_FETCH_SITE, SEC_FETCH_MODE]
        .iter()
        .any(|name| headers.contains_key(name))
        || agent.is_some_and(|agent| agent.starts_with(b"Mozilla/"))
}

/// Checks a request's name and origin.
///
/// # Errors
/// The reason why the request is refused.
pub(crate) fn check(names: &Names, request: &Request) -> Result<(), Refusal> {
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/readyz") {
        // Probes come under any name, and their answer is one word.
        return Ok(());
    }
    let is_of_clients = is_of_clients(path);
    let authority = authority(request)?;
    if let Some(authority) = &authority {
        let host = Host::of(authority).ok_or(Refusal::BadHost)?;
        let is_answered = if is_of_clients {
            names.is_answered(&host, request.headers())
        } else {
            names.is_known(&host)
        };
        if !is_answered {
            return Err(Refusal::Misdirected);
        }
    }
    if is_cross_site(request, authority.as_ref(), is_of_clients) {
        Err(Refusal::CrossSite)
    } else {
        Ok(())
    }
}

/// Whether a path is for clients that pull, and for registries that announce pushes: images and
/// their profiles, under the name that the clients pull by.
fn is_of_clients(path: &str) -> bool {
    matches!(path, "/v2" | "/token")
        || path.starts_with("/v2/")
        || path.starts_with("/api/v1/profiles/")
        || path.starts_with("/api/v1/notifications/")
}

/// The host that the request is for, or `None` if it does not say, as HTTP/1.0 allows.
fn authority(request: &Request) -> Result<Option<Authority>, Refusal> {
    let mut lines = request.headers().get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(Refusal::BadHost);
    }
    let header = match line {
        Some(line) => Some(
            line.to_str()
                .ok()
                .and_then(|text| text.parse::<Authority>().ok())
                .ok_or(Refusal::BadHost)?,
        ),
        None => None,
    };
    // Over HTTP/2 the target names the host. If both do, both have to be right. The header is the
    // stricter choice, because proxies rewrite the target.
    match (header, request.uri().authority()) {
        (Some(header), Some(target)) if header.host() != target.host() => Err(Refusal::BadHost),
        (Some(header), _) => Ok(Some(header)),
        (None, target) => Ok(target.cloned()),
    }
}

/// Whether a page of another site made the browser send the request. Following a link to a page
/// that changes nothing is allowed.
fn is_cross_site(request: &Request, authority: Option<&Authority>, is_of_clients: bool) -> bool {
    let headers = request.headers();
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(origin) = text(&ORIGIN)
        && !is_same_origin(origin, authority)
    {
        return true;
    }
    let is_foreign =
        text(&SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let is_link = *request.method() == Method::GET
        && text(&SEC_FETCH_MODE) == Some("navigate")
        && !is_of_clients;
    is_foreign && !is_link
}

fn is_same_origin(origin: &str, authority: Option<&Authority>) -> bool {
    let bare = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"));
    bare.zip(authority)
        .is_some_and(|(origin, own)| own.as_str().eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn names(listen: &str, hosts: &[&str]) -> Names {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Names::new(&Config {
            listen: listen.parse().unwrap(),
            hosts,
            ..Config::default()
        })
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn asked(names: &Names, path: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        check(names, &request("GET", path, headers))
    }

    const LOCAL: &str = "127.0.0.1:8080";
    const WIDE: &str = "0.0.0.0:8080";

    #[test]
    fn the_api_is_answered_only_under_known_names() {
        for listen in [LOCAL, WIDE] {
            let names = names(listen, &["Images.example"]);
            for host in [
                "127.0.0.1:8080",
                "10.0.0.1",
                "[::1]:8080",
                "localhost",
                "a.localhost:1",
                "IMAGES.example.:80",
            ] {
                assert_eq!(
                    asked(&names, "/api/v1/status", &[("host", host)]),
                    Ok(()),
                    "{host} at {listen}"
                );
            }
            for host in [
                "rebind.evil.example",
                "localhost.evil.example",
                "evil",
                "images.example.evil.example",
            ] {
                let refused = asked(&names, "/api/v1/status", &[("host", host)]);
                assert_eq!(refused, Err(Refusal::Misdirected), "{host} at {listen}");
            }
            assert_eq!(
                asked(&names, "/healthz", &[("host", "any.example")]),
                Ok(()),
                "probes may use any name"
            );
        }
    }

    #[test]
    fn images_are_answered_under_a_mirrors_name_beyond_loopback_until_names_are_listed() {
        let mirror = [("host", "mirror.example:5000")];
        for path in ["/v2/", "/api/v1/profiles/sha256:0"] {
            assert_eq!(asked(&names(WIDE, &[]), path, &mirror), Ok(()), "{path}");
        }
        assert_eq!(
            asked(&names(WIDE, &["other.example"]), "/v2/", &mirror),
            Err(Refusal::Misdirected)
        );
        assert_eq!(
            asked(&names(WIDE, &["mirror.example"]), "/v2/", &mirror),
            Ok(())
        );
        assert_eq!(
            asked(&names(LOCAL, &[]), "/v2/", &mirror),
            Err(Refusal::Misdirected)
        );
        assert_eq!(
            asked(&names(LOCAL, &[]), "/v2/", &[("host", "mirror")]),
            Ok(())
        );
    }

    #[test]
    fn a_browser_reads_no_image_under_an_unlisted_name() {
        let marks = [
            ("accept-language", "en"),
            ("origin", "http://rebind.evil.example"),
            ("sec-fetch-site", "same-origin"),
            ("user-agent", "Mozilla/5.0"),
        ];
        for mark in marks {
            let headers = [("host", "rebind.evil.example"), mark];
            assert_eq!(
                asked(&names(WIDE, &[]), "/v2/a/manifests/1", &headers),
                Err(Refusal::Misdirected),
                "{mark:?}"
            );
            assert_eq!(
                asked(&names(WIDE, &[]), "/v2/", &[("host", "10.0.0.1"), mark]).is_ok(),
                mark.0 != "origin"
            );
        }
    }

    #[test]
    fn a_malformed_host_is_refused() {
        let local = names(LOCAL, &[]);
        for host in ["\"><script>alert(1)</script>", "a b", "", "[::1", "a,b"] {
            assert_eq!(
                asked(&local, "/", &[("host", host)]),
                Err(Refusal::BadHost),
                "{host:?}"
            );
        }
        let two = [("host", "localhost"), ("host", "rebind.evil.example")];
        assert_eq!(asked(&local, "/", &two), Err(Refusal::BadHost));
        let both = request(
            "GET",
            "http://rebind.evil.example/",
            &[("host", "localhost")],
        );
        assert_eq!(check(&local, &both), Err(Refusal::BadHost));
        assert_eq!(
            check(&local, &request("GET", "http://rebind.evil.example/", &[])),
            Err(Refusal::Misdirected)
        );
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_their_links_followed() {
        let local = names(LOCAL, &[]);
        let host = ("host", "localhost:8080");
        let image = [
            host,
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "no-cors"),
        ];
        let link = [
            host,
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
        ];
        for path in ["/", "/api/v1/status", "/v2/a/manifests/1"] {
            assert_eq!(
                asked(&local, path, &image),
                Err(Refusal::CrossSite),
                "{path}"
            );
        }
        assert_eq!(asked(&local, "/", &link), Ok(()));
        assert_eq!(
            asked(&local, "/v2/a/manifests/1", &link),
            Err(Refusal::CrossSite)
        );
        assert_eq!(
            check(&local, &request("POST", "/api/v1/conversions", &link)),
            Err(Refusal::CrossSite)
        );
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:9",
            "http://localhost:8080.evil.example",
        ] {
            assert_eq!(
                asked(&local, "/", &[host, ("origin", origin)]),
                Err(Refusal::CrossSite),
                "{origin}"
            );
        }
        assert_eq!(
            asked(&local, "/", &[host, ("origin", "http://localhost:8080")]),
            Ok(())
        );
    }
}
