//! The flags of every command that talks to a registry.

/// Flags of every command that talks to a registry.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct RegistryArgs {
    /// Talk plain HTTP to registries that the configuration does not name; loopback hosts need no such flag
    #[arg(long)]
    pub(super) plain_http: bool,
}
