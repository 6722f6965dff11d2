//! The documentation is true: architecture, promises, limits, links, deploy files and generated
//! references. Dependencies are used.

mod architecture;
mod charts;
mod configuration;
mod dependencies;
mod deploy;
mod limits;
mod links;
mod metrics;
mod monitoring;
mod peaks;
mod promises;
mod release;
mod sources;
