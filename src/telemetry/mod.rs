//! What the process says about itself: tracing, metrics, and whether it runs.

pub mod limit;
pub mod log;
pub mod metrics;
mod watchdog;

pub use log::LogFormat;
pub use metrics::metrics;
pub use watchdog::Watchdog;
