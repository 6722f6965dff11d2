//! The images of a Kubernetes cluster's pods, and the names by which a server converts them.
//!
//! Inside of a cluster, or with an address, the API is asked directly with a service account's
//! token. Everywhere else `kubectl` is run: it knows every way to log in that a kubeconfig can have.

mod cluster;
mod names;

pub(crate) use cluster::{Api, Cluster, Kubectl};
pub(crate) use names::reference;
