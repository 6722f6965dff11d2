//! The agent's process: composed of the other rooms, watched over its status API, and survived by its
//! mounts.

pub(crate) mod api;
pub(crate) mod keeper;
mod mounted;
pub(crate) mod root;
pub(crate) mod run;
