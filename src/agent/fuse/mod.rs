//! The FUSE driver: the agent's file systems, and their connections to the kernel.
//!
//! ```text
//! /dev/fuse ▶ session ▶ adapter (requests, errno) ▶ filesystem (inodes) ▶ the mounted layers
//! ```

mod adapter;
mod attach;
mod attributes;
pub(crate) mod filesystem;
mod init;
mod patience;
mod refused;
pub(crate) mod request_timeout;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use attach::{MountError, attach};
pub(crate) use session::Device;
