//! The upstreams' part of the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Error;
use super::proxy::{Proxies, ProxyUrl};

/// The upstreams' part of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Upstreams by the name they are served under, or by their host.
    pub upstream: BTreeMap<String, UpstreamConfig>,
    /// Hosts that are served although they are not configured: `host`, `*.domain` or `*` (every
    /// host with public addresses).
    pub allow: Vec<HostPattern>,
    /// Hosts whose private addresses may be dialled, also as redirect targets and token endpoints.
    pub allowed_hosts: Vec<HostPattern>,
    /// Whether every host may have private addresses.
    pub allow_private: bool,
    /// Starlift servers, `host` or `*.domain`, from which nodes get profiles and to which they
    /// report the reads of containers. Upstreams, their mirrors and hosts with a directory or an
    /// entry in `certs_dir` need not be listed. A host that only an image's name mentions must be
    /// listed.
    pub servers: Vec<HostPattern>,
    /// The identity of this machine at Starlift servers.
    #[serde(skip_serializing_if = "ServerIdentity::is_none")]
    pub identity: ServerIdentity,
    /// The directory of Docker's `config.json`; `$DOCKER_CONFIG`, then `~/.docker`, if not set.
    pub docker_config: Option<PathBuf>,
    /// The directory of `docker-credential-*` programs; `$PATH` is searched if not set.
    pub credential_helpers: Option<PathBuf>,
    /// containerd's directory of `HOST/hosts.toml`, used for hosts that are not configured: their
    /// mirrors, certificates and headers. Several directories, separated by `:`, are searched in
    /// this order. A host with a directory of its own may have private addresses.
    pub certs_dir: Option<PathBuf>,
    /// How long the contents of `certs_dir` are used before the files are checked for changes.
    #[serde(with = "humantime_serde")]
    pub certs_interval: Duration,
    /// Whether `localhost` and other loopback hosts that are not configured may be dialled. They
    /// are asked in plain HTTP, except on port 443, as containerd does.
    pub plain_http_loopback: bool,
    /// The forward proxy for `http://` URLs; `$HTTP_PROXY` or `$http_proxy` if not set. Requests to
    /// registries, token endpoints and redirect targets go through it, requests to loopback hosts
    /// never. The proxy resolves their names, so their addresses are not checked here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<ProxyUrl>,
    /// The forward proxy for `https://` URLs, by CONNECT; `$HTTPS_PROXY` or `$https_proxy` if not
    /// set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_proxy: Option<ProxyUrl>,
    /// Hosts that are asked without a proxy, separated by commas: domains (`domain` with all hosts
    /// below it, `.domain` only those below it), addresses, networks (`10.0.0.0/8`), or `*`.
    /// Domains and addresses may have a port. `$NO_PROXY` or `$no_proxy` if not set.
    pub no_proxy: String,
    /// How long a connection may take to be established, including TLS.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an upstream may stay silent: before the head of an answer, and between pieces of
    /// its body.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How often a failed read is tried again before it is given up.
    pub retries: u32,
    /// The pause before the first retry; each further pause is twice as long.
    #[serde(with = "humantime_serde")]
    pub retry_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            upstream: BTreeMap::new(),
            allow: vec![HostPattern("*".into())],
            allowed_hosts: Vec::new(),
            allow_private: false,
            servers: Vec::new(),
            identity: ServerIdentity::default(),
            docker_config: None,
            credential_helpers: None,
            certs_dir: None,
            certs_interval: Duration::from_secs(60),
            plain_http_loopback: false,
            http_proxy: None,
            https_proxy: None,
            no_proxy: String::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(20),
            retries: 3,
            retry_delay: Duration::from_millis(200),
        }
    }
}

impl Config {
    pub(super) fn proxies(&self) -> Proxies {
        Proxies::new(
            self.http_proxy.as_ref(),
            self.https_proxy.as_ref(),
            &self.no_proxy,
        )
    }

    /// Adds the upstream of a flag `--upstream NAME=URL`. An upstream that exists gets the new URL.
    pub fn add(&mut self, flag: &str) -> Result<(), Error> {
        let (name, url) = flag
            .split_once('=')
            .filter(|(name, url)| !name.is_empty() && !url.is_empty())
            .ok_or_else(|| Error::Configuration(format!("{flag:?} is not NAME=URL")))?;
        url.clone_into(&mut self.upstream.entry(name.to_owned()).or_default().url);
        Ok(())
    }
}

