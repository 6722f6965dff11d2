//! Real engines, clients and registries: containerd, Docker, skopeo, buildah, crane, oras, regctl,
//! the reference.

mod access;
mod browser;
mod budgets;
mod containers;
mod cri;
mod crictl;
mod fake_registry;
mod identities;
mod install;
mod optimize;
mod predictions;
mod profiles;
mod provenance;
mod pulls;
mod ranges;
mod reference;
mod registry_clients;
mod rpull;
mod snapshots;
mod upstreams;
