//! The credentials of a client of a server, which are passed on to a registry.

use crate::registry::config::Secret;

/// The credentials of a client of a server, which are passed on to a registry and never kept on
/// disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientLogin {
    Password {
        user: String,
        password: Secret,
    },
    /// A bearer token, sent as it is.
    Token(Secret),
}
