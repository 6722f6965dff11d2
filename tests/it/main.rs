//! Everything together, against real peers: one file per behaviour.

mod architecture;
mod convert;
mod cli;
mod fake_registry;
mod serve_metrics;
mod store;
mod support;
mod upstream;
