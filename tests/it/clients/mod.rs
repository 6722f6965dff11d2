//! Real engines, clients and registries: containerd, Docker, skopeo, buildah, the reference.

mod containers;
mod cri;
mod fake_registry;
mod optimize;
mod predictions;
mod profiles;
mod pulls;
mod ranges;
mod reference;
mod rpull;
mod snapshots;
mod upstreams;
