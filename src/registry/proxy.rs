//! Chooses the forward proxy of a URL, by the rules of Go's `httpproxy`, which containerd and
//! Docker follow.
//!
//! A URL that goes through a proxy is judged by its name or the address in it, because the proxy
//! resolves names.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::{Host, Url};

use super::error::Error;

/// The URL of a proxy. Without a scheme the proxy is used over plain HTTP. A password in the URL is
/// not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl std::str::FromStr for ProxyUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // The text is not repeated, because it may contain a password.
        let unusable = || {
            Error::Configuration(
                "proxy is not http://[user:password@]host[:port], or https://".to_owned(),
            )
        };
        let text = text.trim();
        let text = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url: Url = text.parse().map_err(|_error: url::ParseError| unusable())?;
        let fits = matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty());
        if fits { Ok(Self(url)) } else { Err(unusable()) }
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
            return f.write_str("***");
        }
        f.write_str(shown.as_str())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ProxyUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ProxyUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The proxies, and the exceptions that are asked without one.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

/// One entry of `no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network {
        address: IpAddr,
        bits: u8,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    /// Everything below a domain, and the domain itself if `is_itself`.
    Domain {
        name: String,
        is_itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    pub(super) fn new(http: Option<&ProxyUrl>, https: Option<&ProxyUrl>, no_proxy: &str) -> Self {
        let url = |proxy: Option<&ProxyUrl>| proxy.map(|proxy| proxy.url().clone());
        Self {
            http: url(http),
            https: url(https),
            exceptions: exceptions(no_proxy),
        }
    }

    /// Returns the proxy for `url`, if it has one.
    pub(super) fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" {
            &self.https
        } else {
            &self.http
        };
        proxy.as_ref().filter(|_| {
            !is_loopback(url)
                && !self
                    .exceptions
                    .iter()
                    .any(|exception| exception.covers(url))
        })
    }
}

/// Whether `url` is `localhost` or a loopback address, which are never asked through a proxy.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => true,
    }
}

fn exceptions(no_proxy: &str) -> Vec<Exception> {
    no_proxy
        .split(',')
        .filter_map(|entry| exception(entry.trim()))
        .collect()
}

fn exception(entry: &str) -> Option<Exception> {
    let entry = entry.to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        return Some(Exception::Network {
            address,
            bits: bits.parse().ok().filter(|bits| *bits <= most)?,
        });
    }
    let (host, port) = split_port(&entry);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Exception::Address {
            address: address.to_canonical(),
            port,
        });
    }
    let name = host
        .strip_prefix('*')
        .filter(|rest| rest.starts_with('.'))
        .unwrap_or(host)
        .trim_end_matches('.');
    let (name, is_itself) = name
        .strip_prefix('.')
        .map_or((name, true), |name| (name, false));
    (!name.is_empty()).then(|| Exception::Domain {
        name: name.to_owned(),
        is_itself,
        port,
    })
}

/// Splits the port off names, IPv4 addresses and bracketed IPv6 addresses, at the last colon.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    if entry.parse::<IpAddr>().is_ok() {
        return (entry, None);
    }
    let with_port = entry
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    with_port.map_or((entry, None), |(host, port)| (host, Some(port)))
}

impl Exception {
    fn covers(&self, url: &Url) -> bool {
        let port_fits =
            |wanted: &Option<u16>| wanted.is_none() || *wanted == url.port_or_known_default();
        match self {
            Self::All => true,
            Self::Network { address, bits } => {
                address_of(url).is_some_and(|host| is_within(host, *address, *bits))
            }
            Self::Address { address, port } => address_of(url) == Some(*address) && port_fits(port),
            Self::Domain {
                name,
                is_itself,
                port,
            } => {
                let Some(Host::Domain(host)) = url.host() else {
                    return false;
                };
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                let below = host.strip_suffix(name.as_str());
                let fits = below.is_some_and(|front| {
                    if front.is_empty() {
                        *is_itself
                    } else {
                        front.ends_with('.')
                    }
                });
                fits && port_fits(port)
            }
        }
    }
}

