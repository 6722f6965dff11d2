//! Where images come from and go to: a registry, an OCI layout, a docker archive.
//!
//! ```text
//! Upstreams ▶ Source ─ Registry ▶ the client of one registry
//!                    └ Layout   ▶ a directory or a tar
//!
//! Location ▶ Endpoint (a source and the image named in it) ▶ ImageBundle ▶ Destination
//! ```

mod bundle;
mod destination;
pub(crate) mod document;
mod endpoint;
mod entries;
pub(crate) mod external_toc;
mod layout;
mod location;
pub(crate) mod platform;
mod registries;
mod source;
mod statements;
mod upstreams;

pub(crate) use bundle::{ImageBundle, ImageReader};
pub(crate) use destination::Destination;
pub(crate) use endpoint::Endpoint;
pub(crate) use location::{LayoutImage, Location};
pub(crate) use registries::Registries;
pub use source::Source;
pub use statements::{FoundStatement, NoEnvelope, Proof, Unproven};
pub use upstreams::Upstreams;
