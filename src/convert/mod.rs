//! Converts a source image: plans it, converts each layer in one streaming pass, writes the new
//! documents.
//!
//! `plan`, `image` and `index` are pure and know manifests; `layer`, `inflate` and `channel_io`
//! move bytes; `manifest` and `platforms` drive the conversion of an image and of an index;
//! `converter` and `layer_converter` make sure that no work is done twice, in this process or in
//! another one over the same store; `shown` makes sure that no upstream gets a conversion of bytes
//! that it does not have.

mod budget;
mod channel_io;
mod claim_check;
mod claims;
mod config;
mod converter;
mod documents;
mod error;
mod external;
mod failures;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod image;
mod index;
mod inflate;
mod layer;
mod layer_converter;
mod manifest;
mod pace;
mod plan;
mod platforms;
mod priority;
mod public_reason;
mod reading;
mod reason;
mod reorder;
mod shares;
mod shown;
mod status;
mod weigh;

pub use config::{Config, Format, Layout, Setting, generation};
pub use converter::Converter;
pub use error::Error;
pub use inflate::Inflate;
pub use priority::{Priorities, Prioritized, Priority, write_prioritized};
pub use public_reason::Reason;
pub use status::{Conversion, Layer, State};
