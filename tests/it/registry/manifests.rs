//! Manifests, tags and referrers, and the errors for an upstream's refusals.

use std::time::Duration;

use starlift::oci::manifest::MAX_MANIFEST_BYTES;
use starlift::oci::{Digest, Reference, Repository, media_type};
use starlift::registry::{Config, Error};

use super::{app, at, config, source, source_of, v1};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Gate, Lacks, Registry};

async fn with_image() -> (Registry, Image) {
    let registry = Registry::start().await;
    let image = ImageBuilder::new(1).docker().build();
    registry.push("library/app", "v1", &image);
    (registry, image)
}

#[tokio::test]
async fn the_bytes_are_the_upstreams_by_tag_and_by_digest() {
    let (registry, image) = with_image().await;
    let source = source(&registry);
    for reference in [v1(), Reference::Digest(image.digest())] {
        let manifest = source.manifest(&app(), &reference).await.unwrap();
        assert_eq!(
            (&manifest.bytes, &manifest.digest),
            (&image.bytes, &image.digest())
        );
        assert_eq!(manifest.media_type, media_type::DOCKER_MANIFEST);
    }
    let headers = &registry.seen()[0].headers;
    let accepted = headers["accept"].to_str().unwrap();
    for wanted in [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST_LIST,
        media_type::DOCKER_MANIFEST,
    ] {
        assert!(accepted.contains(wanted), "{accepted}");
    }
    assert_eq!(headers["accept-encoding"], "identity");
    assert!(
        headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("starlift/")
    );
}

