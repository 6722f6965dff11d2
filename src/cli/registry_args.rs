//! The flags of every command that uses a registry.

/// Flags of every command that uses a registry.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct RegistryArgs {
    /// Use plain HTTP for registries that the configuration does not name; not needed for loopback
    /// hosts
    #[arg(long)]
    pub(super) plain_http: bool,
}
