//! Mirrors are asked first, each once. The registry itself serves the contents that they lack.

use starlift::registry::{Error, Secret, UpstreamConfig};
use starlift::transport::Upstreams;

use super::{app, at, config, read, source_of, v1};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Auth, Registry};

struct Trio {
    first: Registry,
    second: Registry,
    own: Registry,
    image: Image,
}

async fn trio() -> Trio {
    let image = ImageBuilder::new(1).build();
    let [first, second, own] = [
        Registry::start().await,
        Registry::start().await,
        Registry::start().await,
    ];
    for registry in [&first, &second, &own] {
        registry.push("library/app", "v1", &image);
    }
    Trio {
        first,
        second,
        own,
        image,
    }
}

impl Trio {
    fn upstream(&self) -> UpstreamConfig {
        UpstreamConfig {
            mirrors: vec![self.first.url(), self.second.url()],
            ..at(self.own.url())
        }
    }

    fn counts(&self) -> [usize; 3] {
        [&self.first, &self.second, &self.own].map(|registry| registry.seen().len())
    }
}

#[tokio::test]
async fn the_first_mirror_that_has_it_answers() {
    let trio = trio().await;
    let source = source_of(config(), trio.upstream());
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(trio.counts(), [1, 0, 0]);
    trio.first.on("/").answer(500, &[]);
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(trio.counts(), [2, 1, 0]);
    trio.second.on("/").wrong_bytes();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(trio.counts(), [3, 2, 1]);
    trio.own.on("/").times(1).answer(500, &[]);
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(
        trio.counts(),
        [4, 2, 3],
        "the registry itself is asked again, before the mirror with wrong bytes"
    );
    trio.own.on("/").answer(404, &[]);
    assert!(matches!(
        source.manifest(&app(), &v1()).await,
        Err(Error::NotFound)
    ));
}

#[tokio::test]
async fn a_blob_goes_on_at_the_next_when_a_mirror_dies() {
    let trio = trio().await;
    let layer = trio.image.layers()[0].clone();
    let digest = starlift::oci::Digest::sha256_of(&layer);
    trio.first.on("/blobs/").cut_after(10);
    let source = source_of(config(), trio.upstream());
    let (got, ended) = read(&source, &digest, None).await;
    ended.unwrap();
    assert_eq!(got, layer);
    assert_eq!(trio.counts(), [1, 1, 0]);
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(
        trio.counts(),
        [1, 2, 0],
        "the mirror that broke off is asked last"
    );
}

#[tokio::test]
async fn a_mirror_that_lied_is_not_asked_for_this_blob_again() {
    let trio = trio().await;
    let layer = trio.image.layers()[0].clone();
    let digest = starlift::oci::Digest::sha256_of(&layer);
    trio.first.on("/blobs/").wrong_bytes();
    let source = source_of(config(), trio.upstream());
    assert!(matches!(
        read(&source, &digest, None).await.1,
        Err(Error::WrongDigest { .. })
    ));
    let (got, ended) = read(&source, &digest, None).await;
    ended.unwrap();
    assert_eq!(got, layer);
    assert_eq!(trio.counts(), [1, 1, 0]);
}

#[tokio::test]
async fn a_reader_of_a_part_reports_wrong_bytes_and_gets_others() {
    let trio = trio().await;
    let digest = starlift::oci::Digest::sha256_of(&trio.image.layers()[0]);
    let source = source_of(config(), trio.upstream());
    let body = source.blob(&app(), &digest, Some(0..10)).await.unwrap();
    body.origin.unwrap().report_bad();
    source.blob(&app(), &digest, Some(0..10)).await.unwrap();
    assert_eq!(trio.counts(), [1, 1, 0]);
}

/// Returns a host that accepts connections and answers none. The listener must be kept.
async fn silent_host() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn a_silent_host_costs_one_wait() {
    let (silent, url) = silent_host().await;
    let config = starlift::registry::Config {
        read_timeout: std::time::Duration::from_millis(600),
        ..config()
    };
    let source = source_of(config, at(url));
    for _ in 0..3 {
        assert!(matches!(
            source.manifest(&app(), &v1()).await,
            Err(Error::Unavailable(_))
        ));
    }
    let asked = async {
        let mut connections = 0;
        while tokio::time::timeout(std::time::Duration::ZERO, silent.accept())
            .await
            .is_ok()
        {
            connections += 1;
        }
        connections
    };
    assert_eq!(asked.await, 1);
}

#[tokio::test]
async fn a_mirror_behind_a_silent_one_is_asked_at_once_the_second_time() {
    let trio = trio().await;
    let (silent, url) = silent_host().await;
    let config = starlift::registry::Config {
        read_timeout: std::time::Duration::from_millis(600),
        ..config()
    };
    let source = source_of(
        config,
        UpstreamConfig {
            mirrors: vec![url, trio.first.url()],
            ..at(trio.own.url())
        },
    );
    source.manifest(&app(), &v1()).await.unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(trio.counts(), [2, 0, 0]);
    drop(silent);
}

#[tokio::test]
async fn a_mirror_gets_the_registrys_name_and_no_secret() {
    let trio = trio().await;
    let auth = || Auth::Basic {
        user: "me",
        password: "secret",
    };
    trio.first.require(auth());
    trio.second.on("/").answer(404, &[]);
    trio.own.require(auth());
    let upstream = UpstreamConfig {
        username: Some("me".to_owned()),
        password: Some(Secret::new("secret")),
        ..trio.upstream()
    };
    let config = starlift::registry::Config {
        upstream: [("a.example".to_owned(), upstream)].into(),
        ..config()
    };
    let source = Upstreams::new(&config).unwrap().get("a.example").unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(
        trio.first
            .seen()
            .iter()
            .filter_map(|seen| seen.authorization())
            .count(),
        0
    );
    assert!(
        trio.first.seen()[0]
            .path_and_query
            .ends_with("?ns=a.example")
    );
    assert_eq!(trio.own.count("GET", "ns="), 0);
}
