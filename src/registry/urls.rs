//! URLs of registries.

use url::Url;

use super::error::Error;

/// The host that serves Docker Hub.
pub(super) const HUB_URL: &str = "https://registry-1.docker.io";

/// The URL of a registry in a configuration.
pub(super) fn registry_url(text: &str) -> Result<Url, Error> {
    let unusable = |why: &str| Error::Configuration(format!("{text:?} {why}"));
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| unusable(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable(
            "is neither http:// nor https://, oci:DIR nor docker-archive:FILE",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not repeated: it holds a password.
        return Err(Error::Configuration(
            "credentials do not belong into a URL".to_owned(),
        ));
    }
    Ok(url)
}

/// The `host[:port]` of a registry that serves nothing below a path.
pub(crate) fn bare_host(url: &str) -> Option<String> {
    registry_url(url)
        .ok()
        .filter(|url| url.path() == "/")
        .map(|url| host_of(&url))
}

/// The `host[:port]` of a URL.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
