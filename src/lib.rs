//! Starlift makes any container image start before it is downloaded.
//!
//! The rooms of the crate, and who may import whom, stand in `docs/ARCHITECTURE.md` and are tested.
//! The server is `serve`, `catalog`, `learn`, `predict`, `convert` and `rewrite`; the node is `agent`,
//! `recording` and `containerd`; both stand on `transport`, `registry`, `store`, `tocs`, `profile`
//! and `oci`. `cli` is the command line.
//!
//! The features `serve`, `predict` and `agent`, all on by default, are the server, its predictions and
//! the node. Without them the library and the program convert, inspect and verify images.

#![cfg_attr(
    not(all(feature = "serve", feature = "predict", feature = "agent")),
    allow(
        dead_code,
        unused_imports,
        reason = "shared rooms have parts for each feature"
    )
)]

/// The name by which `support` knows this crate.
#[cfg(all(test, feature = "agent"))]
extern crate self as starlift;

#[cfg(feature = "agent")]
pub mod agent;
/// Only the configuration: one file serves programs with and without the node.
#[cfg(not(feature = "agent"))]
pub mod agent {
    pub mod config;
    pub use config::Config;
}
pub mod allocator;
mod api_client;
pub mod aside;
mod backoff;
pub mod budget;
#[cfg(feature = "serve")]
pub mod catalog;
pub mod cli;
mod clock;
pub mod config;
#[cfg(feature = "agent")]
pub mod containerd;
mod conversion;
pub mod convert;
#[cfg(feature = "agent")]
mod doctor;
/// Only the outcome of a check, for the server's.
#[cfg(all(feature = "serve", not(feature = "agent")))]
mod doctor {
    mod check;
    pub(crate) use check::{Check, State, text};
}
#[cfg(test)]
#[path = "../tests/it/support/eventually.rs"]
mod eventually;
mod failure;
pub mod flight;
#[cfg(feature = "predict")]
#[cfg(test)]
mod fuzzing;
mod inspect;
#[cfg(feature = "agent")]
mod install;
pub mod layers;
#[cfg(feature = "serve")]
pub mod learn;
mod negative_cache;
pub mod oci;
mod pods;
#[cfg(feature = "predict")]
pub mod predict;
pub mod profile;
pub mod provenance;
#[cfg(feature = "agent")]
mod recording;
pub mod registry;
pub mod rewrite;
#[cfg(feature = "serve")]
pub mod serve;
/// Only the configuration.
#[cfg(not(feature = "serve"))]
pub mod serve {
    pub mod access {
        mod config;
        mod identity;
        pub mod oidc {
            mod config;
            pub use config::IssuerConfig;
        }
        mod policy;
        pub use config::AccessConfig;
        pub use policy::AccessRule;
    }
    pub mod ahead_config;
    pub mod budgets {
        mod config;
        pub use config::BudgetsConfig;
    }
    pub mod config;
    pub use config::Config;
}
#[cfg(feature = "serve")]
mod server_doctor;
mod shares;
mod signals;
pub mod store;
/// The peers and inputs of `tests/it` that unit tests of the node use too.
#[cfg(all(test, feature = "agent"))]
#[expect(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "modules of the tests, which may panic, used here in part"
)]
#[path = "../tests/it/support"]
mod support {
    pub(crate) mod image;
    pub(crate) mod layer;
    pub(crate) mod random_tar;
    pub(crate) mod registry;
}
pub mod telemetry;
mod tempfiles;
mod tls_provider;
pub mod tocs;
pub mod transport;
