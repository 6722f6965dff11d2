//! The server's section of the configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use bytesize::ByteSize;
use http::HeaderName;
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::access::{AccessConfig, AccessRule};
use super::ahead_config::{NotificationConfig, WarmConfig};
use super::budgets::BudgetsConfig;

/// The latest answer to a manifest request: containerd 2.3 gives up after 30 s without response
/// headers.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// Signed URLs name their lifetime in whole seconds.
const LEAST_REDIRECT_LIFETIME: Duration = Duration::from_secs(1);
/// The longest lifetime of a signed URL: the same in S3 (`X-Amz-Expires`), GCS (`X-Goog-Expires`)
/// and for a user delegation key of Azure.
const REDIRECT_LIFETIME_LIMIT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The shortest lifetime of a token that clients expect (distribution, "Token Authentication
/// Specification").
const LEAST_LOGIN_LIFETIME: Duration = Duration::from_secs(60);

/// The server's section of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Address and port of the liveness probe. A dedicated thread answers 200, or 503 if the
    /// server's threads are more than 20 s late. Nothing listens if this is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<SocketAddr>,
    /// Address and port of the status, the conversions, the page and the metrics if `listen` is not
    /// a loopback address. If `listen` is one, they are served there.
    pub api_listen: SocketAddr,
    /// Names by which clients reach this server, without ports. Addresses and `localhost` always
    /// work; other names get 421. If this is empty, requests for images beyond loopback are
    /// answered under any name, except those of browsers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// How long a manifest request waits for the converted image before it is answered with the
    /// source image.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
    /// The longest time until a manifest request is answered, with an error if the upstream stays
    /// silent; at most 25 s.
    #[serde(with = "humantime_serde")]
    pub answer_within: Duration,
    /// The answer to a client in mirror mode (`?ns=`) while the converted image is not ready.
    pub on_miss: OnMiss,
    /// HTTPS instead of plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Answer blob requests with 307 to a signed URL if the store can sign one.
    pub redirect: bool,
    /// How long a signed URL is valid; at most 7 days, and no longer than the server's own
    /// credentials for the bucket.
    #[serde(with = "humantime_serde")]
    pub redirect_lifetime: Duration,
    /// How long a tag is answered from memory without a request to its upstream.
    #[serde(with = "humantime_serde")]
    pub tag_fresh: Duration,
    /// How long after that a tag is still answered from memory while it is resolved again in the
    /// background.
    #[serde(with = "humantime_serde")]
    pub tag_stale_while_revalidate: Duration,
    /// How long a tag's last answer is used if its upstream fails.
    #[serde(with = "humantime_serde")]
    pub tag_stale_if_error: Duration,
    /// Memory for manifests and indexes of source images, whose pulls Docker Hub counts.
    pub manifest_cache: ByteSize,
    /// The most parts of one Range request; a request for more is answered with the whole blob.
    pub max_ranges: usize,
    /// The most upstream requests that one Range request for a blob outside the store may cause.
    /// Near parts are read together; if the parts are too many and too far from each other for
    /// that, the answer is 400.
    pub max_cold_reads: usize,
    /// The most concurrent requests; one more gets 503.
    pub max_requests: usize,
    /// The most concurrent connections, and never more than half of the files that the process may
    /// open. A new connection replaces the one that has been idle for longest.
    pub max_connections: usize,
    /// The percentage of `max_requests` and of the connections that one client may have. A client
    /// is an IPv4 address or an IPv6 network of 64 bits. Set 100 if all clients share an address
    /// and `trusted_proxies` cannot distinguish them.
    pub client_share: u8,
    /// The most bytes of request headers.
    pub max_header_size: ByteSize,
    /// How long a client may take to send its request headers.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a client may read nothing of an answer before the answer is cancelled, over
    /// HTTP/1.1 together with its connection.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How often the store is swept; `0s` never.
    #[serde(with = "humantime_serde")]
    pub sweep_interval: Duration,
    /// How long running answers may continue after the signal to stop.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
    /// The most conversions requested ahead of a pull that are remembered, and that run or wait.
    /// Notifications and `serve.warm` have at most half of them.
    pub max_jobs: usize,
    /// The header in which a proxy of `trusted_proxies` names the client (`X-Forwarded-For`, its
    /// last address). Clients and nodes are distinguished by that address; without this header, by
    /// the address they connect from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_header: Option<String>,
    /// The file to which a line of JSON is appended for each decision about a client: who pulled,
    /// warmed or was refused which image. `-` is standard output. It is opened again on SIGHUP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<PathBuf>,
    /// Addresses and networks (`10.0.0.0/8`) of the proxies in front of this server whose
    /// `client_header` counts.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Registries that announce pushes, written as `[[serve.notifications]]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<NotificationConfig>,
    pub warm: WarmConfig,
    pub profiles: ProfilesConfig,
    pub access: AccessConfig,
    pub budgets: BudgetsConfig,
}