fn address_of(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(IpAddr::V6(address).to_canonical()),
    }
}

fn is_within(host: IpAddr, network: IpAddr, bits: u8) -> bool {
    let bits = u32::from(bits);
    match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            (host.to_bits() ^ network.to_bits())
                .checked_shr(32 - bits)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            (host.to_bits() ^ network.to_bits())
                .checked_shr(128 - bits)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        let url = |text: &str| text.parse::<ProxyUrl>().unwrap();
        Proxies::new(
            Some(&url("plain.proxy:3128")),
            Some(&url("https://tls.proxy")),
            no_proxy,
        )
    }

    fn is_proxied(no_proxy: &str, url: &str) -> bool {
        proxies(no_proxy).of(&url.parse().unwrap()).is_some()
    }

    #[test]
    fn each_scheme_has_its_proxy_and_loopback_none() {
        let host = |url: &str| {
            proxies("")
                .of(&url.parse().unwrap())
                .map(|proxy| proxy.to_string())
        };
        assert_eq!(
            host("http://a.example/x").as_deref(),
            Some("http://plain.proxy:3128/")
        );
        assert_eq!(
            host("https://a.example/x").as_deref(),
            Some("https://tls.proxy/")
        );
        for url in [
            "http://localhost:5000/",
            "https://LOCALHOST./",
            "http://127.9.9.9/",
            "http://[::1]:5000/",
        ] {
            assert_eq!(host(url), None, "{url}");
        }
        assert!(
            Proxies::default()
                .of(&"http://a.example/".parse().unwrap())
                .is_none()
        );
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (no_proxy, asked_directly, asked_by_proxy) in [
            ("*", &["http://a.example/", "http://8.8.8.8/"][..], &[][..]),
            (
                "a.example",
                &[
                    "http://a.example/",
                    "https://x.a.example/",
                    "http://A.EXAMPLE.:81/",
                ],
                &["http://xa.example/"],
            ),
            (
                ".a.example",
                &["http://x.a.example/"],
                &["http://a.example/"],
            ),
            (
                "*.a.example",
                &["http://x.a.example/"],
                &["http://a.example/"],
            ),
            (
                "a.example:80",
                &["http://a.example/"],
                &["https://a.example/", "http://a.example:81/"],
            ),
            (
                "10.0.0.0/8, x",
                &["http://10.1.2.3/", "http://x/"],
                &["http://11.0.0.1/", "http://b.example/"],
            ),
            (
                "0.0.0.0/0",
                &["http://8.8.8.8/"],
                &["http://[2001:db8::1]/", "http://a.example/"],
            ),
            (
                "1.2.3.4",
                &["http://1.2.3.4/", "https://1.2.3.4:81/"],
                &["http://1.2.3.5/"],
            ),
            ("1.2.3.4:80", &["http://1.2.3.4/"], &["http://1.2.3.4:81/"]),
            (
                "2001:db8::/32,[2001:db9::1]:80",
                &["http://[2001:db8:1::1]/", "http://[2001:db9::1]/"],
                &["http://[2001:dba::1]/"],
            ),
            (
                " , ,10.0.0.0/99,a/b",
                &[],
                &["http://a.example/", "http://10.0.0.1/"],
            ),
        ] {
            for url in asked_directly {
                assert!(!is_proxied(no_proxy, url), "{no_proxy}: {url}");
            }
            for url in asked_by_proxy {
                assert!(is_proxied(no_proxy, url), "{no_proxy}: {url}");
            }
        }
    }

    #[test]
    fn passwords_of_proxies_are_not_printed() {
        let proxy: ProxyUrl = "http://me:hush@proxy:3128".parse().unwrap();
        assert!(
            !format!(
                "{proxy} {proxy:?} {}",
                serde_json::to_string(&proxy).unwrap()
            )
            .contains("hush")
        );
        for text in ["", "socks5://proxy:1080", "http://"] {
            assert!(text.parse::<ProxyUrl>().is_err(), "{text}");
        }
    }
}
