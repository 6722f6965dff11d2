//! Builds registries from the configuration, or from containerd's directories of hosts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use url::{Host as UrlHost, Url};

use super::auth::{Credentials, DockerConfig, Given, Logins};
use super::client::Registry;
use super::config::{Config, HostPattern, UpstreamConfig};
use super::dial::DialRules;
use super::endpoint::{Endpoint, Place};
use super::error::Error;
use super::hosts::{Host, Hosts, Roots};
use super::http::{Clients, Context, Http};
use super::proxy::Proxies;
use super::retry::Retry;
use super::tls::{KeyPair, Tls};
use super::urls::{HUB_URL, host_of, registry_url};
use crate::oci::hub::DOCKER_HUB;

/// A builder of registries, with everything that they share.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(super) config: Config,
    pub(super) roots: Roots,
    clients: Clients,
    context: Context,
    proxies: Arc<Proxies>,
    docker: Arc<DockerConfig>,
    logins: Option<Logins>,
    /// The certificate of this machine, for the servers of its identity.
    certificate: Option<KeyPair>,
}

impl Builder {
    pub(crate) fn new(config: &Config, logins: Option<Logins>) -> Result<Self, Error> {
        config.identity.check()?;
        let docker = DockerConfig::new(
            config.docker_config.clone(),
            config.credential_helpers.clone(),
        );
        Ok(Self {
            config: config.clone(),
            roots: Roots::new(config.certs_dir.as_deref()),
            clients: Clients::new(config, None)?,
            context: Context::new(config),
            proxies: Arc::new(config.proxies()),
            docker: Arc::new(docker),
            logins,
            certificate: KeyPair::of_machine(&config.identity)?,
        })
    }

