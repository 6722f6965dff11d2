//! Counters and log lines, which the models do not look at.

pub mod limit;
pub mod metrics;
