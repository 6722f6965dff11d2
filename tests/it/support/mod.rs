//! Peers and inputs that several tests share. The load tests use some of these modules too.

pub(crate) mod agent;
pub(crate) mod bucket;
pub(crate) mod cache;
pub(crate) mod clients;
pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod crictl;
pub(crate) mod docker_registry;
pub(crate) mod dockerd;
pub(crate) mod eventually;
pub(crate) mod fixture;
pub(crate) mod image;
pub(crate) mod lazy;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod moto;
pub(crate) mod mounts;
pub(crate) mod place;
pub(crate) mod pods;
pub(crate) mod registry;
pub(crate) mod s3;
pub(crate) mod stargz;
pub(crate) mod stargz_grpc;
pub(crate) mod starlift;
pub(crate) mod systemd;
pub(crate) mod tree;
