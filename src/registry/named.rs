//! The hosts that the configuration or a directory of hosts names: each can be asked for the root
//! of its API, without any image. For checks of a machine, not for pulls.

use std::time::SystemTime;

use super::builder::Builder;
use super::client::Registry;
use super::endpoint::{Endpoint, Entry};
use super::error::Error;
use super::hosts::{DEFAULT_DIRECTORY, Host, Hosts};

/// Stands for every registry while the hosts of `_default` are built. It cannot be dialled (RFC
/// 2606).
const EVERY_REGISTRY: &str = "registry.invalid";

/// A host that serves the images of one registry, or of all without hosts of their own.
#[derive(Debug)]
pub(crate) struct NamedHost {
    /// The registry in the names of images, or `_default`.
    pub(crate) registry: String,
    /// Whether it is asked before the registry itself.
    pub(crate) is_mirror: bool,
    endpoint: Endpoint,
}

/// The answer of a host.
#[derive(Debug)]
pub(crate) struct Reached {
    /// The time of its clock, with a resolution of a second.
    pub(crate) date: Option<SystemTime>,
    /// How it lets this machine in, or the reason why it does not.
    pub(crate) outcome: Result<Entry, Error>,
}

/// A registry whose hosts cannot be used, and the reason.
#[derive(Debug)]
pub(crate) struct BadHosts {
    pub(crate) registry: String,
    pub(crate) reason: String,
}

impl NamedHost {
    /// Returns `host[:port]`.
    pub(crate) fn name(&self) -> String {
        self.endpoint.host()
    }

    /// Asks for the root of the API, and logs in if the host requires it.
    pub(crate) async fn reach(&self) -> Reached {
        reach(&self.endpoint).await
    }
}

impl Registry {
    /// Asks the registry and each of its mirrors, as [`NamedHost::reach`] does. Returns
    /// `host[:port]` with the answer.
    pub(crate) async fn reach(&self) -> Vec<(String, Reached)> {
        let mut answers = Vec::new();
        for endpoint in self.mirrors.iter().chain([&self.own]) {
            answers.push((endpoint.host(), reach(endpoint).await));
        }
        answers
    }
}

async fn reach(endpoint: &Endpoint) -> Reached {
    let (date, outcome) = endpoint.reach().await;
    Reached { date, outcome }
}

impl Builder {
    /// Returns the hosts of every registry that the configuration or a directory names. Reads
    /// certificates, dials nobody. Blocking.
    pub(crate) fn named_hosts(&self) -> Vec<Result<NamedHost, BadHosts>> {
        let mut found = Vec::new();
        for (registry, upstream) in &self.config.upstream {
            let is_remote = upstream.url.is_empty() || upstream.url.starts_with("http");
            if !is_remote {
                continue;
            }
            match self.configured(registry, upstream) {
                Ok(built) => {
                    let mirrors = built.mirrors.into_iter().map(|mirror| (true, mirror));
                    let all = mirrors.chain([(false, built.own)]);
                    found.extend(all.map(|(is_mirror, endpoint)| {
                        Ok(NamedHost {
                            registry: registry.clone(),
                            is_mirror,
                            endpoint,
                        })
                    }));
                }
                Err(error) => found.push(Err(bad(registry, &error))),
            }
        }
        for registry in self.roots.names() {
            match self.roots.find(&registry).hosts {
                Some(Ok(hosts)) => found.extend(self.hosts_of(&registry, &hosts)),
                Some(Err(problem)) => found.push(Err(bad(&registry, &problem))),
                None => {}
            }
        }
        found
    }

    fn hosts_of(&self, registry: &str, hosts: &Hosts) -> Vec<Result<NamedHost, BadHosts>> {
        let is_default = registry == DEFAULT_DIRECTORY;
        let name = if is_default { EVERY_REGISTRY } else { registry };
        let mirrors = hosts.mirrors.iter().map(|host| (true, host));
        let all = mirrors.chain([(false, &hosts.server)]);
        // Without a `server` the hosts of all registries are followed by each registry itself.
        all.filter(|(_, host)| !is_default || host.url.is_some())
            .map(|(is_mirror, host)| {
                let endpoint = self.named_host(name, host);
                let endpoint = endpoint.map_err(|error| bad(registry, &error))?;
                Ok(NamedHost {
                    registry: registry.to_owned(),
                    is_mirror,
                    endpoint,
                })
            })
            .collect()
    }

    fn named_host(&self, name: &str, host: &Host) -> Result<Endpoint, Error> {
        let default_url = self.default_url(name)?;
        let mut rules = self.rules();
        rules.name(host.url.as_ref().unwrap_or(&default_url));
        self.host(name, host, (&default_url, true), &rules)
    }
}

fn bad(registry: &str, reason: &dyn std::error::Error) -> BadHosts {
    BadHosts {
        registry: registry.to_owned(),
        reason: reason.to_string(),
    }
}
