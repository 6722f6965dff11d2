//! The FUSE driver: the agent's file systems, and their connections to the kernel.
//!
//! ```text
//! /dev/fuse ▶ session ▶ adapter (requests, errno) ▶ filesystem (inodes) ▶ the mounted layers
//! ```

mod adapter;
mod attach;
mod attributes;
pub mod filesystem;
mod init;
mod patience;
pub mod request_timeout;
mod session;

pub use attach::{MountError, attach};
pub use session::Device;
