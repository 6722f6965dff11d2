//! The telemetry of the process: tracing, metrics, and a watchdog.

pub mod limit;
pub mod log;
pub mod metrics;
mod watchdog;

pub use log::LogFormat;
pub use metrics::metrics;
pub use watchdog::Watchdog;
