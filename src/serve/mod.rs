//! The distribution read API over twins and originals, and a small API and page of our own.
//!
//! ```text
//! request ▶ middleware (id, span, limit, access line, panic) ▶ router ▶ manifests │ blobs │ referrers │ tags │ api │ profiles │ page
//!                                                     resolver (tags) ◀──┤     └──▶ store or upstream, in parts
//!                                                     originals          ◀┘
//! ```
//! A handler parses, calls one function and answers; `error` alone turns failures into statuses.

mod accept;
mod api;
mod app;
mod ask;
mod blobs;
mod config;
mod error;
mod health;
mod jobs;
mod manifests;
mod middleware;
mod multipart;
mod negotiate;
mod originals;
mod page;
mod peer;
mod profiles;
mod recorded;
mod referrers;
mod resolver;
mod response;
mod router;
mod server;
mod stall;
mod tags;

pub use config::{ANSWER_LIMIT, Config, ConfigError, OnMiss, ProfilesConfig, TlsConfig};
pub use server::{Server, StartError};
