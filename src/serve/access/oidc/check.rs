//! The rules for an issuer's settings that the types do not express.

use url::{Host, Url};

use super::config::IssuerConfig;

impl IssuerConfig {
    /// Checks the values of one issuer.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.issuer.is_empty() {
            return Err("issuer is empty");
        }
        if self.audience.is_empty() || self.audience.iter().any(String::is_empty) {
            return Err("audience is empty: tokens for any service would count");
        }
        if self.jwks_file.is_some() && self.jwks_url.is_some() {
            return Err("jwks_file or jwks_url, not both");
        }
        let url = self.jwks_url.as_ref().unwrap_or(&self.issuer);
        if self.jwks_file.is_none() && fetchable(url).is_none() {
            return Err("neither issuer nor jwks_url is an https:// URL, and jwks_file is not set");
        }
        if self.refresh.is_zero() {
            return Err("refresh is 0s");
        }
        if self.unreachable < self.refresh {
            return Err("unreachable is under refresh");
        }
        Ok(())
    }
}

/// A URL from which keys may be fetched: HTTPS, or this machine.
pub(super) fn fetchable(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_local = match url.host()? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    (url.scheme() == "https" || url.scheme() == "http" && is_local).then_some(url)
}
