//! Decides which hosts and addresses may be dialled.
//!
//! A host is judged twice: its URL before every request and every hop of a redirect, and its
//! addresses when they come out of the resolver, so that the addresses judged are the addresses
//! dialled.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::address::is_public;
use super::config::HostPattern;
use super::error::Error;

/// A host and a port, as URLs normalise them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Authority {
    host: String,
    port: u16,
}

/// The hosts and addresses that one upstream's requests may reach.
#[derive(Debug, Clone, Default)]
pub(super) struct DialRules {
    named: HashSet<Authority>,
    allowed_hosts: Vec<HostPattern>,
    allow_private: bool,
}

/// The addresses that may be dialled for a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Any address, because the configuration names or allows the host.
    AnyAddress,
    /// Public addresses only.
    PublicAddresses,
}

impl DialRules {
    pub(super) fn new(allowed_hosts: Vec<HostPattern>, allow_private: bool) -> Self {
        Self {
            named: HashSet::new(),
            allowed_hosts,
            allow_private,
        }
    }

    /// Allows the address of a URL that the configuration names.
    pub(super) fn name(&mut self, url: &Url) {
        self.named.extend(authority(url));
    }

    /// Judges a URL. A forbidden IP address in it is refused here, because no resolver will see it.
    pub(super) fn judge(&self, url: &Url) -> Result<Reach, Error> {
        let authority = authority(url)
            .filter(|_| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Error::Refused(format!("a {} URL", url.scheme())))?;
        let listed = || {
            self.allowed_hosts
                .iter()
                .any(|pattern| pattern.matches(&authority.host, authority.port))
        };
        if self.named.contains(&authority) || self.allow_private || listed() {
            return Ok(Reach::AnyAddress);
        }
        match url.host() {
            Some(Host::Ipv4(address)) if !is_public(IpAddr::V4(address)) => {
                Err(Error::Refused(address.to_string()))
            }
            Some(Host::Ipv6(address)) if !is_public(IpAddr::V6(address)) => {
                Err(Error::Refused(address.to_string()))
            }
            _ => Ok(Reach::PublicAddresses),
        }
    }
}

fn authority(url: &Url) -> Option<Authority> {
    Some(Authority {
        host: url.host_str()?.to_owned(),
        port: url.port_or_known_default()?,
    })
}

/// The error of a name that has no public address.
#[derive(Debug, thiserror::Error)]
#[error("{0} has private addresses only")]
pub(super) struct PrivateName(pub(super) String);

/// A resolver that leaves out every address that is not public.
#[derive(Debug)]
pub(super) struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = addresses
                .filter(|address| is_public(address.ip()))
                .collect();
            if public.is_empty() {
                return Err(PrivateName(name.as_str().to_owned()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rules: &DialRules, url: &str) -> Option<Reach> {
        rules.judge(&url.parse().unwrap()).ok()
    }

    #[test]
    fn naming_an_upstream_allows_its_address_and_no_other_port() {
        let mut rules = DialRules::default();
        rules.name(&"http://127.0.0.1:5000/x".parse().unwrap());
        assert_eq!(
            judge(&rules, "http://127.0.0.1:5000/y"),
            Some(Reach::AnyAddress)
        );
        assert_eq!(judge(&rules, "http://127.0.0.1:5001/"), None);
        assert_eq!(judge(&rules, "http://127.1:5001/"), None);
        assert_eq!(judge(&rules, "http://2130706433/"), None);
        assert_eq!(judge(&rules, "http://[::ffff:127.0.0.1]/"), None);
        assert_eq!(
            judge(&rules, "https://registry.example/"),
            Some(Reach::PublicAddresses)
        );
        assert_eq!(judge(&rules, "file:///etc/passwd"), None);
    }

    #[test]
    fn hosts_can_be_allowed_to_be_private() {
        let rules = DialRules::new(
            vec![
                "*.corp.example".parse().unwrap(),
                "10.0.0.1".parse().unwrap(),
            ],
            false,
        );
        assert_eq!(
            judge(&rules, "https://s3.corp.example/"),
            Some(Reach::AnyAddress)
        );
        assert_eq!(judge(&rules, "https://10.0.0.1/"), Some(Reach::AnyAddress));
        assert_eq!(judge(&rules, "https://10.0.0.2/"), None);
        assert_eq!(
            judge(&DialRules::new(Vec::new(), true), "https://10.0.0.2/"),
            Some(Reach::AnyAddress)
        );
    }

    #[tokio::test]
    async fn a_name_for_a_private_address_is_refused() {
        let resolved = PublicResolver.resolve("localhost".parse().unwrap()).await;
        assert!(
            resolved
                .err()
                .is_some_and(|error| error.is::<PrivateName>())
        );
    }
}
