//! URLs of registries.

use url::Url;

use super::error::Error;

/// The host that serves Docker Hub.
pub(super) const HUB_URL: &str = "https://registry-1.docker.io";

/// Parses the URL of a registry in a configuration.
pub(super) fn registry_url(text: &str) -> Result<Url, Error> {
    let unusable = |why: &str| Error::Configuration(format!("{text:?} {why}"));
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| unusable(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable(
            "is not http://…, https://…, oci:DIR or docker-archive:FILE",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not repeated, because it contains a password.
        return Err(Error::Configuration("URL contains credentials".to_owned()));
    }
    Ok(url)
}

/// Returns the `host[:port]` of a registry's URL if it has no path.
pub(crate) fn bare_host(url: &str) -> Option<String> {
    registry_url(url)
        .ok()
        .filter(|url| url.path() == "/")
        .map(|url| host_of(&url))
}

/// Returns the `host[:port]` of a URL.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
