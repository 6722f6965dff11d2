//! containerd's snapshots service: the socket, the requests and the answers.

pub mod server;
pub mod snapshotter;
mod starts;
mod status;
