//! The client of one registry: pulls, and pushes for the command line.
//!
//! ```text
//! Registry ▶ mirrors, retry ▶ Endpoint ▶ auth ▶ Http (redirects) ▶ dial rules ▶ the network
//! ```

mod address;
mod answer;
mod auth;
mod blob;
mod body;
mod builder;
mod challenge;
mod client;
mod config;
mod dial;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod health;
mod hosted;
mod hosts;
mod http;
mod manifest;
mod memory;
mod named;
mod origin;
mod part;
mod peer;
mod proxy;
mod push;
mod referrers;
mod retry;
mod starlift;
mod tags;
mod tls;
mod token;
mod unanswered;
mod urls;
mod verify;

pub use self::auth::{ClientLogin, Login, Logins};
pub use self::body::Body;
pub(crate) use self::builder::Builder;
pub(crate) use self::client::Registry;
pub use self::config::{Config, HostPattern, Secret, ServerIdentity, UpstreamConfig};
pub(crate) use self::endpoint::Entry;
pub use self::error::Error;
pub(crate) use self::error::excerpt;
pub(crate) use self::hosted::Hosted;
pub(crate) use self::named::{NamedHost, Reached};
pub use self::origin::Origin;
pub use self::peer::Peer;
pub use self::proxy::ProxyUrl;
pub use self::referrers::Referrers;
pub use self::starlift::Purpose;
pub use self::tags::Tags;
pub(crate) use self::urls::bare_host;
pub(crate) use self::verify::verified;
