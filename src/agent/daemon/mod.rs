//! The agent's process: composed of the other rooms, watched over its status API, and survived by its
//! mounts.

pub mod api;
pub mod keeper;
mod mounted;
pub mod root;
pub mod run;
