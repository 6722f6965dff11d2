//! Makes the agent the snapshotter of a node's containerd, and undoes it.
//!
//! ```text
//! containerd's version and effective configuration ▶ target: drop-in, file or template
//!   └ settings ▶ changes of files ▶ effective configuration again ─ wrong: files restored
//!                                                                 └ right: services
//! ```
//!
//! The effective configuration (`containerd config dump`) decides: containerd ignores some files
//! and drops some keys without a word. Nothing here prints.

mod changes;
mod edit;
mod effective;
mod hosts;
mod node;
mod removal;
mod services;
mod settings;
mod setup;
mod step;
mod target;
mod unit;

pub(crate) use hosts::Mirror;
pub(crate) use node::{Node, Paths, User};
pub(crate) use removal::uninstall;
pub(crate) use setup::{Agent, install};
pub(crate) use step::Step;

/// The name of the snapshotter, in place of the stargz snapshotter of the node: clients that know
/// that name send it the labels of layers.
const PLUGIN: &str = "stargz";
/// The first line of every file that is written as a whole.
const MARK: &str = "# Written by `starlift agent install`; `starlift agent uninstall` deletes it.";
