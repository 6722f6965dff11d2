//! The documentation is true: architecture, promises, limits and the generated references.

mod architecture;
mod configuration;
mod limits;
mod metrics;
mod promises;
