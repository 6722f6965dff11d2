//! The flags of every command that uses a registry.

use crate::config::Config;
use crate::transport::Registries;

/// Flags of every command that uses a registry.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct RegistryArgs {
    /// Use plain HTTP for registries that the configuration does not name; not needed for loopback
    /// hosts
    #[arg(long)]
    pub(super) plain_http: bool,
}

impl RegistryArgs {
    /// Returns the registries of the configuration, reached as the flags say.
    pub(super) fn registries(self, config: &Config) -> Registries<'_> {
        Registries {
            config: &config.upstreams,
            plain_http: self.plain_http,
        }
    }
}
