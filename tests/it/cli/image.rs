//! Images between registries, layouts and archives: `convert`, `inspect` and `verify`.

use serde_json::{Value, json};
use starlift::oci::Digest;

use super::{Desk, check_layout};
use crate::support::image::{Compression, Image, ImageBuilder};
use crate::support::registry::Registry;

fn two_platforms() -> Image {
    let arm = ImageBuilder::new(2)
        .architecture("arm64")
        .compression(Compression::Zstd)
        .build();
    Image::index(
        vec![
            ("linux/amd64", ImageBuilder::new(1).build()),
            ("linux/arm64", arm),
        ],
        true,
    )
}

async fn registry(image: &Image) -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", image);
    let name = format!("{}/library/app:v1", registry.host());
    (registry, name)
}

fn kinds(report: &Value) -> Vec<&str> {
    let layers = report["images"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["layers"].as_array().unwrap());
    layers
        .map(|layer| layer["kind"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn from_a_registry_into_a_layout_and_verified() {
    let desk = Desk::new();
    let (_registry, source) = registry(&ImageBuilder::new(1).layers(3).build()).await;
    let made = desk
        .run(&["convert", "--json", &source, "oci:out:v1"])
        .await
        .json();
    check_layout(&desk.path("out"));
    assert_eq!(desk.names(), ["out"]);
    let report = desk.run(&["inspect", "--json", "oci:out:v1"]).await.json();
    assert_eq!(report["digest"], made["converted"]);
    assert_eq!(kinds(&report), ["estargz"; 3]);
    for layer in report["images"][0]["layers"].as_array().unwrap() {
        assert_eq!(layer["toc"]["named_by_manifest"], true);
    }
    desk.run(&["verify", "oci:out:v1", "--against", &source])
        .await
        .text();
}

#[tokio::test]
async fn an_index_keeps_every_child_and_platform_takes_one() {
    let desk = Desk::new();
    let (_registry, source) = registry(&two_platforms()).await;
    desk.run(&["convert", &source, "oci:out:all"]).await.text();
    desk.run(&[
        "convert",
        &source,
        "oci:out:arm",
        "--platform",
        "linux/arm64",
    ])
    .await
    .text();
    check_layout(&desk.path("out"));
    let all = desk.run(&["inspect", "--json", "oci:out:all"]).await.json();
    assert_eq!(all["images"].as_array().unwrap().len(), 4);
    let arm = desk.run(&["inspect", "--json", "oci:out:arm"]).await.json();
    assert_eq!(arm["images"][0]["platform"], "linux/arm64");
    assert_eq!(arm["images"][0]["digest"], arm["digest"]);
    desk.run(&["verify", "oci:out:all", "--against", &source])
        .await
        .text();
    assert!(
        desk.run(&["convert", &source, "oci:out:x", "--platform", "linux/s390x"])
            .await
            .error()
            .contains("s390x")
    );
}

#[tokio::test]
async fn from_a_layout_to_a_registry_and_back_as_an_archive() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(3).docker().build()).await;
    desk.run(&["convert", &source, "oci:out:v1"]).await.text();
    let pushed = format!("{}/copies/app:v2", registry.host());
    let made = desk
        .run(&["convert", "--json", "--fast", "oci:out:v1", &pushed])
        .await
        .json();
    let (_, bytes) = registry.manifest("copies/app", "v2").unwrap();
    assert_eq!(
        made["converted"],
        starlift::oci::Digest::sha256_of(&bytes).to_string()
    );
    desk.run(&["convert", &source, "docker-archive:out.tar:library/app:1"])
        .await
        .text();
    let report = desk
        .run(&["inspect", "--json", "docker-archive:out.tar"])
        .await
        .json();
    assert_eq!(report["images"][0]["platform"], "linux/amd64");
    assert_eq!(desk.names(), ["out", "out.tar"]);
}

#[tokio::test]
async fn layouts_get_ocis_types_and_registries_when_asked() {
    let desk = Desk::new();
    let index = Image::index(
        vec![("linux/amd64", ImageBuilder::new(4).docker().build())],
        true,
    );
    let (registry, source) = registry(&index).await;
    let copy = |tag: &str| format!("{}/copies/app:{tag}", registry.host());
    desk.run(&["convert", &source, "oci:out:v1"]).await.text();
    desk.run(&["convert", &source, &copy("docker")])
        .await
        .text();
    desk.run(&["convert", "--oci", &source, &copy("oci")])
        .await
        .text();
    for (name, is_docker) in [
        ("oci:out:v1", false),
        (&copy("docker"), true),
        (&copy("oci"), false),
    ] {
        let report = desk.run(&["inspect", "--json", name]).await.json();
        assert_eq!(
            report["images"][0]
                .to_string()
                .contains("vnd.docker.distribution"),
            is_docker,
            "{name}: {report}"
        );
        desk.run(&["verify", name, "--against", &source])
            .await
            .text();
    }
    check_layout(&desk.path("out"));
}

#[tokio::test]
async fn nested_and_sparse_indexes_are_converted_inspected_and_verified() {
    let desk = Desk::new();
    let nested = |seed: u64, architecture: &str| {
        let platform = format!("linux/{architecture}");
        Image::index(
            vec![(
                &*platform,
                ImageBuilder::new(seed).architecture(architecture).build(),
            )],
            true,
        )
    };
    let (amd, arm) = (nested(1, "amd64"), nested(2, "arm64"));
    let lost = arm.children[0].digest();
    let (registry, source) = registry(&Image::index(
        vec![("linux/amd64", amd), ("linux/arm64", arm)],
        false,
    ))
    .await;
    desk.run(&["convert", "--all-platforms", &source, "oci:out:all"])
        .await
        .text();
    desk.run(&[
        "convert",
        "--platform",
        "linux/arm64",
        &source,
        "oci:out:arm",
    ])
    .await
    .text();
    let all = desk.run(&["inspect", "--json", "oci:out:all"]).await.json();
    assert_eq!(all["images"].as_array().unwrap().len(), 4);
    desk.run(&["verify", "oci:out:all", "--against", &source])
        .await
        .text();
    let arm = desk.run(&["inspect", "--json", "oci:out:arm"]).await.json();
    assert_eq!(arm["images"][0]["platform"], "linux/arm64");

    registry.on(&format!("/manifests/{lost}")).answer(404, &[]);
    desk.run(&["inspect", &source]).await.text();
    desk.run(&["convert", &source, "oci:out:sparse"])
        .await
        .text();
    desk.run(&["verify", "oci:out:sparse", "--against", &source])
        .await
        .text();
    assert!(
        desk.run(&["convert", &source, "oci:out:x", "--platform", "linux/arm64"])
            .await
            .error()
            .contains("arm64")
    );
    check_layout(&desk.path("out"));
}

#[tokio::test]
async fn external_tocs_go_along_and_are_read_again() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(3).build()).await;
    let copy = format!("{}/copies/app:v1", registry.host());
    for target in ["oci:out:v1", "docker-archive:out.tar:app:v1", &copy] {
        desk.run(&["convert", "--external-toc", &source, target])
            .await
            .text();
        desk.run(&["verify", target, "--against", &source])
            .await
            .text();
    }
    assert!(registry.manifest("copies/app", "v1-esgztoc").is_some());
    desk.run(&["convert", "oci:out:v1", "oci:again:v2"])
        .await
        .text();
    desk.run(&["verify", "oci:again:v2", "--against", &source])
        .await
        .text();
    desk.run(&["inspect", "docker-archive:out.tar"])
        .await
        .text();
}

