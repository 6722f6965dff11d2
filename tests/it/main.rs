//! Tests of the whole against real peers: one file for each behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test panics at the first failure"
)]

mod agent;
mod agent_profiles;
mod architecture;
mod cli;
mod convert;
mod cri_proxy;
mod fake_registry;
mod limits;
mod real_agent;
mod real_agent_model;
mod real_agent_mount;
mod real_agent_profiles;
mod real_agent_reads;
mod real_agent_snapshots;
mod real_cri;
mod real_optimize;
mod real_pulls;
mod real_ranges;
mod real_reference;
mod real_rpull;
mod real_static;
mod real_upstreams;
mod serve;
mod serve_crash;
mod serve_liveness;
mod serve_metrics;
mod serve_promises;
mod serve_replicas;
mod store;
mod support;
mod upstream;
mod upstream_layout;
