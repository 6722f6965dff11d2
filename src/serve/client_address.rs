//! The client address of a request.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use http::{Extensions, HeaderMap};

use super::config::Config;

/// The client's address: the last one in the header of a trusted proxy, or else the address of the
/// connection.
pub(crate) fn address(
    config: &Config,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Option<IpAddr> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>()?.0.ip();
    let header = config
        .client_header
        .as_ref()
        .filter(|_| config.is_proxy(peer));
    let named = header.and_then(|name| headers.get_all(name).iter().next_back());
    let named = named.and_then(|value| value.to_str().ok()).and_then(last);
    Some(named.unwrap_or(peer).to_canonical())
}

/// Parses the last address, which the nearest proxy wrote. Earlier ones may be forged.
fn last(list: &str) -> Option<IpAddr> {
    list.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(header: Option<&str>, proxy: &str, values: &[&'static str]) -> String {
        let trusted_proxies = vec![proxy.parse().unwrap()];
        let config = Config {
            client_header: header.map(str::to_owned),
            trusted_proxies,
            ..Config::default()
        };
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 9))));
        address(&config, &headers, &extensions).unwrap().to_string()
    }

    #[test]
    fn only_the_last_address_of_a_trusted_header_counts() {
        let values = ["10.0.0.9", "10.0.0.1, ::ffff:10.0.0.2"];
        let (header, proxy) = (Some("X-Forwarded-For"), "127.0.0.0/8");
        assert_eq!(address_of(None, proxy, &values), "127.0.0.1");
        assert_eq!(address_of(header, proxy, &values), "10.0.0.2");
        assert_eq!(
            address_of(header, "10.0.0.0/8", &values),
            "127.0.0.1",
            "any client can send a header"
        );
        assert_eq!(
            address_of(header, proxy, &["10.0.0.1, nobody"]),
            "127.0.0.1"
        );
        assert_eq!(address_of(header, proxy, &[]), "127.0.0.1");
    }
}