#[tokio::test]
async fn a_record_puts_files_first_in_the_layers_it_names() {
    let desk = Desk::new();
    let index = two_platforms();
    let (registry, source) = registry(&index).await;
    let amd = index.document()["manifests"][0]["digest"].clone();
    let shared =
        |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!({"path": name})).collect() };
    let lines = [
        vec![json!({"path": "layer1/file3", "manifestDigest": amd, "layerIndex": 1})],
        shared(&["layer0/file2", "no/such/file"]),
        // Names another image: applies to every layer that has the file.
        vec![json!({"path": "layer0/file1", "manifestDigest": index.digest(), "layerIndex": 1})],
        // The layer has no such file.
        vec![json!({"path": "layer0/file0", "manifestDigest": amd, "layerIndex": 1})],
    ];
    let record: String = lines
        .concat()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(desk.path("record"), record).unwrap();
    let words = [
        "convert",
        "--json",
        "--store",
        "store",
        "--estargz-record-in",
        "record",
        &source,
        "oci:out:v1",
    ];
    let made = desk.run(&words).await.json();
    assert_eq!(
        made["passed_through"].as_array().unwrap().len(),
        2,
        "the attestations: {}",
        made["passed_through"]
    );
    let mut fronts = Vec::new();
    for (platform, layer) in [
        ("linux/amd64", "0"),
        ("linux/amd64", "1"),
        ("linux/arm64", "1"),
    ] {
        let words = [
            "inspect",
            "--toc",
            "--platform",
            platform,
            "--layer",
            layer,
            "oci:out:v1",
        ];
        let toc: Value = serde_json::from_str(&desk.run(&words).await.text()).unwrap();
        let names = toc["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned());
        fronts.push(
            names
                .take_while(|name| name != ".prefetch.landmark")
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(fronts[0], ["layer0/", "layer0/file2", "layer0/file1"]);
    assert_eq!(fronts[1], ["layer1/", "layer1/file3"]);
    assert_eq!(fronts[2], [""; 0], "a layer without any of these files");
    desk.run(&["verify", "oci:out:v1", "--against", &source])
        .await
        .text();

    let layer = Digest::sha256_of(&ImageBuilder::new(1).build().layers()[0]).to_string();
    registry.forget_requests();
    assert_eq!(desk.run(&words).await.json(), made);
    assert_eq!(
        registry.count("GET", &layer),
        0,
        "the layer is found in the store"
    );
    std::fs::write(desk.path("record"), "{\"path\":\"layer0/file2\"}").unwrap();
    assert_ne!(
        desk.run(&words).await.json()["converted"],
        made["converted"]
    );
    assert_eq!(
        registry.count("GET", &layer),
        1,
        "another record needs another conversion"
    );
    let layers = |image: &Value| -> Vec<Value> {
        image["images"][0]["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["digest"].clone())
            .collect()
    };
    let lazy = made["images"][0]["digest"].as_str().unwrap();
    let again = [
        "convert",
        "--json",
        "--record-in",
        "record",
        &format!("oci:out@{lazy}"),
        "oci:again:v1",
    ];
    let renewed = desk.run(&again).await.json();
    assert!(
        layers(&renewed)
            .iter()
            .zip(&layers(&made))
            .all(|(new, old)| new != old),
        "in the order of the new record"
    );
    let toc: Value = serde_json::from_str(
        &desk
            .run(&["inspect", "--toc", "--layer", "0", "oci:again:v1"])
            .await
            .text(),
    )
    .unwrap();
    let names = toc["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap());
    assert!(
        names
            .clone()
            .take(3)
            .eq(["layer0/", "layer0/file2", ".prefetch.landmark"]),
        "{toc}"
    );
    assert_eq!(names.filter(|name| name.ends_with("landmark")).count(), 1);
    desk.run(&[
        "verify",
        "oci:again:v1",
        "--against",
        &format!("oci:out@{lazy}"),
    ])
    .await
    .text();
    let kept = desk.run(&[&again[..], &["--reuse"]].concat()).await.json();
    assert_eq!(layers(&kept), layers(&made));
    let refused = desk.run(&[&words[..], &["--keep-diff-id"]].concat()).await;
    assert_eq!(
        refused.code,
        Some(2),
        "diff-ids cover the order of the files"
    );
}

#[tokio::test]
async fn verify_against_another_image_fails() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(1).build()).await;
    registry.push("library/app", "v2", &ImageBuilder::new(9).build());
    desk.run(&["convert", &source, "oci:out:v1"]).await.text();
    let other = source.replace(":v1", ":v2");
    let ran = desk
        .run(&["verify", "oci:out:v1", "--against", &other])
        .await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(String::from_utf8_lossy(&ran.stdout).contains("DIFFERS"));
}

#[tokio::test]
async fn inspect_reads_only_footers_and_tocs() {
    let desk = Desk::new();
    let (registry, source) = registry(
        &ImageBuilder::new(1)
            .layers(1)
            .files(40)
            .max_file(200_000)
            .build(),
    )
    .await;
    let pushed = format!("{}/copies/app:v2", registry.host());
    desk.run(&["convert", &source, &pushed]).await.text();
    desk.run(&["inspect", &pushed]).await.text();
    let seen = registry.seen();
    let blobs = seen
        .iter()
        .filter(|seen| seen.method == "GET" && seen.path_and_query.contains("/copies/app/blobs/"));
    let whole = blobs
        .filter(|seen| !seen.headers.contains_key("range"))
        .count();
    assert_eq!(whole, 1, "only the configuration is read whole");
}

#[tokio::test]
async fn a_failed_conversion_of_an_image_leaves_no_files() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(1).build()).await;
    let missing = source.replace(":v1", ":v9");
    desk.run(&["convert", &missing, "oci:out:v1"]).await.error();
    assert!(desk.names().is_empty());
    registry.on("/blobs/").answer(404, &[]);
    desk.run(&["convert", &source, "docker-archive:out.tar"])
        .await
        .error();
    assert!(!desk.names().contains(&"out.tar".to_owned()));
    assert!(
        desk.names().iter().all(|name| !name.starts_with('.')),
        "{:?}",
        desk.names()
    );
    desk.run(&["inspect", "not an image"]).await.error();
}
