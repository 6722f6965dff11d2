//! Mirrors are asked first, each once; whatever they lack comes from the registry itself.

use starlift::upstream::{Error, Secret, UpstreamConfig, Upstreams};

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
    let [first, second, own] = [Registry::start().await, Registry::start().await, Registry::start().await];
    for registry in [&first, &second, &own] {
        registry.push("library/app", "v1", &image);
    }
    Trio { first, second, own, image }
}

impl Trio {
    fn upstream(&self) -> UpstreamConfig {
        UpstreamConfig { mirrors: vec![self.first.url(), self.second.url()], ..at(self.own.url()) }
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
    assert_eq!(trio.counts(), [4, 3, 3], "only the registry itself is asked again");
    trio.own.on("/").answer(404, &[]);
    assert!(matches!(source.manifest(&app(), &v1()).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn a_blob_goes_on_at_the_next_when_a_mirror_dies() {
    let trio = trio().await;
    let layer = trio.image.layers()[0].clone();
    let digest = starlift::oci::Digest::sha256_of(&layer);
    trio.first.on("/blobs/").times(1).cut_after(10);
    trio.first.on("/blobs/").skip(1).answer(503, &[]);
    let source = source_of(config(), trio.upstream());
    let (got, ended) = read(&source, &digest, None).await;
    ended.unwrap();
    assert_eq!(got, layer);
    assert_eq!(trio.counts(), [2, 1, 0]);
}

#[tokio::test]
async fn a_mirror_is_told_whose_it_is_and_gets_no_secret() {
    let trio = trio().await;
    let auth = || Auth::Basic { user: "me", password: "secret" };
    trio.first.require(auth());
    trio.second.on("/").answer(404, &[]);
    trio.own.require(auth());
    let upstream =
        UpstreamConfig { username: Some("me".to_owned()), password: Some(Secret::new("secret")), ..trio.upstream() };
    let config = starlift::upstream::Config { upstream: [("a.example".to_owned(), upstream)].into(), ..config() };
    let source = Upstreams::new(&config).unwrap().get("a.example").unwrap();
    source.manifest(&app(), &v1()).await.unwrap();
    assert_eq!(trio.first.seen().iter().filter_map(|seen| seen.authorization()).count(), 0);
    assert!(trio.first.seen()[0].path_and_query.ends_with("?ns=a.example"));
    assert_eq!(trio.own.count("GET", "ns="), 0);
}
