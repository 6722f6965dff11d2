//! Opens what a location names: whoever names a registry on the command line also allows its address.

use std::path::Path;

use super::failure::Failure;
use super::location::Location;
use crate::oci::manifest::Index;
use crate::oci::route::DOCKER_HUB;
use crate::oci::{ImageName, Manifest, Reference, Repository};
use crate::upstream::{self, Source, UpstreamConfig, Upstreams};

/// The name that a layout or an archive is opened under.
const LOCAL_NAME: &str = "local";

/// A source that is ready to be read, and what in it was named.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) source: Source,
    pub(super) repository: Repository,
    reference: Reference,
}

/// Flags of every command that talks to a registry.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct RegistryArgs {
    /// Talk plain HTTP to registries that the configuration does not name; loopback hosts need no such flag
    #[arg(long)]
    plain_http: bool,
}

impl Endpoint {
    /// Opens `location` with the credentials and rules of `config`.
    pub(super) fn open(config: &upstream::Config, location: &Location, args: RegistryArgs) -> Result<Self, Failure> {
        let (name, url, repository) = match location {
            Location::Registry(image) => (image.host.clone(), registry_url(image, args), image.repository.clone()),
            Location::Layout(image) => {
                (LOCAL_NAME.to_owned(), Some(local_url("oci", &image.dir)?), local_repository()?)
            }
            Location::Archive(image) => {
                (LOCAL_NAME.to_owned(), Some(local_url("docker-archive", &image.file)?), local_repository()?)
            }
        };
        let mut config = config.clone();
        if let Some(url) = url {
            let is_local = !matches!(location, Location::Registry(_));
            if is_local || !config.upstream.contains_key(&name) {
                config.upstream.insert(name.clone(), UpstreamConfig { url, ..UpstreamConfig::default() });
            }
        }
        let upstreams = Upstreams::new(&config).map_err(Failure::from_error)?;
        let source = upstreams.get(&name).map_err(Failure::from_error)?;
        Ok(Self { source, repository, reference: reference(location)? })
    }

    /// The manifest or index that was named.
    pub(super) async fn manifest(&self) -> Result<Manifest, Failure> {
        let what = format!("{}/{} {}", self.source.name(), self.repository, self.reference);
        self.source.manifest(&self.repository, &self.reference).await.map_err(Failure::when(what))
    }
}

/// Docker Hub's address is known to `upstream`; every other host is where its name says.
fn registry_url(image: &ImageName, args: RegistryArgs) -> Option<String> {
    let is_docker_hub = image.host == DOCKER_HUB;
    let scheme = if args.plain_http || is_loopback(&image.host) { "http" } else { "https" };
    (!is_docker_hub).then(|| format!("{scheme}://{}", image.host))
}

/// As Docker does: registries on this very machine are asked without TLS.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn local_url(scheme: &str, path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(Failure::when(format!("{}", path.display())))?;
    let path = path.to_str().ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))?;
    Ok(format!("{scheme}:{path}"))
}

/// Layouts and archives have no repositories; the name only has to be one.
fn local_repository() -> Result<Repository, Failure> {
    "image".parse().map_err(Failure::from_error)
}

fn reference(location: &Location) -> Result<Reference, Failure> {
    match (location.reference(), location) {
        (Some(reference), _) => Ok(reference),
        (None, Location::Layout(image)) => sole_reference(&image.dir),
        (None, _) => "latest".parse().map_err(Failure::from_error),
    }
}

/// What a layout without a given tag means: its only image.
fn sole_reference(dir: &Path) -> Result<Reference, Failure> {
    let index = dir.join("index.json");
    let bytes = std::fs::read(&index).map_err(Failure::when(format!("{} cannot be read", index.display())))?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(Failure::when(format!("{} is no index", index.display())))?;
    match index.manifests.as_slice() {
        [only] => Ok(Reference::Digest(only.digest.clone())),
        images => Err(Failure::new(format!("{} holds {} images: name a tag", dir.display(), images.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_with_one_image_needs_no_tag() {
        let dir = tempfile::tempdir().unwrap();
        let digest = crate::oci::Digest::sha256_of(b"x");
        let image = format!(r#"{{"mediaType":"a","digest":"{digest}","size":1}}"#);
        let write = |images: &str| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{images}]}}"#);
            std::fs::write(dir.path().join("index.json"), text).unwrap();
        };
        write(&image);
        assert_eq!(sole_reference(dir.path()).ok(), Some(Reference::Digest(digest)));
        write(&format!("{image},{image}"));
        assert!(sole_reference(dir.path()).is_err());
    }

    #[test]
    fn only_loopback_hosts_are_plain_http_by_themselves() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["ghcr.io", "127.0.0.1.example.com", "10.0.0.1:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
