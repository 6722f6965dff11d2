//! What one layer and a stack of layers mean, wherever they are read: on a node, in a server, on
//! the command line.
//!
//! Pure: no input and output, no clock.

pub(crate) mod digest;
pub(crate) mod names;

/// Most layers that overlayfs mounts on top of each other (Linux, `OVL_MAX_STACK`).
pub(crate) const MAX_LAYERS: usize = 500;
