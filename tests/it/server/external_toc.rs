//! `TAG-esgztoc`, the image in which stargz-snapshotter looks for the TOCs of layers without an
//! embedded TOC.

use bytes::Bytes;
use estargz::footer::{self, Form};
use estargz::toc::Limits;
use estargz::{Footer, UnverifiedToc};
use serde_json::Value;
use starlift::convert::{self, Format};
use starlift::oci::media_type::OCI_MANIFEST;
use starlift::store::Store;

use super::Stage;

async fn stage() -> Stage {
    let config = convert::Config {
        format: Format::EstargzExternalToc,
        ..convert::Config::default()
    };
    Stage::converting(Store::in_memory(), &config, |_| {}).await
}

async fn blob(stage: &Stage, descriptor: &serde_json::Value) -> Bytes {
    let answer = stage
        .get(&format!(
            "/v2/local/app/blobs/{}",
            descriptor["digest"].as_str().unwrap()
        ))
        .await;
    assert_eq!(
        (answer.status, answer.body.len() as u64),
        (200, descriptor["size"].as_u64().unwrap())
    );
    answer.body
}

#[tokio::test]
async fn the_image_of_external_tocs_lies_beside_the_tag() {
    let stage = stage().await;
    stage.push_app();
    let early = stage.get("/v2/local/app/manifests/v1-esgztoc").await;
    assert_eq!(
        (early.status, early.code().as_str()),
        (404, "MANIFEST_UNKNOWN"),
        "the request starts no conversion"
    );
    let converted = stage.get("/v2/local/app/manifests/v1").await.json();
    let answer = stage
        .get_and_head("/v2/local/app/manifests/v1-esgztoc", &[])
        .await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, OCI_MANIFEST)
    );
    let by_digest = stage
        .get_and_head(&format!("/v2/local/app/manifests/{}", answer.digest()), &[])
        .await;
    assert_eq!(by_digest.body, answer.body);
    let tocs = answer.json();
    blob(&stage, &tocs["config"]).await;
    for layer in converted["layers"].as_array().unwrap() {
        let names_it = |toc: &&Value| {
            toc["annotations"]["containerd.io/snapshot/stargz/layer.digest"] == layer["digest"]
        };
        let toc = tocs["layers"]
            .as_array()
            .unwrap()
            .iter()
            .find(names_it)
            .expect("a TOC of the layer");
        let (layer_bytes, section) = (blob(&stage, layer).await, blob(&stage, toc).await);
        let size = layer_bytes.len() as u64;
        let tail = footer::tail_range(size).start;
        let footer = Footer::parse(&layer_bytes[usize::try_from(tail).unwrap()..], size).unwrap();
        assert_eq!(footer.form(), Form::ExternalToc);
        let expected = layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
            .as_str()
            .unwrap();
        let toc = UnverifiedToc::parse(&section, &footer, &Limits::default()).unwrap();
        assert_eq!(toc.digest().to_string(), expected);
        assert!(
            toc.verify(&expected.parse().unwrap())
                .unwrap()
                .lookup("")
                .is_some()
        );
    }
}

#[tokio::test]
async fn a_tag_of_that_name_upstream_goes_first_and_without_tocs_there_is_no_such_image() {
    let stage = stage().await;
    let image = stage.push_app();
    stage.registry.push(
        "app",
        "own-esgztoc",
        &image.referrer("application/vnd.example"),
    );
    assert_eq!(
        stage
            .get("/v2/local/app/manifests/own-esgztoc")
            .await
            .status,
        200
    );
    assert_eq!(
        stage.get("/v2/local/app/manifests/v2-esgztoc").await.status,
        404
    );
    let plain = Stage::new().await;
    plain.push_app();
    assert_eq!(plain.get("/v2/local/app/manifests/v1").await.status, 200);
    assert_eq!(
        plain.get("/v2/local/app/manifests/v1-esgztoc").await.status,
        404
    );
}
