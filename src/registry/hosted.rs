//! A registry that the configuration does not name. Its hosts come from the directories of hosts,
//! which are checked for changes from time to time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Mutex;

use super::hosts::{Consulted, HostsLookup};
use crate::registry::builder::Builder;
use crate::registry::client::Registry;
use crate::registry::error::Error;

/// A registry that may change its hosts and certificates while it is read from.
#[derive(Debug)]
pub(crate) struct Hosted {
    name: String,
    builder: Arc<Builder>,
    held: Mutex<Option<HeldRegistry>>,
}

#[derive(Debug)]
struct HeldRegistry {
    registry: Arc<Registry>,
    consulted: Consulted,
    looked: Instant,
}

impl Hosted {
    pub(crate) fn new(name: String, builder: Arc<Builder>) -> Self {
        Self {
            name,
            builder,
            held: Mutex::default(),
        }
    }

    /// Returns the registry as it is now, or as it was at most `certs_interval` ago.
    pub(crate) async fn registry(self: &Arc<Self>) -> Result<Arc<Registry>, Error> {
        let mut held = self.held.lock().await;
        if let Some(held) = &*held
            && held.looked.elapsed() < self.builder.config.certs_interval
        {
            return Ok(Arc::clone(&held.registry));
        }
        let hosted = Arc::clone(self);
        let before = held.take();
        let renewed = tokio::task::spawn_blocking(move || hosted.renewed(before)).await;
        let renewed = renewed.map_err(|error| Error::Unavailable(error.to_string()))??;
        Ok(Arc::clone(&held.insert(renewed).registry))
    }

    /// Returns the registry, built anew if its files have changed. Blocking.
    fn renewed(&self, before: Option<HeldRegistry>) -> Result<HeldRegistry, Error> {
        let looked = Instant::now();
        if let Some(before) = before
            && before.consulted.is_unchanged()
        {
            return Ok(HeldRegistry { looked, ..before });
        }
        let found = self.builder.roots.find(&self.name);
        let registry = Arc::new(self.build(&found)?);
        let mut consulted = found.consulted;
        consulted.watch(self.builder.files());
        Ok(HeldRegistry {
            registry,
            consulted,
            looked,
        })
    }

    /// Builds the registry. An unusable directory is logged and then ignored.
    fn build(&self, found: &HostsLookup) -> Result<Registry, Error> {
        let useless = |error: &dyn std::error::Error| {
            tracing::error!(host = self.name, %error, "directory of hosts and certificates ignored");
        };
        match &found.hosts {
            Some(Ok(hosts)) => match self.builder.hosted(&self.name, hosts, found.is_own) {
                Ok(registry) => return Ok(registry),
                Err(error) => useless(&error),
            },
            Some(Err(problem)) => useless(problem),
            None => {}
        }
        self.builder.unconfigured(&self.name, found.is_own)
    }
}
