//! Converts a source image: converts each layer in one streaming pass, and stores the documents
//! that `rewrite` plans and writes.
//!
//! `layer` and `channel_io` move bytes; `manifest` and `platforms` drive the conversion of an image
//! and of an index; `converter` and `layer_converter` make sure that no work is done twice, in this
//! process or in another one over the same store; `shown` makes sure that no upstream gets a
//! conversion of bytes that it does not have.

mod budget;
mod channel_io;
mod claim_check;
mod config;
mod converter;
mod documents;
mod error;
mod external;
mod layer;
mod layer_converter;
mod manifest;
mod origin;
mod pace;
mod platforms;
mod priority;
mod public_reason;
mod reading;
mod reorder;
mod shown;
mod statements;
mod status;

pub use config::{Config, Format, Layout, Setting, generation};
pub use converter::{Converter, Ticket};
pub use error::Error;
pub use priority::{Priorities, Prioritized, Priority, write_prioritized};
pub use public_reason::Reason;
pub use status::{Conversion, Layer, State};
