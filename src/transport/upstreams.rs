//! All upstreams by their names: those that are configured, and those that the configuration allows
//! to be dialled.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::layout::Layout;
use super::source::{Kind, Source};
use crate::oci::hub::canonical_host;
use crate::registry::{Builder, Config, Error, Hosted, Logins, UpstreamConfig, bare_host, excerpt};

/// The most registries that are remembered without being configured. Their tokens are in the shared
/// caches.
const MAX_OTHERS: usize = 1024;
/// The longest name of one, with its port: DNS allows 253 bytes.
const MAX_NAME: usize = 300;

/// All upstreams; clones share connections, tokens and caches.
#[derive(Debug, Clone)]
pub struct Upstreams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    builder: Arc<Builder>,
    configured: HashMap<String, Source>,
    /// Names of configured upstreams by `host[:port]`, which mirror clients send as `ns`.
    by_host: HashMap<String, String>,
    others: Mutex<HashMap<String, Source>>,
}

impl Upstreams {
    /// Reads certificates and opens connection pools. Dials no host.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Self::build(config, None)
    }

    /// Does the same with `logins`, which are asked before Docker's configuration if the
    /// configuration has no credentials for a registry. They are sent to the registry itself, not
    /// to its mirrors.
    pub fn with_logins(config: &Config, logins: Logins) -> Result<Self, Error> {
        Self::build(config, Some(logins))
    }

    fn build(config: &Config, logins: Option<Logins>) -> Result<Self, Error> {
        let builder = Arc::new(Builder::new(config, logins)?);
        let (mut configured, mut by_host) = (HashMap::new(), HashMap::new());
        for (name, upstream) in &config.upstream {
            let name = canonical_host(name);
            let kind = kind_of(&builder, name, upstream).map_err(|error| in_entry(name, error))?;
            configured.insert(name.to_owned(), Source::new(name, kind));
            if let Some(host) = bare_host(&upstream.url) {
                by_host.entry(host).or_insert_with(|| name.to_owned());
            }
        }
        Ok(Self(Arc::new(Inner {
            builder,
            configured,
            by_host,
            others: Mutex::default(),
        })))
    }

    /// Returns the upstream served under `name`: a configured name, the host (with or without port)
    /// of a configured URL, or another host that may be dialled.
    pub fn get(&self, name: &str) -> Result<Source, Error> {
        let name = canonical_host(name);
        let by_host = || {
            self.0
                .by_host
                .get(name)
                .and_then(|name| self.0.configured.get(name))
        };
        if let Some(source) = self.0.configured.get(name).or_else(by_host) {
            return Ok(source.clone());
        }
        let mut others = self.0.others.lock();
        if let Some(source) = others.get(name) {
            return Ok(source.clone());
        }
        if name.len() > MAX_NAME || !self.0.builder.may_dial(name) {
            return Err(Error::UnknownUpstream(excerpt(name)));
        }
        let hosted = Hosted::new(name.to_owned(), Arc::clone(&self.0.builder));
        let source = Source::new(name, Kind::Hosted(Arc::new(hosted)));
        if others.len() >= MAX_OTHERS {
            others.clear();
        }
        others.insert(name.to_owned(), source.clone());
        Ok(source)
    }

    /// Returns the name of the upstream that [`get`](Self::get) returns for `name`.
    pub fn name_of<'a>(&'a self, name: &'a str) -> &'a str {
        let name = canonical_host(name);
        if self.0.configured.contains_key(name) {
            return name;
        }
        self.0.by_host.get(name).map_or(name, String::as_str)
    }

    /// Whether `name` is a configured name.
    pub fn is_configured(&self, name: &str) -> bool {
        self.0.configured.contains_key(canonical_host(name))
    }
}

fn kind_of(builder: &Builder, name: &str, upstream: &UpstreamConfig) -> Result<Kind, Error> {
    if let Some(layout) = Layout::from_url(&upstream.url) {
        return Ok(Kind::Layout(Arc::new(layout)));
    }
    let registry = builder.configured(name, upstream)?;
    Ok(Kind::Registry(Arc::new(registry)))
}

fn in_entry(name: &str, error: Error) -> Error {
    match error {
        Error::Configuration(text) => Error::Configuration(format!("{name}: {text}")),
        other => Error::Configuration(format!("{name}: {other}")),
    }
}