/// The identity of this machine at Starlift servers. If one refuses it, the credentials of the pull
/// are tried.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerIdentity {
    /// The servers that get the identity, `host`, `host:port` or `*.domain`, over HTTPS or on
    /// loopback. They count as listed in `pull.servers` too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<HostPattern>,
    /// A file with a bearer token: a projected service-account token, or a token of the server's
    /// `token_file`. It is read again after a minute, and when the server refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A PEM client certificate, for hosts that `hosts.toml` gives none. It is read again when it
    /// has changed. An entry of `upstream` has a `client_cert` of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// The PEM key of the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

impl ServerIdentity {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// # Errors
    /// If there is an identity and nobody to show it to, or the reverse.
    pub(super) fn check(&self) -> Result<(), Error> {
        let has_identity = self.token_file.is_some() || self.client_cert.is_some();
        if has_identity != self.servers.is_empty() {
            return Ok(());
        }
        Err(Error::Configuration(
            "pull.identity takes servers, and a token_file or a client_cert with its client_key"
                .to_owned(),
        ))
    }
}

/// One upstream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamConfig {
    /// `http://…`, `https://…` (a path goes in front of repository names), `oci:DIR` or
    /// `docker-archive:FILE`; `https://NAME` if not set.
    pub url: String,
    /// URLs of registries that are asked first, in this order.
    pub mirrors: Vec<String>,
    /// The user for Basic authentication and token endpoints, used for `url` and not for mirrors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A file with the password, read again when it is needed; a newline at its end is ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A bearer token, sent as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// PEM certificates of authorities to trust besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A PEM client certificate, shown to this upstream and its mirrors only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// The PEM key of the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

impl UpstreamConfig {
    /// Removes the credentials, so that they are looked up elsewhere.
    pub fn forget_credentials(&mut self) {
        (self.username, self.password, self.password_file, self.token) = (None, None, None, None);
    }
}

/// A text that is neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns the text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

/// A pattern for hosts: `host`, `host:port`, `*.domain` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostPattern(Box<str>);

impl HostPattern {
    /// The host, if the pattern is one without wildcards.
    pub(crate) fn as_host(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&*self.0)
    }

    pub(super) fn matches(&self, host: &str, port: u16) -> bool {
        let with_port = self
            .0
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let (pattern, wanted_port) = match with_port {
            Some((pattern, port)) => (pattern, Some(port)),
            None => (&*self.0, None),
        };
        let host_fits = match pattern.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == pattern,
        };
        host_fits && wanted_port.is_none_or(|wanted| wanted == port)
    }
}

impl std::str::FromStr for HostPattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let rest = text
            .strip_prefix("*.")
            .unwrap_or(if text == "*" { "host" } else { text });
        let fits = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']' | b'_')
        };
        if rest.is_empty() || !rest.bytes().all(fits) {
            return Err(Error::Configuration(format!(
                "{text:?} is not of the form host, host:port, *.domain or *"
            )));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(host, 443)
    }

    #[test]
    fn patterns_name_hosts_and_domains() {
        assert!(matches("*", "quay.io"));
        assert!(matches("quay.io", "quay.io"));
        assert!(matches("quay.io:443", "quay.io"));
        assert!(!matches("quay.io:80", "quay.io"));
        assert!(matches("*.example.com", "a.b.example.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "evilexample.com"));
        for text in ["", "*.", "a/b", "a*b", "a b"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn secrets_stay_secret() {
        let text = r#"{"upstream": {"a": {"url": "https://a.example", "username": "me", "password": "hush"}}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(
            config.upstream["a"].password.as_ref().unwrap().expose(),
            "hush"
        );
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hush"));
        assert!(serde_json::from_str::<Config>(r#"{"upstreams": {}}"#).is_err());
    }

    #[test]
    fn a_flag_adds_an_upstream() {
        let mut config = Config::default();
        config.add("local=http://127.0.0.1:5000/a=b").unwrap();
        assert_eq!(config.upstream["local"].url, "http://127.0.0.1:5000/a=b");
        assert!(config.add("local").is_err());
        assert!(config.add("=x").is_err());
    }
}
