//! Lists: tags in pages, and referrers.

use starlift::oci::Digest;
use starlift::oci::media_type::OCI_INDEX;

use super::Stage;
use crate::support::image::ImageBuilder;

#[tokio::test]
async fn tags_come_in_lexical_order_and_in_pages() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    for tag in ["b", "a", "c"] {
        stage.registry.tag("app", tag, &image.digest());
    }
    let all = stage.get_and_head("/v2/local/app/tags/list", &[]).await;
    assert_eq!(
        all.json(),
        serde_json::json!({"name": "local/app", "tags": ["a", "b", "c", "v1"]})
    );
    assert_eq!(all.header("link"), "");
    let first = stage.get("/v2/app/tags/list?n=3&ns=local").await;
    assert_eq!(first.json()["tags"], serde_json::json!(["a", "b", "c"]));
    let link = first
        .header("link")
        .strip_prefix('<')
        .unwrap()
        .strip_suffix(">; rel=\"next\"")
        .unwrap();
    let second = stage.get(link).await;
    assert_eq!(second.json()["tags"], serde_json::json!(["v1"]));
    assert_eq!(second.header("link"), "");
    let last = stage.get("/v2/local/app/tags/list?last=b").await;
    assert_eq!(last.json()["tags"], serde_json::json!(["c", "v1"]));
}

#[tokio::test]
async fn a_list_without_a_length_has_a_thousand_tags() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let all: Vec<String> = (0..2500).map(|number| format!("t{number:04}")).collect();
    for tag in &all {
        stage.registry.tag("app", tag, &image.digest());
    }
    let (mut listed, mut next) = (Vec::new(), "/v2/local/app/tags/list".to_owned());
    for expected in [1000, 1000, 501] {
        let page = stage.get(&next).await;
        let tags: Vec<String> = serde_json::from_value(page.json()["tags"].clone()).unwrap();
        assert_eq!(tags.len(), expected);
        listed.extend(tags);
        let link = page.header("link").strip_prefix('<');
        next = link
            .and_then(|link| link.split('>').next())
            .unwrap_or_default()
            .to_owned();
    }
    assert_eq!((next.as_str(), listed.pop().as_deref()), ("", Some("v1")));
    assert_eq!(listed, all);
}

#[tokio::test]
async fn a_page_of_none_is_empty_and_a_page_of_nonsense_an_error() {
    let stage = Stage::new().await;
    stage.push_app();
    let none = stage.get("/v2/local/app/tags/list?n=0").await;
    assert_eq!((none.status, none.header("link")), (200, ""));
    assert_eq!(none.json()["tags"], serde_json::json!([]));
    for n in ["-1", "x", "", "1.5"] {
        let answer = stage.get(&format!("/v2/local/app/tags/list?n={n}")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "PAGINATION_NUMBER_INVALID"),
            "{n}"
        );
    }
}

#[tokio::test]
async fn referrers_of_a_converted_image_are_those_of_its_source() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let sbom = image.referrer("application/vnd.example.sbom");
    let signature = image.referrer("application/vnd.example.signature");
    stage.registry.push_untagged("app", &sbom);
    stage.registry.push_untagged("app", &signature);
    let converted = stage.get("/v2/local/app/manifests/v1").await;
    let of_converted = stage
        .get_and_head(
            &format!("/v2/local/app/referrers/{}", converted.digest()),
            &[],
        )
        .await;
    assert_eq!(of_converted.header("content-type"), OCI_INDEX);
    assert_eq!(of_converted.header("oci-filters-applied"), "");
    assert_eq!(
        of_converted.json()["manifests"].as_array().unwrap().len(),
        2
    );
    let path = format!(
        "/v2/local/app/referrers/{}?artifactType=application/vnd.example.sbom",
        converted.digest()
    );
    let filtered = stage.get(&path).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        filtered.json()["manifests"][0]["digest"],
        sbom.digest().to_string()
    );
    assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_source_image_lists_its_converted_image() {
    let stage = Stage::new().await;
    let image = stage.push_app();
    let path = format!("/v2/local/app/referrers/{}", image.digest());
    assert_eq!(
        stage.get(&path).await.json()["manifests"],
        serde_json::json!([])
    );
    let converted = stage.get("/v2/local/app/manifests/v1").await;
    let listed = stage.get(&path).await.json();
    assert_eq!(listed["manifests"][0]["digest"], converted.digest());
    assert_eq!(
        listed["manifests"][0]["artifactType"],
        "application/vnd.dev.starlift.converted-image.v1"
    );
}

#[tokio::test]
async fn referrers_of_anything_are_a_list() {
    let stage = Stage::new().await;
    let digest = Digest::sha256_of(b"unknown");
    for repository in ["local/app", "local/never/heard/of"] {
        let answer = stage
            .get(&format!("/v2/{repository}/referrers/{digest}"))
            .await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, OCI_INDEX)
        );
        assert_eq!(answer.json()["manifests"], serde_json::json!([]));
    }
    stage
        .registry
        .push("app", "v1", &ImageBuilder::new(1).build());
    stage.registry.lack(crate::support::registry::Lacks {
        referrers: true,
        ..Default::default()
    });
    assert_eq!(
        stage
            .get(&format!("/v2/local/app/referrers/{digest}"))
            .await
            .status,
        200
    );
}
