//! Two real servers over one bucket that are asked for the same image at once.

use serde_json::Value;
use starlift::oci::Digest;

use crate::support::eventually::eventually;
use crate::support::image::ImageBuilder;
use crate::support::moto::Moto;
use crate::support::place::{Place, fetch};
use crate::support::registry::{Gate, Registry};
use crate::support::s3::BUCKET;
use crate::support::starlift::Starlift;

const LAYERS: usize = 3;

fn start(place: &Place, moto: &Moto, registry: &Registry, wait: &str) -> Starlift {
    let endpoint = &moto.endpoint;
    let upstream = format!("local={}", registry.url());
    let flags = [
        "--wait",
        wait,
        "--upstream",
        &upstream,
        "--store",
        &format!("s3://{BUCKET}/fleet"),
    ];
    Starlift::start_with(place, &flags, |command| {
        command
            .env("STARLIFT_STORE_ENDPOINT", endpoint)
            .env("STARLIFT_STORE_REGION", "us-east-1");
        command.env("STARLIFT_STORE_ALLOW_HTTP", "true");
        command
            .env("STARLIFT_STORE_ACCESS_KEY_ID", "key")
            .env("STARLIFT_STORE_SECRET_ACCESS_KEY", "secret");
    })
}

/// Returns the value of a metric, or 0 if it is not counted yet.
fn metric(server: &Starlift, name: &str) -> usize {
    let text = String::from_utf8(fetch(&server.url("/metrics")).unwrap()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_over_one_bucket_convert_each_layer_once() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let Some(moto) = Moto::start().await else {
        return;
    };
    let registry = Registry::start().await;
    let image = ImageBuilder::new(1)
        .layers(LAYERS)
        .files(6)
        .max_file(200_000)
        .build();
    registry.push("app", "v1", &image);
    let gate = Gate::new();
    for layer in image.layers() {
        registry
            .on(&format!("/blobs/{}", Digest::sha256_of(layer)))
            .gate(&gate);
    }
    let servers = [
        start(&place, &moto, &registry, "25s"),
        start(&place, &moto, &registry, "25s"),
    ];
    let pulls = servers.each_ref().map(|server| {
        let url = server.url("/v2/local/app/manifests/v1");
        tokio::task::spawn_blocking(move || fetch(&url).expect("a manifest"))
    });
    // One server fetches every layer, and the other has found the leases held.
    gate.reached(LAYERS).await;
    eventually("the other server waits for each layer", || {
        let held: usize = servers
            .iter()
            .map(|server| metric(server, r#"starlift_leases_total{outcome="held"}"#))
            .sum();
        held >= LAYERS
    });
    gate.open();
    let mut manifests = Vec::new();
    for pull in pulls {
        manifests.push(pull.await.unwrap());
    }
    assert_eq!(manifests[0], manifests[1]);
    let manifest: Value = serde_json::from_slice(&manifests[0]).unwrap();
    for (layer, converted) in image
        .layers()
        .iter()
        .zip(manifest["layers"].as_array().unwrap())
    {
        let source = Digest::sha256_of(layer);
        assert_eq!(registry.count("GET", &format!("/blobs/{source}")), 1);
        assert_eq!(
            converted["annotations"]["dev.starlift.source.digest"],
            source.to_string()
        );
        for server in &servers {
            let path = format!(
                "/v2/local/app/blobs/{}",
                converted["digest"].as_str().unwrap()
            );
            let bytes = fetch(&server.url(&path)).expect("a converted layer");
            assert_eq!(Digest::sha256_of(&bytes).to_string(), converted["digest"]);
        }
    }
    let converted = servers
        .iter()
        .map(|server| metric(server, r#"starlift_layers_total{outcome="converted"}"#));
    assert_eq!(converted.sum::<usize>(), LAYERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_serves_the_source_image_while_another_converts_it() {
    let Some(place) = Place::with(&["curl"]) else {
        return;
    };
    let Some(moto) = Moto::start().await else {
        return;
    };
    let registry = Registry::start().await;
    let image = ImageBuilder::new(2).layers(1).build();
    registry.push("app", "v1", &image);
    let layer = &image.layers()[0];
    let source = Digest::sha256_of(layer);
    let gate = Gate::new();
    // Half of the layer has arrived at the first server, which holds the lease.
    registry
        .on(&format!("/blobs/{source}"))
        .times(1)
        .gate_after(&gate, layer.len() / 2);
    let converting = start(&place, &moto, &registry, "25s");
    let manifest = "/v2/local/app/manifests/v1";
    let url = converting.url(manifest);
    let pull = tokio::task::spawn_blocking(move || fetch(&url).expect("a manifest"));
    gate.reached(1).await;
    let waiting = start(&place, &moto, &registry, "1s");
    assert_eq!(fetch(&waiting.url(manifest)).unwrap(), image.bytes);
    // A client of the source image reads its layer, in parts and whole, from the upstream.
    let blob = waiting.url(&format!("/v2/local/app/blobs/{source}"));
    assert_eq!(fetch_range(&blob, "2-9").unwrap(), layer[2..10]);
    assert_eq!(fetch(&blob).unwrap(), layer.to_vec());
    assert_eq!(
        metric(&waiting, r#"starlift_layers_total{outcome="converted"}"#),
        0
    );
    gate.open();
    let converted = pull.await.unwrap();
    assert_ne!(converted, image.bytes);
    // The record is read at each pull: nothing has to be noticed first.
    assert_eq!(fetch(&waiting.url(manifest)).unwrap(), converted);
}

fn fetch_range(url: &str, range: &str) -> Option<Vec<u8>> {
    let output = std::process::Command::new("curl")
        .args(["-sf", "--max-time", "30", "-r", range, url])
        .output()
        .unwrap();
    output.status.success().then_some(output.stdout)
}