    /// Whether a host that is not configured may be dialled: it is allowed, and the rules accept
    /// its address or a directory names it. Blocking.
    pub(crate) fn may_dial(&self, name: &str) -> bool {
        let Ok(url) = self.default_url(name) else {
            return false;
        };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return false;
        };
        let is_host = name.contains(['.', ':']) || name == "localhost";
        let is_allowed = self
            .config
            .allow
            .iter()
            .any(|pattern| pattern.matches(host, port));
        let is_named = || self.is_plain_loopback(&url) || self.roots.name(name);
        is_host && is_allowed && (self.rules().judge(&url).is_ok() || is_named())
    }

    /// Builds a registry that the configuration names.
    pub(crate) fn configured(
        &self,
        name: &str,
        upstream: &UpstreamConfig,
    ) -> Result<Registry, Error> {
        let url = if upstream.url.is_empty() {
            default_url(name, "https")?
        } else {
            registry_url(&upstream.url)?
        };
        let mirrors = upstream
            .mirrors
            .iter()
            .map(|mirror| registry_url(mirror))
            .collect::<Result<Vec<_>, _>>()?;
        let mut rules = self.rules();
        [&url]
            .into_iter()
            .chain(&mirrors)
            .for_each(|url| rules.name(url));
        let clients = match Tls::configured(upstream)? {
            Some(tls) => Clients::new(&self.config, Some(&tls))?,
            None => self.clients.clone(),
        };
        let http = self.http(
            name,
            clients,
            rules,
            mirrors.iter().chain([&url]).cloned().collect(),
        );
        let mirror_of = name.contains('.').then(|| name.to_owned());
        let mirrors = mirrors.iter().map(|mirror| {
            let place = Place {
                mirror_of: mirror_of.clone(),
                is_named: true,
                ..Place::with_prefix(mirror)
            };
            let credentials = self.credentials(None, mirror, None)?;
            Ok(self.endpoint(http.clone(), place, credentials, mirror))
        });
        let mirrors = mirrors.collect::<Result<_, Error>>()?;
        let place = Place {
            is_named: true,
            ..Place::with_prefix(&url)
        };
        let given = self.given(name, &url, &place);
        let credentials = self.credentials(Some(upstream), &url, given)?;
        let own = self.endpoint(http.clone(), place, credentials, &url);
        Ok(Registry::new(mirrors, own, self.retry()))
    }

    /// Builds a registry from only its name. If `is_named`, it may have a private address.
    pub(super) fn unconfigured(&self, name: &str, is_named: bool) -> Result<Registry, Error> {
        let url = self.default_url(name)?;
        let mut rules = self.rules();
        if is_named || self.is_plain_loopback(&url) {
            rules.name(&url);
        }
        let clients = self.clients(&Tls::default(), &url)?;
        let http = self.http(name, clients, rules, vec![url.clone()]);
        let place = Place {
            is_named: is_named || self.is_server(&url),
            ..Place::with_prefix(&url)
        };
        let given = self.given(name, &url, &place);
        let credentials = self.credentials(None, &url, given)?;
        let own = self.endpoint(http, place, credentials, &url);
        Ok(Registry::new(Vec::new(), own, self.retry()))
    }

    /// Builds a registry from its hosts. A host that is written into a file may have any address.
    pub(super) fn hosted(
        &self,
        name: &str,
        hosts: &Hosts,
        is_named: bool,
    ) -> Result<Registry, Error> {
        let default_url = self.default_url(name)?;
        let mut rules = self.rules();
        if is_named || self.is_plain_loopback(&default_url) {
            rules.name(&default_url);
        }
        let all = || hosts.mirrors.iter().chain([&hosts.server]);
        all()
            .filter_map(|host| host.url.as_ref())
            .for_each(|url| rules.name(url));
        let mirrors = hosts
            .mirrors
            .iter()
            .map(|host| self.host(name, host, (&default_url, is_named), &rules));
        let mirrors = mirrors.collect::<Result<_, Error>>()?;
        let own = self.host(name, &hosts.server, (&default_url, is_named), &rules)?;
        Ok(Registry::new(mirrors, own, self.retry()))
    }

    /// Builds one of a registry's hosts. Blocking.
    pub(super) fn host(
        &self,
        name: &str,
        host: &Host,
        (default_url, is_named): (&Url, bool),
        rules: &DialRules,
    ) -> Result<Endpoint, Error> {
        let url = host.url.as_ref().unwrap_or(default_url);
        let clients = self.clients(&host.tls, url)?;
        let http = self.http(name, clients, rules.clone(), vec![url.clone()]);
        let is_own = host_of(url) == host_of(default_url);
        let place = Place {
            root: host.root.clone(),
            mirror_of: (!is_own).then(|| name.to_owned()),
            capabilities: host.capabilities,
            headers: host.headers.clone(),
            is_named: host.url.is_some() || is_named || self.is_server(url),
            ..Place::at(url)
        };
        let given = if is_own {
            self.given(name, url, &place)
        } else {
            None
        };
        let credentials = self.credentials(None, url, given)?;
        Ok(self.endpoint(http, place, credentials, url))
    }

    /// Returns the files of this machine's certificate.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self.certificate.as_ref();
        let files = pair.map(|pair| [Some(&pair.certificate), pair.key.as_ref()]);
        files.into_iter().flatten().flatten().map(PathBuf::as_path)
    }

    /// Returns connection pools with these settings, and with this machine's certificate for a
    /// server that has none in its settings. Blocking.
    fn clients(&self, tls: &Tls, url: &Url) -> Result<Clients, Error> {
        let mut tls = tls.clone();
        if tls.identities.is_empty() && self.knows_identity(url) {
            tls.identities.extend(self.certificate.clone());
        }
        if tls.is_plain() {
            Ok(self.clients.clone())
        } else {
            Clients::new(&self.config, Some(&tls))
        }
    }

    /// Returns the endpoint at `url`, with this machine's token if it is a server.
    fn endpoint(&self, http: Http, place: Place, credentials: Credentials, url: &Url) -> Endpoint {
        let token_file = &self.config.identity.token_file;
        let token_file = token_file.as_ref().filter(|_| self.knows_identity(url));
        let identity = token_file.map(|file| Credentials::of_token_file(file));
        Endpoint::new(http, place, credentials).with_identity(identity)
    }

    /// Whether the host gets this machine's identity: it is listed, and nobody in between can read
    /// a token.
    fn knows_identity(&self, url: &Url) -> bool {
        let is_safe = url.scheme() == "https" || is_loopback(url);
        is_safe && is_listed(&self.config.identity.servers, url)
    }

    fn http(&self, name: &str, clients: Clients, rules: DialRules, given_for: Vec<Url>) -> Http {
        // Others are left out, so that clients do not add series.
        let is_known = name == DOCKER_HUB || self.config.upstream.contains_key(name);
        Http::new(
            clients,
            rules,
            Arc::clone(&self.proxies),
            given_for,
            is_known.then(|| name.into()),
            self.context.clone(),
        )
    }

    pub(super) fn rules(&self) -> DialRules {
        DialRules::new(self.config.allowed_hosts.clone(), self.config.allow_private)
    }

    fn retry(&self) -> Retry {
        Retry {
            attempts: self.config.retries,
            first_pause: self.config.retry_delay,
        }
    }

    fn credentials(
        &self,
        upstream: Option<&UpstreamConfig>,
        url: &Url,
        given: Option<Given>,
    ) -> Result<Credentials, Error> {
        Credentials::new(upstream, Arc::clone(&self.docker), &host_of(url), given)
    }

    /// Returns the caller's logins for the registry `name`, which images may also name by its host.
    fn given(&self, name: &str, url: &Url, place: &Place) -> Option<Given> {
        let mut names = vec![name.to_owned(), host_of(url)];
        names.dedup();
        Some(Given {
            logins: self.logins.clone()?,
            names,
            prefix: place.prefix.clone(),
        })
    }

    fn is_server(&self, url: &Url) -> bool {
        let (servers, identity) = (&self.config.servers, &self.config.identity.servers);
        is_listed(servers, url) || is_listed(identity, url)
    }

    fn is_plain_loopback(&self, url: &Url) -> bool {
        self.config.plain_http_loopback && is_loopback(url)
    }

    /// Returns the URL of a registry of which only the name is known.
    pub(super) fn default_url(&self, name: &str) -> Result<Url, Error> {
        let url = default_url(name, "https")?;
        // Port 443 means TLS on every host.
        let is_plain = self.is_plain_loopback(&url) && !name.ends_with(":443");
        if is_plain {
            default_url(name, "http")
        } else {
            Ok(url)
        }
    }
}

