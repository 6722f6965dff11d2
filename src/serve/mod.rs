//! The read API of the distribution specification over converted and source images, and Starlift's
//! own small API and page.
//!
//! ```text
//! connection ▶ listener (room, TLS, stalls) ▶ stream (clock) ▶ request
//! request ▶ middleware (id, span, names, places, access line, panic) ▶ router
//!           └▶ account (budgets, audit line), open until the answer is sent
//! router ▶ access (who, by which rule, with whose credentials)
//! router ▶ manifests │ blobs │ referrers │ tags │ api, ahead │ profiles │ page
//!          │           └▶ store or upstream, in parts
//!          ├▶ resolver (tags)
//!          └▶ source_manifests
//! ```
//! A handler parses, calls one function and answers. Only `error` turns failures into statuses.

mod accept;
mod access;
mod account;
mod ahead;
mod ahead_config;
mod api;
mod app;
mod audit;
mod blobs;
mod budgets;
mod caller;
mod client_address;
mod config;
mod connections;
mod descriptors;
mod documents;
mod error;
mod face;
mod flush;
mod guard;
mod health;
mod jobs;
mod linger;
mod listener;
mod manifests;
mod middleware;
mod multipart;
mod negotiate;
mod operator;
mod page;
mod places;
mod policy;
mod profiles;
mod reading;
mod recorded;
mod referrers;
mod registry_request;
mod request_body;
mod resolver;
mod response;
mod router;
mod server;
mod source_manifests;
mod stall;
mod streams;
mod tags;
mod tls;
mod token;
mod unread;

pub(crate) use access::CertificateFields;
#[cfg(any(test, fuzzing))]
pub use access::fuzz;
pub use access::{
    AccessConfig, AccessError, AccessRule, Action, ImagePattern, IssuerConfig, IssuerError,
    ParseRuleError, UsersError, Who,
};
pub use ahead::SecretError;
pub use ahead_config::{NotificationConfig, WarmConfig};
pub use budgets::{BudgetConfig, BudgetsConfig};
pub use config::{ANSWER_LIMIT, Config, ConfigError, OnMiss, ProfilesConfig, TlsConfig};
pub(crate) use server::check_sources;
pub use server::{Server, StartError};
pub use tls::TlsError;
