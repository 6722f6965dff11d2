//! One conversion that a person requests: of an image from one location to another, or of a layer
//! in a file. Reports progress to a counter and returns the outcome; printing is for the command.
//!
//! ```text
//! source ▶ Converter ▶ scratch store ▶ ImageBundle ▶ target
//! record ────┘ (the files that come first)              ▲
//!    └───────▶ profile, attached to the converted image ┘
//! ```

mod image;
pub(crate) mod layer;
mod profiles;
pub(crate) mod record;
mod scratch;
mod statements;

pub(crate) use image::{ConversionReport, ImageConversion};