fn is_listed(patterns: &[HostPattern], url: &Url) -> bool {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return false;
    };
    patterns.iter().any(|pattern| pattern.matches(host, port))
}

fn default_url(name: &str, scheme: &str) -> Result<Url, Error> {
    if name == DOCKER_HUB {
        return registry_url(HUB_URL);
    }
    let url = registry_url(&format!("{scheme}://{name}"))?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if is_bare {
        Ok(url)
    } else {
        Err(Error::Configuration(format!("{name:?} is not a host")))
    }
}

/// Whether `url` is on this machine, as containerd's MatchLocalhost decides.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(UrlHost::Domain(name)) => name == "localhost",
        Some(UrlHost::Ipv4(address)) => address.is_loopback(),
        Some(UrlHost::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::config::ServerIdentity;

    #[test]
    fn the_identity_goes_to_its_servers_over_https_or_on_loopback() {
        let config = Config {
            servers: vec!["other.example".parse().unwrap()],
            identity: ServerIdentity {
                servers: vec![
                    "images.example".parse().unwrap(),
                    "127.0.0.1".parse().unwrap(),
                ],
                token_file: Some("/run/token".into()),
                ..ServerIdentity::default()
            },
            ..Config::default()
        };
        let builder = Builder::new(&config, None).unwrap();
        for (url, expected) in [
            ("https://images.example/", true),
            ("https://images.example:8443/", true),
            ("http://127.0.0.1:5000/", true),
            ("http://images.example/", false),
            ("https://other.example/", false),
            ("https://images.example.evil.example/", false),
        ] {
            let url = url.parse().unwrap();
            assert_eq!(builder.knows_identity(&url), expected, "{url}");
        }
        for identity in [
            ServerIdentity {
                servers: Vec::new(),
                ..config.identity.clone()
            },
            ServerIdentity {
                token_file: None,
                ..config.identity.clone()
            },
            ServerIdentity {
                client_cert: Some("/run/cert".into()),
                ..config.identity.clone()
            },
        ] {
            let config = Config {
                identity,
                ..config.clone()
            };
            let refused = Builder::new(&config, None);
            assert!(
                matches!(refused, Err(Error::Configuration(_))),
                "{config:?}"
            );
        }
    }
}
