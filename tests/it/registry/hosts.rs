//! containerd's directory of hosts: mirrors, certificates and headers of registries that are not
//! configured.

use std::path::Path;
use std::time::Duration;

use starlift::registry::{Config, Error};
use starlift::transport::{Source, Upstreams};

use super::tls::Authority;
use super::{app, config, read, v1};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::Registry;

/// A `certs.d` directory.
struct CertsDir(tempfile::TempDir);

impl CertsDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file into the directory of `host`.
    fn write(&self, host: &str, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let directory = self.0.path().join(host);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(name), bytes).unwrap();
        self
    }

    fn config(&self) -> Config {
        Config {
            certs_dir: Some(self.0.path().to_owned()),
            certs_interval: Duration::ZERO,
            ..config()
        }
    }

    fn source(&self, host: &str) -> Source {
        Upstreams::new(&self.config()).unwrap().get(host).unwrap()
    }
}

/// Returns `127.0.0.1_PORT_`, the name of a registry's directory.
fn directory_of(registry: &Registry) -> String {
    registry.host().replace(':', "_") + "_"
}

async fn registry_with(image: &Image) -> Registry {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", image);
    registry
}

#[tokio::test]
async fn hosts_are_asked_in_their_order_for_their_capabilities() {
    let image = ImageBuilder::new(1).build();
    let (first, second, own) = (
        registry_with(&image).await,
        registry_with(&image).await,
        registry_with(&image).await,
    );
    let certs = CertsDir::new();
    let text = format!(
        "server = '{}'\n[host.'{}']\ncapabilities = ['pull']\n[host.'{}/v2']\noverride_path = true\n\
         [host.'{}/v2'.header]\nX-Team = ['ours', 'theirs']\n",
        own.url(),
        second.url(),
        first.url(),
        first.url(),
    );
    certs.write("a.example", "hosts.toml", text);
    let source = certs.source("a.example");

    source.manifest(&app(), &v1()).await.unwrap();
    let counts = || [&first, &second, &own].map(|registry| registry.seen().len());
    assert_eq!(
        counts(),
        [1, 0, 0],
        "the host without `resolve` is not asked for a tag"
    );
    let seen = &first.seen()[0];
    assert_eq!(
        seen.path_and_query,
        "/v2/library/app/manifests/v1?ns=a.example"
    );
    assert_eq!(seen.headers.get_all("x-team").iter().count(), 2);

    let layer = &image.layers()[0];
    let (got, ended) = read(&source, &starlift::oci::Digest::sha256_of(layer), None).await;
    ended.unwrap();
    assert_eq!(
        (&got, counts()),
        (&layer.to_vec(), [1, 1, 0]),
        "blobs come from the first host in the file"
    );
    assert!(second.seen()[0].headers.get("x-team").is_none());

    first.on("/").answer(500, &[]);
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(counts(), [2, 1, 1], "the server comes last");
}

