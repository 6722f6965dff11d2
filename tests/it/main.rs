//! Tests of the whole against real peers: one folder for each subject.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test panics at the first failure"
)]

mod agent;
mod cli;
mod clients;
mod convert;
mod docs;
mod registry;
mod server;
mod store;
mod support;
