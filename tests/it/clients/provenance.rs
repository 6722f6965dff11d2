//! Nodes that require provenance: a pull of a signed image is lazy, and that of an image without a
//! statement fails with the reason, before anything of it is unpacked. Statements are copied by
//! clients that copy referrers.

use std::sync::Arc;

use prost::Message as _;
use serde_json::Value;
use starlift::containerd::runtime::v1::{ImageSpec, PullImageRequest};
use tonic::Request;

use crate::support::agent::Agent;
use crate::support::containerd::{Containerd, CriPull, Release, on_each_release};
use crate::support::cri::Kubelet;
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::fixture::{self, Fixture, Layout, sleeping_app};
use crate::support::keys::KeyFiles;
use crate::support::place::{Place, fetch};
use crate::support::pods::Pod;
use crate::support::registry::Registry;
use crate::support::starlift::Starlift;

fn pull(image: &str) -> Request<bytes::Bytes> {
    let pull = PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
        }),
        auth: None,
    };
    Request::new(pull.encode_to_vec().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_images_start_on_1_6() {
    only_signed_images_start(Release::V1_6, CriPull::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_images_start_on_2_4_by_a_local_pull() {
    only_signed_images_start(Release::V2_4, CriPull::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_signed_images_start_on_2_4_through_the_transfer_service() {
    only_signed_images_start(Release::V2_4, CriPull::Transfer).await;
}

/// Copies the converted image to another repository of the registry, without its statement.
fn copy(server: &Starlift, manifest: &Value, registry: &Registry) {
    let layers = manifest["layers"].as_array().unwrap().iter();
    for blob in layers.chain([&manifest["config"]]) {
        let path = format!("/v2/local/app/blobs/{}", blob["digest"].as_str().unwrap());
        registry.put_blob(fetch(&server.url(&path)).unwrap());
    }
    let bytes = fetch(&server.url("/v2/local/app/manifests/v1")).unwrap();
    let media_type = manifest["mediaType"].as_str().unwrap();
    let digest = registry.put_manifest("copy", media_type, bytes);
    registry.tag("copy", "v1", &digest);
}

async fn only_signed_images_start(containerd: Release, by: CriPull) {
    let Some(place) = containerd.place(fixture::TOOLS) else {
        return;
    };
    let registry = Registry::start().await;
    sleeping_app(&place);
    // The server is to convert it.
    let plain = Layout(place.path().join("plain"));
    registry.push_layout("app", "v1", &plain);
    let key = KeyFiles::new(place.path(), "key");
    let upstream = format!("local={}", registry.url());
    let server = Starlift::start_with(&place, &["--upstream", &upstream], |command| {
        command.env("STARLIFT_CONVERT_SIGNING_KEY", &key.private);
    });
    let signed = format!("{}/local/app:v1", server.address);
    let registry = Arc::new(registry);
    let copied = Arc::clone(&registry);
    let work = move || {
        let manifest = server.converted("local/app", "v1");
        copy(&server, &manifest, &copied);
        (server, manifest)
    };
    // The server is dropped at the end.
    let (_server, manifest) = tokio::task::spawn_blocking(work).await.unwrap();
    let unsigned = format!("{}/copy:v1", registry.host());
    let original = format!("{}/app:v1", registry.host());

    let settings = [
        ("BACKGROUND", "off"),
        ("REQUIRE_PROVENANCE", "true"),
        ("PROVENANCE_KEYS", key.public_path()),
    ];
    let agent = Agent::start_with(&place, &settings);
    let containerd = Containerd::start_with_pods(&place, &agent, &signed, by);
    let kubelet = Kubelet::new(&containerd.socket);
    for image in [&unsigned, &original] {
        let refused = kubelet.call("PullImage", pull(image)).await.unwrap_err();
        let message = refused.message();
        assert!(
            message.contains("without provenance: no signed statement refers to"),
            "{message}"
        );
    }
    assert_eq!(agent.lazy().len(), 0);
    assert_eq!(
        containerd.ctr("-n k8s.io images ls -q").trim(),
        "",
        "no image"
    );

    kubelet.call("PullImage", pull(&signed)).await.unwrap();
    let layers = manifest["layers"].as_array().unwrap().len();
    assert_eq!(agent.lazy().len(), layers, "{}", agent.status());
    let pod = Pod::start(&kubelet, "signed", &signed, &["/bin/sleep", "1000"])
        .await
        .unwrap();
    let read = pod.exec(&["/bin/cat", "/usr/share/old/d"]).await;
    assert_eq!(read.unwrap(), "new\n");
    pod.remove().await.unwrap();
}

/// Returns a server that signs with `key`, of the fixture `app`, and the name of the image in it.
fn signing(place: &Place, key: &KeyFiles) -> (Starlift, String) {
    let upstream = format!("local=oci:{}", Fixture::get("app").dir.display());
    let arguments = ["--wait", "25s", "--upstream", &upstream];
    let server = Starlift::start_with(place, &arguments, |command| {
        command.env("STARLIFT_CONVERT_SIGNING_KEY", &key.private);
    });
    server.converted("local/image", "1");
    let name = format!("{}/local/image:1", server.address);
    (server, name)
}

on_each_release!(a_pull_without_a_kubelet_is_proven_by_the_images_name);

fn a_pull_without_a_kubelet_is_proven_by_the_images_name(containerd: Release) {
    let tools = [fixture::TOOLS, &["ctr-remote"]].concat();
    let Some(place) = containerd.place(&tools) else {
        return;
    };
    let key = KeyFiles::new(place.path(), "key");
    let (_server, image) = signing(&place, &key);
    let settings = [
        ("BACKGROUND", "off"),
        ("REQUIRE_PROVENANCE", "true"),
        ("PROVENANCE_KEYS", key.public_path()),
    ];
    let agent = Agent::start_with(&place, &settings);
    let containerd = Containerd::start_with(&place, &agent.plugin("stargz"));
    containerd.pull_lazily(&image);
    let layers = containerd.manifest(&image)["layers"].clone();
    assert_eq!(agent.lazy().len(), layers.as_array().unwrap().len());
}

#[test]
fn clients_that_copy_referrers_copy_the_statement() {
    let tools = [fixture::TOOLS, &["docker-registry"]].concat();
    let Some(place) = Place::with_clients(&["oras", "regctl"], &tools) else {
        return;
    };
    let key = KeyFiles::new(place.path(), "key");
    let (server, image) = signing(&place, &key);
    let registry = DockerRegistry::start(&place, Access::Anyone);
    let (from, to) = (server.address, registry.address);
    let plain = format!("--host reg={from},tls=disabled --host reg={to},tls=disabled");
    for (name, copy) in [
        (
            "oras",
            "oras cp -r --from-plain-http --to-plain-http".to_owned(),
        ),
        ("regctl", format!("regctl {plain} image copy --referrers")),
    ] {
        let copied = format!("{to}/{name}/app:1");
        place.run(&format!("{copy} {image} {copied}"));
        let starlift = env!("CARGO_BIN_EXE_starlift");
        let verify = format!("verify --provenance-key {} {copied}", key.public_path());
        let verified = place.run(&format!("{starlift} {verify}"));
        assert!(verified.contains("signed by"), "{name}: {verified}");
    }
}
