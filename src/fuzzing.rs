//! Runs the rooms' fuzz targets on mutations of good inputs, for a bounded time in every test run.
//!
//! The harness and the mutations belong to the estargz crate (`FUZZ_SECONDS`, `FUZZ_SEED`; a
//! failing input goes to `tests/fuzz/corpus/TARGET/`). The crate in `fuzz/` runs the same targets
//! under libFuzzer, guided by coverage.

#[path = "../crates/estargz/tests/fuzz/harness.rs"]
mod harness;
#[path = "../crates/estargz/tests/fuzz/mutate.rs"]
#[expect(dead_code, reason = "only the estargz crate mutates tars")]
mod mutate;
#[path = "../crates/estargz/tests/fuzz/random.rs"]
mod random;

use harness::run;

use crate::oci;
use crate::predict;
use crate::provenance;
use crate::registry;
use crate::rewrite;
use crate::serve;
use crate::store;

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// An image manifest and an index, in OCI's types.
fn manifests() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let descriptor = |media_type: &str| serde_json::json!({"mediaType": media_type, "digest": digest, "size": 3});
    let image = serde_json::json!({
        "schemaVersion": 2, "mediaType": oci::media_type::OCI_MANIFEST,
        "config": descriptor(oci::media_type::OCI_CONFIG),
        "layers": [descriptor(oci::media_type::OCI_LAYER_GZIP), descriptor(oci::media_type::OCI_LAYER)],
        "annotations": {"a": "b"}, "subject": null,
    });
    let mut child = descriptor(oci::media_type::OCI_MANIFEST);
    child["platform"] =
        serde_json::json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": oci::media_type::OCI_INDEX,
        "manifests": [child, descriptor(oci::media_type::OCI_INDEX)],
    });
    [image, index]
        .map(|document| document.to_string().into_bytes())
        .into()
}

#[test]
fn ranges() {
    run(
        "ranges",
        seeds(&["\u{1}\0\0\0\0\0\0\0bytes=0-1,5-,-3"]),
        mutate::bytes,
        oci::fuzz::ranges,
    );
}

#[test]
fn names() {
    let digest = format!(
        "library/nginx/blobs/sha256:{}",
        "0123456789abcdef".repeat(4)
    );
    run(
        "names",
        seeds(&["docker.io/library/nginx/manifests/1.21.1", &digest]),
        mutate::bytes,
        oci::fuzz::names,
    );
}

#[test]
fn documents() {
    run("documents", manifests(), mutate::json, oci::fuzz::documents);
}

#[test]
fn plans() {
    run("plans", manifests(), mutate::json, rewrite::fuzz::plans);
}

#[test]
fn headers() {
    let texts = [
        "Bearer realm=\"https://auth.example/token\",service=\"r\",scope=\"repository:a/b:pull\", Basic realm=\"x\"",
        "bytes 0-9/100",
        "</v2/app/tags/list?n=2&last=b>; rel=\"next\"",
        "Wed, 21 Oct 2026 07:28:00 GMT",
    ];
    run(
        "headers",
        seeds(&texts),
        mutate::bytes,
        registry::fuzz::headers,
    );
}

#[test]
fn hosts() {
    let text = "server = \"https://a.example\"\n[host.\"http://b.example:5000/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
                client = [[\"c.cert\", \"c.key\"]]\nskip_verify = true\noverride_path = true\n[host.\"http://b.example:5000/v2\".header]\nx = [\"y\"]\n";
    run(
        "hosts",
        seeds(&[text]),
        mutate::bytes,
        registry::fuzz::hosts,
    );
}

#[test]
fn scripts() {
    let text = "#!/bin/sh\nset -e\nA=${B:-x}$A\nfor i in 1 2; do echo \"$i\" `id -u`; done\ncat <<EOF >&2\nx$(y)\nEOF\nexec \"$@\"\n";
    run(
        "scripts",
        seeds(&[text]),
        mutate::bytes,
        predict::fuzz::scripts,
    );
}

#[test]
fn executables() {
    let file = std::fs::read("/bin/true").unwrap();
    run(
        "executables",
        vec![file],
        mutate::bytes,
        predict::fuzz::executables,
    );
}

#[test]
fn records() {
    run(
        "records",
        store::fuzz::seeds(),
        mutate::json,
        store::fuzz::records,
    );
}

#[test]
fn statements() {
    run(
        "statements",
        provenance::fuzz::seeds(),
        mutate::json,
        provenance::fuzz::statements,
    );
}

#[test]
fn tokens() {
    run(
        "tokens",
        serve::fuzz::seeds(),
        mutate::json,
        serve::fuzz::tokens,
    );
}

#[test]
fn certificates() {
    // The seeds are in the corpus.
    run(
        "certificates",
        seeds(&["\u{30}\u{2}\u{30}\0"]),
        mutate::bytes,
        serve::fuzz::certificates,
    );
}
