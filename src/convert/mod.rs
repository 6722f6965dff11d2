//! An image into its twin: plan, convert each layer in one streaming pass, write the new documents.
//!
//! `plan`, `image` and `index` are pure and know manifests; `layer`, `inflate` and `pipe` move bytes; `manifest` and
//! `platforms` drive the conversion of an image and of an index; `converter` and `memo` see to it that nothing is done
//! twice, in this process or in another one over the same store.

mod budget;
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
mod manifest;
mod memo;
mod pace;
mod pipe;
mod plan;
mod platforms;
mod priority;
mod profiles;
mod public_reason;
mod reason;
mod reorder;
mod shares;
mod statics;
mod status;
mod tocs;
mod weigh;

pub use config::{Config, Format, Layout, Setting, generation};
pub use converter::Converter;
pub use error::Error;
pub use image::{GENERATION, SOURCE_DIFF_ID, SOURCE_DIGEST, SOURCE_SIZE};
pub use inflate::Inflate;
pub use priority::{Priorities, Prioritized, Priority, write_prioritized};
pub use profiles::{Profiles, Ranges, Refused, Status as ProfilesStatus};
pub use public_reason::Reason;
pub use statics::{Failure as PredictionFailure, PredictionLimits, Predictor, work as predict};
pub use status::{Conversion, Layer, State};
pub use tocs::{Tocs, Unreadable};