/// Profiles of images: learned from containers and clients, and served to nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfilesConfig {
    /// Serve profiles and accept the observations of nodes.
    pub enabled: bool,
    /// Use profiles that were recorded by hand (`starlift optimize --profile`) and refer to an
    /// upstream's image. Requests the image's referrers from the upstream, once an hour for each
    /// pulled image.
    pub recorded: bool,
    /// How long observations of an image are collected before they are written.
    #[serde(with = "humantime_serde")]
    pub merge_interval: Duration,
    /// The most nodes that may send observations at the same time; one more gets 503. Each may take
    /// 2 MiB.
    pub max_senders: usize,
    /// Learn also from the ranges that lazy clients request.
    pub learn_from_ranges: bool,
    /// With `serve.redirect`: this server answers range requests itself until so many starts of an
    /// image are known, and redirects them after that.
    pub starts_before_redirect: usize,
}

/// The answer to a client in mirror mode while the converted image is not ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMiss {
    /// The source image, through this server.
    #[default]
    Source,
    /// 404, so that the client tries its next host and the source image does not pass through this
    /// server.
    NotFound,
}

/// The files of the certificate. Changed files are read again within a minute, and at once on
/// SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM. A client with a certificate is `user:cert:NAME` in
    /// rules: the certificate's only URI name, else its only common name, else its only DNS name. A
    /// client may come without a certificate; one that is expired, of another authority or not for
    /// clients is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            liveness: None,
            api_listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            hosts: Vec::new(),
            wait: Duration::from_secs(8),
            answer_within: ANSWER_LIMIT,
            on_miss: OnMiss::default(),
            tls: None,
            redirect: false,
            redirect_lifetime: Duration::from_secs(15 * 60),
            tag_fresh: Duration::from_secs(5),
            tag_stale_while_revalidate: Duration::from_secs(15),
            tag_stale_if_error: Duration::from_secs(24 * 60 * 60),
            manifest_cache: ByteSize::mib(64),
            max_ranges: 1024,
            max_cold_reads: 32,
            max_requests: 4096,
            max_connections: 8192,
            client_share: 25,
            max_header_size: ByteSize::kib(64),
            header_timeout: Duration::from_secs(10),
            // The default of nginx's `send_timeout`.
            write_timeout: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(60 * 60),
            shutdown_grace: Duration::from_secs(30),
            max_jobs: 1024,
            client_header: None,
            audit: None,
            trusted_proxies: Vec::new(),
            notifications: Vec::new(),
            warm: WarmConfig::default(),
            profiles: ProfilesConfig::default(),
            access: AccessConfig::default(),
            budgets: BudgetsConfig::default(),
        }
    }
}

impl Default for ProfilesConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            recorded: false,
            merge_interval: Duration::from_secs(5),
            max_senders: 16,
            learn_from_ranges: true,
            starts_before_redirect: 3,
        }
    }
}

impl Config {
    /// Whether Starlift's own API has a separate listener, because not every client that may pull
    /// may use it.
    pub fn has_api_listener(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback()
    }

    /// Whether clients reach this server by TLS: its own, or that of a proxy in front of it, under
    /// which the token endpoint is then configured.
    pub(crate) fn is_https(&self) -> bool {
        let realm = self.access.realm.as_deref().unwrap_or_default();
        self.tls.is_some() || realm.starts_with("https://")
    }

