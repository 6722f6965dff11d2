//! The documentation is true: architecture, promises, limits, deploy files and generated references.

mod architecture;
mod charts;
mod configuration;
mod deploy;
mod limits;
mod metrics;
mod monitoring;
mod peaks;
mod promises;
mod release;
mod sources;
