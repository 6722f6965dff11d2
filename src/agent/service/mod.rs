//! containerd's snapshots service: the socket, the requests and the answers.

pub(crate) mod provenance;
pub(crate) mod server;
pub(crate) mod snapshotter;
mod starts;
mod status;
