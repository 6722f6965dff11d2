//! Who a request comes from.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use http::{Extensions, HeaderMap};

use super::config::Config;

/// The client's address: the last one in the header of a trusted proxy, else where the connection comes from.
pub(crate) fn address(config: &Config, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
    let named = config.client_header.as_ref().and_then(|name| headers.get_all(name).iter().next_back());
    let named = named.and_then(|value| value.to_str().ok()).and_then(last);
    let peer = || extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    named.or_else(peer).map(|address| address.to_canonical())
}

/// What the proxy nearest to us wrote stands last; what stands before may be anyone's.
fn last(list: &str) -> Option<IpAddr> {
    list.rsplit(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(header: Option<&str>, values: &[&'static str]) -> String {
        let config = Config { client_header: header.map(str::to_owned), ..Config::default() };
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
        assert_eq!(address_of(None, &values), "127.0.0.1");
        assert_eq!(address_of(Some("X-Forwarded-For"), &values), "10.0.0.2");
        assert_eq!(address_of(Some("X-Forwarded-For"), &["10.0.0.1, nobody"]), "127.0.0.1");
        assert_eq!(address_of(Some("X-Forwarded-For"), &[]), "127.0.0.1");
    }
}
