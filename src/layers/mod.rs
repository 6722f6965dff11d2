//! The meaning of one layer and of a stack of layers, for every reader: a node, a server, the
//! command line.
//!
//! Pure: no input and output, no clock.

pub(crate) mod digest;
pub(crate) mod inflate;
pub mod merged;
pub(crate) mod names;
pub mod open;

/// Most layers that overlayfs mounts on top of each other (Linux, `OVL_MAX_STACK`).
pub(crate) const MAX_LAYERS: usize = 500;
