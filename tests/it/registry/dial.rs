//! The hosts that may be dialled, including those behind redirects.

use starlift::registry::{Config, Error};
use starlift::transport::Upstreams;

use super::{app, at, config, read, source, source_of, v1};
use crate::support::image::ImageBuilder;
use crate::support::registry::Registry;

async fn redirected_to(location: &str, config: Config) -> Result<(), Error> {
    let registry = Registry::start().await;
    registry.on("/manifests/").redirect(location);
    source_of(config, at(registry.url()))
        .manifest(&app(), &v1())
        .await
        .map(drop)
}

#[tokio::test]
async fn redirects_to_private_addresses_are_refused() {
    let inner = Registry::start().await;
    let port = inner.host().rsplit_once(':').unwrap().1.to_owned();
    for location in [
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("http://127.0.0.1:{port}/x"),
        format!("http://0:{port}/x"),
        format!("http://[::ffff:127.0.0.1]:{port}/x"),
        format!("http://localhost:{port}/x"),
        "file:///etc/passwd".to_owned(),
    ] {
        let answer = redirected_to(&location, config()).await;
        assert!(
            matches!(answer, Err(Error::Refused(_))),
            "{location}: {answer:?}"
        );
    }
    assert!(inner.seen().is_empty());
}

#[tokio::test]
async fn a_private_address_can_be_allowed_by_name_or_all_at_once() {
    let inner = Registry::start().await;
    let image = ImageBuilder::new(1).build();
    inner.push("library/app", "v1", &image);
    let port = inner.host().rsplit_once(':').unwrap().1.to_owned();
    let location = format!("http://localhost:{port}/v2/library/app/manifests/v1");
    let by_name = Config {
        allowed_hosts: vec!["localhost".parse().unwrap()],
        ..config()
    };
    redirected_to(&location, by_name).await.unwrap();
    redirected_to(
        &location,
        Config {
            allow_private: true,
            ..config()
        },
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_redirect_loop_comes_to_an_end() {
    let registry = Registry::start().await;
    registry
        .on("/manifests/")
        .redirect("/v2/library/app/manifests/v1");
    let answer = source(&registry).manifest(&app(), &v1()).await;
    assert!(matches!(answer, Err(Error::Malformed(_))), "{answer:?}");
    assert_eq!(registry.seen().len(), 6);
}

#[tokio::test]
async fn a_short_chain_of_redirects_is_followed() {
    let registry = Registry::start().await;
    let digest = registry.put_blob("some bytes");
    registry.on("/blobs/").redirect("/hop");
    registry
        .on("/hop")
        .redirect(&format!("/elsewhere/{digest}"));
    let (got, ended) = read(&source(&registry), &digest, None).await;
    ended.unwrap();
    assert_eq!(got, b"some bytes");
}

#[tokio::test]
async fn a_host_that_is_not_configured_has_public_addresses_only() {
    let upstreams = Upstreams::new(&config()).unwrap();
    for name in [
        "127.0.0.1:5000",
        "[::1]:5000",
        "10.0.0.1",
        "library",
        "a/b.c",
        "a.b@c.d",
        "",
        "a.b?c",
        "no host.x",
    ] {
        let answer = upstreams.get(name);
        assert!(
            matches!(answer, Err(Error::UnknownUpstream(_))),
            "{name}: {answer:?}"
        );
    }
    let answer = upstreams
        .get("localhost")
        .unwrap()
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
}

#[tokio::test]
async fn which_hosts_are_served_can_be_narrowed() {
    let config = Config {
        allow: vec!["*.example.com".parse().unwrap()],
        ..config()
    };
    let upstreams = Upstreams::new(&config).unwrap();
    assert!(upstreams.get("registry.example.com").is_ok());
    assert!(matches!(
        upstreams.get("quay.io"),
        Err(Error::UnknownUpstream(_))
    ));
    assert!(matches!(
        upstreams.get("docker.io"),
        Err(Error::UnknownUpstream(_))
    ));
}

#[tokio::test]
async fn docker_hub_has_several_names_and_one_entry() {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", &ImageBuilder::new(1).build());
    let config = Config {
        upstream: [("docker.io".to_owned(), at(registry.url()))].into(),
        ..config()
    };
    let upstreams = Upstreams::new(&config).unwrap();
    for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        assert!(upstreams.is_configured(name));
        let source = upstreams.get(name).unwrap();
        assert_eq!(source.name(), "docker.io");
        source.manifest(&app(), &v1()).await.unwrap();
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    for url in [
        "ftp://a.example",
        "https://me:secret@a.example",
        "no url at all",
    ] {
        let config = Config {
            upstream: [("x".to_owned(), at(url.to_owned()))].into(),
            ..config()
        };
        let error = Upstreams::new(&config).unwrap_err();
        assert!(matches!(error, Error::Configuration(_)), "{url}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
}
