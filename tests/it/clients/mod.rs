//! Real engines, clients and registries: containerd, Docker, skopeo, buildah, crane, oras, regctl,
//! the reference.

mod access;
mod ahead;
mod browser;
mod budgets;
mod container_node;
mod containers;
mod cri;
mod crictl;
mod doctor;
mod fake_registry;
mod identities;
mod install;
mod optimize;
mod predictions;
mod profiles;
mod provenance;
mod pulls;
mod ranges;
mod redirects;
mod reference;
mod registry_clients;
mod rootless;
mod rpull;
mod snapshots;
mod systemd;
mod upstreams;
