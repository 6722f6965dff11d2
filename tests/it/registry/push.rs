//! Writing to a registry.

use std::time::Duration;

use futures::StreamExt as _;
use starlift::oci::{Digest, Manifest, Reference, media_type};
use starlift::registry::{Config, Error, Secret, UpstreamConfig};
use starlift::transport::Source;

use super::{app, at, config, source, source_of, v1};
use crate::support::image::{Image, ImageBuilder};
use crate::support::registry::{Auth, Lacks, Registry, TokenAuth};

async fn push(source: &Source, image: &Image) -> Result<(), Error> {
    for blob in &image.blobs {
        let halves = [blob.slice(..blob.len() / 2), blob.slice(blob.len() / 2..)].map(Ok);
        let stream = futures::stream::iter(halves).boxed();
        source
            .push_blob(&app(), &Digest::sha256_of(blob), blob.len() as u64, stream)
            .await?;
    }
    let manifest = Manifest::new(image.media_type.clone(), image.bytes.clone());
    source
        .push_manifest(&app(), &Reference::Digest(image.digest()), &manifest)
        .await?;
    source.push_manifest(&app(), &v1(), &manifest).await
}

#[tokio::test]
async fn a_pushed_image_can_be_pulled_and_is_not_sent_twice() {
    let image = ImageBuilder::new(1).max_file(200_000).build();
    for auth in [
        None,
        Some(Auth::Basic {
            user: "me",
            password: "secret",
        }),
        Some(Auth::Token(TokenAuth::user("me", "secret"))),
    ] {
        let registry = Registry::start().await;
        registry.lack(Lacks {
            monolithic_upload: true,
            ..Lacks::default()
        });
        if let Some(auth) = auth {
            registry.require(auth);
        }
        let upstream = UpstreamConfig {
            username: Some("me".to_owned()),
            password: Some(Secret::new("secret")),
            ..at(registry.url())
        };
        let source = source_of(config(), upstream);
        push(&source, &image).await.unwrap();
        assert_eq!(
            registry.manifest("library/app", "v1").unwrap().0,
            media_type::OCI_MANIFEST
        );
        assert_eq!(
            source.manifest(&app(), &v1()).await.unwrap().bytes,
            image.bytes
        );
        registry.forget_requests();
        push(&source, &image).await.unwrap();
        assert_eq!(
            registry.count("POST", "/uploads/"),
            0,
            "stored blobs are not sent again"
        );
    }
}

#[tokio::test]
async fn a_push_that_goes_wrong_is_an_error() {
    let registry = Registry::start().await;
    let source = source(&registry);
    let wrong = futures::stream::iter([Ok("other".into())]).boxed();
    let answer = source
        .push_blob(&app(), &Digest::sha256_of(b"bytes"), 5, wrong)
        .await;
    assert!(matches!(answer, Err(Error::Malformed(_))), "{answer:?}");
    let broken = futures::stream::iter([Err(std::io::Error::other("the source broke"))]).boxed();
    let answer = source
        .push_blob(&app(), &Digest::sha256_of(b"bytes"), 5, broken)
        .await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    registry
        .on("/uploads/")
        .method("POST")
        .answer(202, &[("location", "http://169.254.169.254/x")]);
    let stream = futures::stream::iter([Ok("bytes".into())]).boxed();
    let answer = source
        .push_blob(&app(), &Digest::sha256_of(b"bytes"), 5, stream)
        .await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
}

#[tokio::test]
async fn a_long_upload_is_not_taken_for_silence() {
    let registry = Registry::start().await;
    let patience = Duration::from_millis(50);
    let source = source_of(
        Config {
            read_timeout: patience,
            ..config()
        },
        at(registry.url()),
    );
    let slow = futures::stream::iter(["by", "te", "s"]).then(move |part| async move {
        tokio::time::sleep(patience).await;
        Ok(part.into())
    });
    let digest = Digest::sha256_of(b"bytes");
    source
        .push_blob(&app(), &digest, 5, slow.boxed())
        .await
        .unwrap();
    assert_eq!(registry.blob(&digest).as_deref(), Some(&b"bytes"[..]));
}

#[tokio::test]
async fn a_layout_is_not_written_to() {
    let source = source_of(config(), at("oci:/nonexistent".to_owned()));
    let manifest = Manifest::new(media_type::OCI_MANIFEST.to_owned(), "{}".into());
    let answer = source.push_manifest(&app(), &v1(), &manifest).await;
    assert!(matches!(answer, Err(Error::ReadOnly(name)) if name == "local"));
}