#[tokio::test]
async fn a_path_goes_in_front_of_the_api_and_the_server_may_be_the_registry() {
    let image = ImageBuilder::new(1).build();
    let (mirror, own) = (registry_with(&image).await, registry_with(&image).await);
    let certs = CertsDir::new();
    certs.write(
        &directory_of(&own),
        "hosts.toml",
        format!("[host.'{}/team']", mirror.url()),
    );
    let config = Config {
        plain_http_loopback: true,
        ..certs.config()
    };
    let source = Upstreams::new(&config).unwrap().get(&own.host()).unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    let ns = own.host().replace(':', "%3A");
    assert_eq!(
        mirror.seen()[0].path_and_query,
        format!("/team/v2/library/app/manifests/v1?ns={ns}")
    );
    assert_eq!(own.seen()[0].path_and_query, "/v2/library/app/manifests/v1");
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_headers_elsewhere() {
    let image = ImageBuilder::new(1).build();
    let (own, bucket) = (registry_with(&image).await, registry_with(&image).await);
    let digest = starlift::oci::Digest::sha256_of(&image.layers()[0]);
    own.on("/blobs/")
        .redirect(&format!("{}/elsewhere/{digest}", bucket.url()));
    let certs = CertsDir::new();
    certs.write(
        "a.example",
        "hosts.toml",
        format!("server = '{}'\n[header]\nX-Secret = 'hush'", own.url()),
    );
    let config = Config {
        allow_private: true,
        ..certs.config()
    };
    let source = Upstreams::new(&config).unwrap().get("a.example").unwrap();
    let (_, ended) = read(&source, &digest, None).await;
    ended.unwrap();
    assert_eq!(own.seen()[0].headers.get("x-secret").unwrap(), "hush");
    assert!(bucket.seen()[0].headers.get("x-secret").is_none());
}

async fn is_trusted(certs: &CertsDir, registry: &Registry) -> bool {
    match certs.source(&registry.host()).manifest(&app(), &v1()).await {
        Ok(_) => true,
        Err(Error::Unavailable(_)) => false,
        Err(other) => panic!("{other}"),
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn authorities_and_client_certificates_are_used() {
    let authority = Authority::new();
    let registry = authority.registry(true).await;
    let directory = directory_of(&registry);
    let (ca, cert, key) = (
        bytes(&authority.path("ca.pem")),
        bytes(&authority.path("client.pem")),
        bytes(&authority.path("client.key")),
    );
    let both = [&cert[..], &key[..]].concat();
    for (text, is_enough) in [
        ("", false),
        ("ca = 'ca.pem'", false),
        ("client = 'both.pem'", false),
        ("ca = 'ca.pem'\nclient = 'both.pem'", true),
        (
            "ca = ['ca.pem']\nclient = [['client.pem', 'client.key']]",
            true,
        ),
        ("ca = ['ca.pem']\nclient = ['both.pem']", true),
        ("skip_verify = true\nclient = 'both.pem'", true),
    ] {
        let certs = CertsDir::new();
        certs.write(&directory, "hosts.toml", format!("# a comment\n{text}"));
        certs
            .write(&directory, "ca.pem", &ca)
            .write(&directory, "both.pem", &both);
        certs
            .write(&directory, "client.pem", &cert)
            .write(&directory, "client.key", &key);
        assert_eq!(is_trusted(&certs, &registry).await, is_enough, "{text}");
    }
}

#[tokio::test]
async fn a_directory_with_only_certificates_is_used() {
    let authority = Authority::new();
    let registry = authority.registry(true).await;
    let certs = CertsDir::new();
    let directory = directory_of(&registry);
    certs.write(&directory, "ours.crt", bytes(&authority.path("ca.pem")));
    certs.write(
        &directory,
        "client.cert",
        bytes(&authority.path("client.pem")),
    );
    assert!(!is_trusted(&certs, &registry).await, "without the key");
    certs.write(
        &directory,
        "client.key",
        bytes(&authority.path("client.key")),
    );
    assert!(is_trusted(&certs, &registry).await);
}

#[tokio::test]
async fn a_change_takes_effect_while_a_source_is_used() {
    let image = ImageBuilder::new(1).build();
    let (one, two) = (registry_with(&image).await, registry_with(&image).await);
    let certs = CertsDir::new();
    certs.write(
        "a.example",
        "hosts.toml",
        format!("server = '{}'", one.url()),
    );
    let source = certs.source("a.example");
    source.manifest(&app(), &v1()).await.unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    certs.write(
        "a.example",
        "hosts.toml",
        format!("server = '{}' # changed", two.url()),
    );
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!((one.seen().len(), two.seen().len()), (2, 1));
    // With a long interval, the next change is not read yet.
    let patient = Config {
        certs_interval: Duration::from_secs(3600),
        ..certs.config()
    };
    let source = Upstreams::new(&patient).unwrap().get("a.example").unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    certs.write(
        "a.example",
        "hosts.toml",
        format!("server = '{}'", one.url()),
    );
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!((one.seen().len(), two.seen().len()), (2, 3));
}

#[tokio::test]
async fn an_unusable_hosts_directory_is_ignored() {
    let own = registry_with(&ImageBuilder::new(1).build()).await;
    for text in [
        "[host",
        "server = 7",
        "[host.'ftp://x']",
        "ca = 'absent.pem'",
        "client = 'hosts.toml'",
    ] {
        let certs = CertsDir::new();
        certs.write(&directory_of(&own), "hosts.toml", text);
        let config = Config {
            plain_http_loopback: true,
            ..certs.config()
        };
        let source = Upstreams::new(&config).unwrap().get(&own.host()).unwrap();
        source.manifest(&app(), &v1()).await.unwrap();
    }
}

#[tokio::test]
async fn loopback_hosts_speak_plain_http_where_that_is_wanted() {
    let own = registry_with(&ImageBuilder::new(1).build()).await;
    let refused = Upstreams::new(&config()).unwrap().get(&own.host());
    assert!(
        matches!(refused, Err(Error::UnknownUpstream(_))),
        "{refused:?}"
    );
    let config = Config {
        plain_http_loopback: true,
        ..config()
    };
    let upstreams = Upstreams::new(&config).unwrap();
    for host in [own.host(), own.host().replace("127.0.0.1", "localhost")] {
        upstreams
            .get(&host)
            .unwrap()
            .manifest(&app(), &v1())
            .await
            .unwrap();
    }
    assert!(upstreams.get("10.0.0.1:5000").is_err());
    let with_tls = upstreams.get("127.0.0.1:443").unwrap();
    assert!(with_tls.manifest(&app(), &v1()).await.is_err());
}

#[tokio::test]
async fn a_directory_of_its_own_allows_a_private_address_and_the_default_does_not() {
    let own = registry_with(&ImageBuilder::new(1).build()).await;
    let certs = CertsDir::new();
    certs.write("_default", "hosts.toml", format!("[host.'{}']", own.url()));
    let upstreams = Upstreams::new(&certs.config()).unwrap();
    assert!(matches!(
        upstreams.get("10.0.0.1:5000"),
        Err(Error::UnknownUpstream(_))
    ));
    upstreams
        .get("a.example")
        .unwrap()
        .manifest(&app(), &v1())
        .await
        .unwrap();
    certs.write(
        "10.0.0.1:5000",
        "hosts.toml",
        format!("[host.'{}']", own.url()),
    );
    upstreams
        .get("10.0.0.1:5000")
        .unwrap()
        .manifest(&app(), &v1())
        .await
        .unwrap();
    assert!(upstreams.get("../x.y").is_err());
}
