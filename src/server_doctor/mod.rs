//! Checks for the faults that keep a server from converting and serving images, and names the
//! repair of each. Starts nothing and listens nowhere: it can run beside the server.
//!
//! ```text
//! configuration ▶ keys that fight each other
//! store ▶ rights, conditions, clock     upstreams ▶ reachable, login, clock
//! limits ▶ descriptors, memory, disk    certificates ▶ key, time, names, chain
//! ```

mod certificates;
mod clock;
mod configuration;
mod limits;
mod store;
mod upstreams;

use crate::convert;
use crate::doctor::Check;
use crate::registry;
use crate::serve;

/// The parts of the configuration that are checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) serve: &'a serve::Config,
    pub(crate) store: &'a crate::store::Config,
    pub(crate) convert: &'a convert::Config,
    pub(crate) upstreams: &'a registry::Config,
    /// Whether `pull.allow` is set by anybody.
    pub(crate) is_allow_set: bool,
}

/// Checks the server of this configuration on this machine.
pub(crate) async fn examine(parts: Parts<'_>) -> Vec<Check> {
    let mut checks = configuration::check(&parts).await;
    checks.extend(limits::check(&parts));
    checks.extend(certificates::check(parts.serve));
    let (store, upstreams) = tokio::join!(
        Box::pin(store::check(parts.store)),
        Box::pin(upstreams::check(parts.upstreams))
    );
    checks.extend(store);
    checks.extend(upstreams);
    checks
}
