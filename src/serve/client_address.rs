//! Who a request comes from.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use http::{Extensions, HeaderMap};

use super::config::Config;

/// The client's address: the last one in the header of a trusted proxy, else where the connection comes from.
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

/// What the proxy nearest to us wrote stands last; what stands before may be anyone's.
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
    fn a_header_counts_where_it_is_trusted_and_its_last_address_alone() {
        let values = ["10.0.0.9", "10.0.0.1, ::ffff:10.0.0.2"];
        let (header, proxy) = (Some("X-Forwarded-For"), "127.0.0.0/8");
        assert_eq!(address_of(None, proxy, &values), "127.0.0.1");
        assert_eq!(address_of(header, proxy, &values), "10.0.0.2");
        assert_eq!(
            address_of(header, "10.0.0.0/8", &values),
            "127.0.0.1",
            "anybody can send a header"
        );
        assert_eq!(
            address_of(header, proxy, &["10.0.0.1, nobody"]),
            "127.0.0.1"
        );
        assert_eq!(address_of(header, proxy, &[]), "127.0.0.1");
    }
}
