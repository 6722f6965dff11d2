//! What the process says about itself: tracing and metrics.

pub mod limit;
pub mod log;
pub mod metrics;

pub use log::LogFormat;
pub use metrics::metrics;