#[tokio::test]
async fn resolving_sends_only_a_head() {
    let (registry, image) = with_image().await;
    let found = source(&registry).resolve(&app(), &v1()).await.unwrap();
    assert_eq!(
        (found.digest, found.size),
        (image.digest(), image.bytes.len() as u64)
    );
    assert_eq!(found.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(registry.count("GET", ""), 0);
}

#[tokio::test]
async fn resolving_gets_the_manifest_where_the_head_says_too_little() {
    let (registry, image) = with_image().await;
    let source = source(&registry);
    registry.lack(Lacks {
        digest_header: true,
        ..Lacks::default()
    });
    assert_eq!(
        source.resolve(&app(), &v1()).await.unwrap().digest,
        image.digest()
    );
    registry.on("/manifests/").method("HEAD").answer(405, &[]);
    assert_eq!(
        source.resolve(&app(), &v1()).await.unwrap().digest,
        image.digest()
    );
    assert_eq!(registry.count("GET", ""), 2);
}

#[tokio::test]
async fn wrong_bytes_are_never_a_manifest() {
    let (registry, image) = with_image().await;
    registry.on("/manifests/").wrong_bytes();
    for reference in [v1(), Reference::Digest(image.digest())] {
        let answer = source(&registry).manifest(&app(), &reference).await;
        assert!(
            matches!(&answer, Err(Error::WrongDigest { expected }) if *expected == image.digest()),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_manifest_has_a_largest_size() {
    let registry = Registry::start().await;
    let largest = usize::try_from(MAX_MANIFEST_BYTES).unwrap();
    for (tag, length) in [("v1", largest + 1), ("v2", largest)] {
        let mut manifest = br#"{"schemaVersion":2,"config":{},"layers":[]}"#.to_vec();
        manifest.resize(length, b' ');
        let digest = registry.put_manifest("library/app", media_type::OCI_MANIFEST, manifest);
        registry.tag("library/app", tag, &digest);
    }
    let source = source(&registry);
    assert!(matches!(
        source.manifest(&app(), &v1()).await,
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        source.resolve(&app(), &v1()).await,
        Err(Error::TooLarge { .. })
    ));
    registry.on("/manifests/").without_header("content-length");
    assert!(matches!(
        source.manifest(&app(), &v1()).await,
        Err(Error::TooLarge { .. })
    ));
    assert!(
        source
            .manifest(&app(), &"v2".parse().unwrap())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_label_of_an_encoding_spoils_no_manifest() {
    let (registry, image) = with_image().await;
    registry
        .on("/manifests/")
        .with_header("content-encoding", "gzip");
    assert_eq!(
        source(&registry)
            .manifest(&app(), &v1())
            .await
            .unwrap()
            .bytes,
        image.bytes
    );
}

#[tokio::test]
async fn each_refusal_has_its_own_error() {
    let (registry, _) = with_image().await;
    let source = source(&registry);
    let mut answers = Vec::new();
    for status in [401, 403, 404, 400, 429] {
        registry.heal();
        registry
            .on("/manifests/")
            .answer(status, &[("retry-after", "60")]);
        answers.push(source.manifest(&app(), &v1()).await.unwrap_err());
    }
    assert!(matches!(answers[0], Error::Unauthorized));
    assert!(matches!(answers[1], Error::Denied));
    assert!(matches!(answers[2], Error::NotFound));
    assert!(matches!(answers[3], Error::Malformed(_)));
    let Error::TooManyRequests { retry_after } = answers[4] else {
        panic!("{:?}", answers[4])
    };
    assert_eq!(retry_after, Some(Duration::from_secs(60)));
    assert_eq!(
        registry.count("GET", ""),
        6,
        "only the 403, which may be momentary, causes a second request"
    );
}

#[tokio::test]
async fn momentary_failures_are_retried() {
    let (registry, _) = with_image().await;
    for (status, header) in [
        (500, "x-nothing"),
        (503, "x-nothing"),
        (408, "x-nothing"),
        (429, "retry-after"),
    ] {
        registry.heal();
        registry.forget_requests();
        registry
            .on("/manifests/")
            .times(2)
            .answer(status, &[(header, "0")]);
        source(&registry).manifest(&app(), &v1()).await.unwrap();
        assert_eq!(registry.count("GET", ""), 3, "{status}");
    }
}

#[tokio::test]
async fn trying_again_comes_to_an_end() {
    let (registry, _) = with_image().await;
    registry.on("/manifests/").answer(502, &[]);
    assert!(matches!(
        source(&registry).manifest(&app(), &v1()).await,
        Err(Error::Unavailable(_))
    ));
    assert_eq!(registry.count("GET", ""), 4);
}

#[tokio::test]
async fn a_silent_or_absent_upstream_is_unavailable() {
    let (registry, _) = with_image().await;
    let gate = Gate::new();
    registry.on("/manifests/").gate(&gate);
    let impatient = || Config {
        read_timeout: Duration::from_millis(50),
        retries: 0,
        ..config()
    };
    let answer = source_of(impatient(), at(registry.url()))
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    gate.reached(1).await;
    gate.open();
    let url = registry.url();
    drop(registry);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert_ne!(format!("http://{free}"), url);
    let answer = source_of(impatient(), at(format!("http://{free}")))
        .manifest(&app(), &v1())
        .await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_path_in_the_url_goes_in_front_of_repositories() {
    let registry = Registry::start().await;
    registry.push("proxy/library/app", "v1", &ImageBuilder::new(1).build());
    let source = source_of(config(), at(format!("{}/proxy/", registry.url())));
    assert!(source.manifest(&app(), &v1()).await.is_ok());
}

#[tokio::test]
async fn tags_come_in_pages() {
    let (registry, image) = with_image().await;
    for tag in ["a", "b", "c"] {
        registry.tag("library/app", tag, &image.digest());
    }
    let source = source(&registry);
    let page = source.tags(&app(), Some(2), Some("a")).await.unwrap();
    assert_eq!(
        (page.tags, page.more),
        (vec!["b".to_owned(), "c".to_owned()], true)
    );
    let rest = source.tags(&app(), None, Some("c")).await.unwrap();
    assert_eq!((rest.tags, rest.more), (vec!["v1".to_owned()], false));
}

#[tokio::test]
async fn referrers_are_found_by_api_and_by_tag() {
    let (registry, image) = with_image().await;
    let signature = image.referrer("application/vnd.example.signature");
    let found = registry.push_untagged("library/app", &signature);
    let source = source(&registry);
    let referrers = source.referrers(&app(), &image.digest()).await.unwrap();
    assert_eq!(
        referrers
            .iter()
            .map(|referrer| &referrer.digest)
            .collect::<Vec<_>>(),
        [&found]
    );
    assert_eq!(
        referrers[0].rest["artifactType"],
        signature.document()["artifactType"]
    );

    registry.lack(Lacks {
        referrers: true,
        ..Lacks::default()
    });
    let none = source.referrers(&app(), &image.digest()).await.unwrap();
    assert!(none.is_empty());
    let index = Image::index(vec![("linux/amd64", signature)], false);
    registry.push(
        "library/app",
        &format!("sha256-{}", image.digest().hex()),
        &index,
    );
    let referrers = source.referrers(&app(), &image.digest()).await.unwrap();
    assert_eq!(
        referrers
            .iter()
            .map(|referrer| &referrer.digest)
            .collect::<Vec<_>>(),
        [&found]
    );
}

#[tokio::test]
async fn a_link_to_another_host_is_not_followed() {
    let (registry, image) = with_image().await;
    registry
        .on("/referrers/")
        .with_header("link", r#"<http://169.254.169.254/x>; rel="next""#);
    let answer = source(&registry).referrers(&app(), &image.digest()).await;
    assert!(matches!(answer, Err(Error::Malformed(_))), "{answer:?}");
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let (registry, _) = with_image().await;
    registry.on("/tags/").answer(200, &[]);
    let source = source(&registry);
    assert!(matches!(
        source.tags(&app(), None, None).await,
        Err(Error::Malformed(_))
    ));
    let absent: Repository = "no/such".parse().unwrap();
    assert!(matches!(
        source.manifest(&absent, &v1()).await,
        Err(Error::NotFound)
    ));
    let absent = Reference::Digest(Digest::sha256_of(b"absent"));
    assert!(matches!(
        source.resolve(&app(), &absent).await,
        Err(Error::NotFound)
    ));
}

/// Makes a registry that names its pages by tokens, as Quay does, with 40 tags on each page.
fn pages_by_token(registry: &Registry, tags: &[String]) {
    let pages: Vec<_> = tags.chunks(40).collect();
    for (number, page) in pages.iter().enumerate().rev() {
        let body = serde_json::json!({"name": "library/app", "tags": page}).to_string();
        let next = format!(
            "</v2/library/app/tags/list?n=40&next_page={}x>; rel=\"next\"",
            number + 1
        );
        let link = [("link", next.as_str())];
        let headers: &[_] = if number + 1 < pages.len() { &link } else { &[] };
        let path = if number == 0 {
            "/tags/list".to_owned()
        } else {
            format!("next_page={number}x")
        };
        registry.on(&path).reply(200, headers, body);
    }
}

#[tokio::test]
async fn pages_that_are_named_by_tokens_are_followed_and_given_in_order() {
    let registry = Registry::start().await;
    let tags: Vec<String> = (0..110)
        .rev()
        .map(|number| format!("v{number:03}"))
        .collect();
    pages_by_token(&registry, &tags);
    let source = source(&registry);
    let mut sorted = tags.clone();
    sorted.sort();
    let all = source.tags(&app(), None, None).await.unwrap();
    assert_eq!((all.tags, all.more), (sorted.clone(), false));
    assert_eq!(registry.seen().len(), 3);
    let (mut got, mut last) = (Vec::new(), None);
    loop {
        let page = source
            .tags(&app(), Some(25), last.as_deref())
            .await
            .unwrap();
        last = page.tags.last().cloned();
        got.extend(page.tags);
        if !page.more {
            break;
        }
    }
    assert_eq!(got, sorted);
    assert_eq!(
        registry.seen().len(),
        6,
        "the pages of one listing are fetched once"
    );
}

#[tokio::test]
async fn a_list_of_tags_without_an_end_is_given_up() {
    let registry = Registry::start().await;
    let next = "</v2/library/app/tags/list?next_page=again&x=1>; rel=\"next\"";
    registry
        .on("/tags/list")
        .reply(200, &[("link", next)], r#"{"tags":["a"]}"#);
    let page = source(&registry).tags(&app(), None, None).await.unwrap();
    assert_eq!(
        (page.tags, page.more),
        (vec!["a".to_owned()], false),
        "a page that names itself is the last"
    );
    assert_eq!(registry.seen().len(), 2);
}

#[tokio::test]
async fn referrers_of_a_hostile_registry_are_bounded() {
    let registry = Registry::start().await;
    let digest = Digest::sha256_of(b"x");
    let descriptor = format!(
        r#"{{"mediaType":"a","digest":"{digest}","size":1,"x":[{}0]}}"#,
        "0,".repeat(1 << 20)
    );
    let page = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
    let next = format!("</v2/library/app/referrers/{digest}?next=1>; rel=\"next\"");
    registry.on("/referrers/").reply(
        200,
        &[("content-type", media_type::OCI_INDEX), ("link", &next)],
        page,
    );
    assert!(
        source(&registry)
            .referrers(&app(), &digest)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(registry.seen().len(), 4, "two MiB each, eight in all");
}

#[tokio::test]
async fn an_invalid_digest_header_is_ignored() {
    let (registry, image) = with_image().await;
    registry
        .on("/manifests/")
        .with_header("docker-content-digest", "sha256:short");
    let source = source(&registry);
    assert_eq!(
        source.manifest(&app(), &v1()).await.unwrap().digest,
        image.digest()
    );
    assert_eq!(
        source.resolve(&app(), &v1()).await.unwrap().digest,
        image.digest()
    );
}

#[tokio::test]
async fn a_document_that_is_compressed_unasked_is_read() {
    use std::io::Write as _;
    let registry = Registry::start().await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(br#"{"name":"library/app","tags":["v1"]}"#)
        .unwrap();
    registry.on("/tags/list").reply(
        200,
        &[("content-encoding", "gzip")],
        encoder.finish().unwrap(),
    );
    assert_eq!(
        source(&registry)
            .tags(&app(), None, None)
            .await
            .unwrap()
            .tags,
        ["v1"]
    );
}
