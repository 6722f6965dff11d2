//! Docker Hub and its names.

use std::borrow::Cow;

/// The name of Docker Hub. An image reference without a host means it.
pub const DOCKER_HUB: &str = "docker.io";
/// Hosts that are Docker Hub too.
const ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];

/// Whether a host is Docker Hub, by whichever name.
pub fn is_docker_hub(host: &str) -> bool {
    host == DOCKER_HUB || ALIASES.contains(&host)
}

/// The one name of a host that may have several.
pub fn canonical_host(host: &str) -> &str {
    if is_docker_hub(host) {
        DOCKER_HUB
    } else {
        host
    }
}

/// The whole path of a repository at a host with its canonical name: official images have a prefix
/// that nobody writes.
pub fn full_path<'p>(host: &str, path: &'p str) -> Cow<'p, str> {
    if host == DOCKER_HUB && !path.contains('/') {
        format!("library/{path}").into()
    } else {
        path.into()
    }
}