    /// Returns the URL at which this machine reaches the API.
    pub(crate) fn local_api_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut address = if self.has_api_listener() {
            self.api_listen
        } else {
            self.listen
        };
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        format!("{scheme}://{address}")
    }

    /// Whether the peer is a trusted proxy that forwards requests of others.
    pub(crate) fn is_proxy(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.client_header.is_some()
            && self
                .trusted_proxies
                .iter()
                .any(|network| network.contains(&peer))
    }

    /// Checks the rules that the types do not express.
    ///
    /// # Errors
    /// The text names the key and its bound.
    pub fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            (
                self.wait <= ANSWER_LIMIT,
                "serve.wait is over 25s: containerd gives up at 30 s",
            ),
            (
                self.answer_within <= ANSWER_LIMIT,
                "serve.answer_within is over 25s: containerd gives up at 30 s",
            ),
            (
                self.wait <= self.answer_within,
                "serve.wait is over serve.answer_within",
            ),
            (
                self.hosts.iter().all(|name| is_host(name)),
                "serve.hosts has an invalid name or a port",
            ),
            (
                (LEAST_REDIRECT_LIFETIME..=REDIRECT_LIFETIME_LIMIT)
                    .contains(&self.redirect_lifetime),
                "serve.redirect_lifetime is not between 1s and 7days, as buckets require",
            ),
            (self.max_ranges > 0, "serve.max_ranges is 0"),
            (self.max_cold_reads > 0, "serve.max_cold_reads is 0"),
            (self.max_requests > 0, "serve.max_requests is 0"),
            (self.max_connections > 0, "serve.max_connections is 0"),
            (
                (1..=100).contains(&self.client_share),
                "serve.client_share is not between 1 and 100",
            ),
            (
                self.max_header_size >= ByteSize::kib(8),
                "serve.max_header_size is under 8 KiB",
            ),
            (!self.header_timeout.is_zero(), "serve.header_timeout is 0s"),
            (!self.write_timeout.is_zero(), "serve.write_timeout is 0s"),
            (
                self.profiles.max_senders > 0,
                "serve.profiles.max_senders is 0",
            ),
            (
                self.client_header
                    .as_ref()
                    .is_none_or(|name| HeaderName::from_str(name).is_ok()),
                "serve.client_header is not a header name",
            ),
            (
                !self.has_api_listener() || !self.access.rule.is_empty(),
                "serve.listen is beyond loopback and no rule says who may read what the server can \
                 pull; for images that everybody may read, write [[serve.access.rule]] with \
                 who = [\"anyone\"], may = [\"pull\", \"profiles\"], images = [\"docker.io/**\"]",
            ),
            (
                self.access.rule.iter().all(AccessRule::names_its_upstreams),
                "serve.access.rule with who = [\"upstream\"] has images without an upstream's name: \
                 clients' credentials would go to any host",
            ),
            (
                !self.access.remember.is_zero(),
                "serve.access.remember is 0s",
            ),
            (
                self.access.login_lifetime >= LEAST_LOGIN_LIFETIME,
                "serve.access.login_lifetime is under 1m: clients take a token for a minute",
            ),
            (
                NotificationConfig::are_named(&self.notifications),
                "serve.notifications has a name twice, or one with other characters than letters, \
                 digits, '-', '_' and '.'",
            ),
            (!self.warm.interval.is_zero(), "serve.warm.interval is 0s"),
            (
                self.client_header.is_none() || !self.trusted_proxies.is_empty(),
                "serve.client_header counts only from serve.trusted_proxies, which is empty",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(ConfigError(broken)),
            None => Ok(()),
        }
    }
}

/// Parses networks and addresses. An address is a network of one.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| {
        text.parse()
            .or_else(|_no_network| text.parse::<IpAddr>().map(IpNet::from))
    };
    texts
        .iter()
        .map(|text| network(text).map_err(|error| D::Error::custom(format!("{text}: {error}"))))
        .collect()
}

fn is_host(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A value is out of bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_the_wait_is_capped() {
        assert_eq!(Config::default().check(), Ok(()));
        let config = Config {
            wait: Duration::from_secs(26),
            ..Config::default()
        };
        assert!(config.check().is_err());
    }

    #[test]
    fn signed_urls_live_as_long_as_buckets_allow() {
        for (text, is_valid) in [
            ("0s", false),
            ("1s", true),
            ("7days", true),
            ("8days", false),
        ] {
            let config: Config = toml::from_str(&format!("redirect_lifetime = '{text}'")).unwrap();
            assert_eq!(config.check().is_ok(), is_valid, "{text}");
        }
    }

    #[test]
    fn a_client_header_counts_only_from_trusted_proxies() {
        let config: Config = toml::from_str("client_header = 'x-forwarded-for'").unwrap();
        assert!(config.check().is_err());
        let text = "client_header = 'x-forwarded-for'\ntrusted_proxies = ['10.0.0.0/8', '192.0.2.1', '::1']";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.check(), Ok(()));
        for (peer, is_proxy) in [
            ("10.1.2.3", true),
            ("::ffff:192.0.2.1", true),
            ("::1", true),
            ("192.0.2.2", false),
        ] {
            assert_eq!(config.is_proxy(peer.parse().unwrap()), is_proxy, "{peer}");
        }
        assert!(toml::from_str::<Config>("trusted_proxies = ['proxy.example']").is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<Config>("wiat = '1s'").is_err());
        let config: Config = toml::from_str("wait = '1s'\non_miss = 'not-found'").unwrap();
        assert_eq!(
            (config.wait, config.on_miss),
            (Duration::from_secs(1), OnMiss::NotFound)
        );
    }
}
