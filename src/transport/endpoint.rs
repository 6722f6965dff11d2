//! Opens the source that a location names. Naming a registry on the command line also allows its
//! address.

use std::path::Path;

use super::entries::is_artifact;
use super::location::Location;
use super::source::Source;
use super::upstreams::Upstreams;
use crate::failure::Failure;
use crate::oci::hub::DOCKER_HUB;
use crate::oci::manifest::Index;
use crate::oci::{ImageName, Manifest, Reference, Repository};
use crate::registry::{self, HostPattern, Logins, UpstreamConfig};

/// The name under which a layout or an archive is opened.
const LOCAL_NAME: &str = "local";

/// An open source, and the image in it that was named.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) source: Source,
    pub(crate) repository: Repository,
    pub(crate) reference: Option<Reference>,
    wanted: Reference,
    /// The image as people name it.
    name: String,
}

impl Endpoint {
    /// Opens `location` with the credentials and rules of `config`.
    pub(crate) fn open(
        config: &registry::Config,
        location: &Location,
        plain_http: bool,
    ) -> Result<Self, Failure> {
        Self::open_with(config, location, plain_http, None)
    }

    /// Opens `location` with `logins` that take precedence over all others.
    pub(crate) fn open_with(
        config: &registry::Config,
        location: &Location,
        plain_http: bool,
        logins: Option<Logins>,
    ) -> Result<Self, Failure> {
        let mut config = config.clone();
        let (name, repository) = match location {
            Location::Registry(image) => {
                name_registry(&mut config, image, plain_http)?;
                (image.host.as_str(), image.repository.clone())
            }
            Location::Layout(image) => {
                name_local(&mut config, "oci", &image.dir)?;
                (
                    LOCAL_NAME,
                    image.repository.clone().map_or_else(local_repository, Ok)?,
                )
            }
            Location::Archive(image) => {
                name_local(&mut config, "docker-archive", &image.file)?;
                (
                    LOCAL_NAME,
                    image.repository().map_or_else(local_repository, Ok)?,
                )
            }
        };
        let upstreams = match logins {
            Some(logins) => {
                config
                    .upstream
                    .get_mut(name)
                    .into_iter()
                    .for_each(UpstreamConfig::forget_credentials);
                Upstreams::with_logins(&config, logins)
            }
            None => Upstreams::new(&config),
        };
        let source = upstreams
            .and_then(|upstreams| upstreams.get(name))
            .map_err(Failure::from_error)?;
        let wanted = reference(location)?;
        Ok(Self {
            source,
            repository,
            reference: location.reference(),
            name: display_name(location, &wanted),
            wanted,
        })
    }

    /// Returns the manifest or index that was named.
    pub(crate) async fn manifest(&self) -> Result<Manifest, Failure> {
        let context = format!("{} cannot be read", self.name);
        self.source
            .manifest(&self.repository, &self.wanted)
            .await
            .map_err(Failure::when(context))
    }
}

/// Returns the image's name for messages.
fn display_name(location: &Location, wanted: &Reference) -> String {
    match location {
        Location::Registry(image) => image.to_string(),
        Location::Layout(image) => format!("{wanted} in oci:{}", image.dir.display()),
        Location::Archive(image) => format!("docker-archive:{}", image.file.display()),
    }
}

/// Allows requests to the registry of `image`: as configured under this name, else as containerd's
/// directory of hosts describes it, else at the address in its name. The registry client knows
/// Docker Hub's address.
fn name_registry(
    config: &mut registry::Config,
    image: &ImageName,
    plain_http: bool,
) -> Result<(), Failure> {
    let host = &image.host;
    if host == DOCKER_HUB || config.upstream.contains_key(host) {
        return Ok(());
    }
    if config.certs_dir.is_some() && !plain_http {
        let pattern: HostPattern = host.parse().map_err(Failure::from_error)?;
        config.allow.push(pattern.clone());
        config.allowed_hosts.push(pattern);
        config.plain_http_loopback = true;
        return Ok(());
    }
    let scheme = if plain_http || is_loopback(host) {
        "http"
    } else {
        "https"
    };
    let url = format!("{scheme}://{host}");
    config.upstream.insert(
        host.clone(),
        UpstreamConfig {
            url,
            ..UpstreamConfig::default()
        },
    );
    Ok(())
}

fn name_local(config: &mut registry::Config, scheme: &str, path: &Path) -> Result<(), Failure> {
    let url = local_url(scheme, path)?;
    config.upstream.insert(
        LOCAL_NAME.to_owned(),
        UpstreamConfig {
            url,
            ..UpstreamConfig::default()
        },
    );
    Ok(())
}

/// Whether a registry is on this machine. As in Docker, such a registry is asked without TLS.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    name == "localhost"
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

fn local_url(scheme: &str, path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(Failure::when(format!("{}", path.display())))?;
    let path = path
        .to_str()
        .ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))?;
    Ok(format!("{scheme}:{path}"))
}

/// Returns a placeholder, because layouts and archives have no repositories.
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

/// Returns the only image of a layout, for a location without a tag.
fn sole_reference(dir: &Path) -> Result<Reference, Failure> {
    let index = dir.join("index.json");
    let bytes = std::fs::read(&index)
        .map_err(Failure::when(format!("{} cannot be read", index.display())))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(Failure::when(format!(
        "{} is not an index",
        index.display()
    )))?;
    let images: Vec<_> = index
        .manifests
        .iter()
        .filter(|entry| !is_artifact(entry))
        .collect();
    match images.as_slice() {
        [only] => Ok(Reference::Digest(only.digest.clone())),
        images => Err(Failure::new(format!(
            "{} holds {} images: name a tag",
            dir.display(),
            images.len()
        ))),
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
        assert_eq!(
            sole_reference(dir.path()).ok(),
            Some(Reference::Digest(digest))
        );
        let artifact = image.replace("\"size\"", "\"artifactType\":\"text/x\",\"size\"");
        write(&format!("{image},{artifact}"));
        assert!(
            sole_reference(dir.path()).is_ok(),
            "an artifact is not an image"
        );
        write(&format!("{image},{image}"));
        assert!(sole_reference(dir.path()).is_err());
    }

    #[test]
    fn only_loopback_hosts_default_to_plain_http() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["ghcr.io", "127.0.0.1.example.com", "10.0.0.1:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
