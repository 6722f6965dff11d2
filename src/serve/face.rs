//! The audience of a listener.

/// The audience of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// Clients on this machine only: everything.
    Local,
    /// Clients and nodes: images, profiles, health.
    Public,
    /// Operators: status, conversions, page, metrics, health.
    Api,
}
