//! Signed statements by hand: `convert --signing-key`, `inspect --provenance`, `verify
//! --provenance-key`, and OpenSSL as the other program that makes keys and verifies signatures.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use starlift::oci::{Artifact, Digest, Manifest};
use starlift::provenance::pae;

use super::{Desk, check_layout};
use crate::support::image::{Image, ImageBuilder};
use crate::support::keys::KeyFiles;
use crate::support::registry::Registry;

const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";

async fn registry(image: &Image) -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push("library/app", "v1", image);
    let name = format!("{}/library/app:v1", registry.host());
    (registry, name)
}

fn openssl(folder: &Path, line: &str) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    output.stdout
}

fn blob(layout: &Path, digest: &Value) -> Vec<u8> {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
}

/// Returns the envelope of the only statement in a layout, and the digest of its blob.
fn envelope(layout: &Path) -> (Value, String) {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let entries = index["manifests"].as_array().unwrap().iter();
    let mut statements = entries.filter(|entry| entry["artifactType"] == ENVELOPE);
    let (Some(entry), None) = (statements.next(), statements.next()) else {
        panic!("{index}")
    };
    let artifact: Value = serde_json::from_slice(&blob(layout, &entry["digest"])).unwrap();
    let digest = &artifact["layers"][0]["digest"];
    let envelope = serde_json::from_slice(&blob(layout, digest)).unwrap();
    (envelope, digest.as_str().unwrap().to_owned())
}

fn findings(outcome: &Value) -> Vec<&str> {
    let parts = outcome["parts"].as_array().unwrap().iter();
    parts
        .flat_map(|part| part["findings"].as_array().unwrap())
        .map(|finding| finding.as_str().unwrap())
        .collect()
}

impl Desk {
    /// Returns the findings of a verification that fails.
    async fn refused(&self, image: &str, key: &KeyFiles, more: &[&str]) -> String {
        let words = [
            "verify",
            "--json",
            image,
            "--provenance-key",
            key.public_path(),
        ];
        let ran = self.run(&[&words, more].concat()).await;
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let outcome: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let [finding] = *findings(&outcome) else {
            panic!("{outcome}")
        };
        finding.to_owned()
    }
}

#[tokio::test]
async fn openssl_makes_the_keys_and_verifies_the_signatures() {
    let desk = Desk::new();
    let folder = desk.path("");
    let (_registry, source) = registry(&ImageBuilder::new(1).layers(2).build()).await;
    let kinds = [
        ("ed25519", "-algorithm ed25519"),
        ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
    ];
    for (kind, options) in kinds {
        openssl(&folder, &format!("genpkey {options} -out {kind}.pem"));
        openssl(
            &folder,
            &format!("pkey -in {kind}.pem -pubout -out {kind}.pub"),
        );
        let (private, public) = (format!("{kind}.pem"), format!("{kind}.pub"));
        let target = format!("oci:{kind}:v1");
        let words = [
            "convert",
            "--json",
            &source,
            &target,
            "--signing-key",
            &private,
        ];
        let made = desk.run(&words).await.json();
        assert_eq!(made["statements"], 1);
        check_layout(&desk.path(kind));

        let (envelope, _) = envelope(&desk.path(kind));
        let spki = openssl(&folder, &format!("pkey -pubin -in {public} -outform DER"));
        let signature = &envelope["signatures"][0];
        assert_eq!(signature["keyid"], Digest::sha256_of(&spki).hex());
        let decode = |text: &Value| STANDARD.decode(text.as_str().unwrap()).unwrap();
        let payload_type = envelope["payloadType"].as_str().unwrap();
        let message = pae(payload_type, &decode(&envelope["payload"]));
        std::fs::write(folder.join("message"), message).unwrap();
        std::fs::write(folder.join("signature"), decode(&signature["sig"])).unwrap();
        let verified = match kind {
            "ed25519" => {
                let files = "-in message -sigfile signature";
                openssl(
                    &folder,
                    &format!("pkeyutl -verify -pubin -inkey {public} -rawin {files}"),
                )
            }
            _ => openssl(
                &folder,
                &format!("dgst -sha256 -verify {public} -signature signature message"),
            ),
        };
        assert!(String::from_utf8(verified).unwrap().contains("Verified"));

        let words = [
            "verify",
            &target,
            "--provenance-key",
            &public,
            "--against",
            &source,
        ];
        let text = desk.run(&words).await.text();
        assert!(text.contains("signed by"), "{text}");
    }
}

#[tokio::test]
async fn an_index_in_a_registry_is_signed_with_each_of_its_images() {
    let desk = Desk::new();
    let arm = ImageBuilder::new(2).architecture("arm64").build();
    let index = Image::index(
        vec![
            ("linux/amd64", ImageBuilder::new(1).docker().build()),
            ("linux/arm64", arm),
        ],
        false,
    );
    let (registry, source) = registry(&index).await;
    let key = KeyFiles::new(&desk.path(""), "key");
    let target = format!("{}/copies/app:v2", registry.host());
    let convert = [
        "convert",
        "--json",
        &source,
        &target,
        "--signing-key",
        key.private_path(),
    ];
    let made = desk.run(&convert).await.json();
    assert_eq!(made["statements"], 3);
    let shown = desk
        .run(&["inspect", "--provenance", "--json", &target])
        .await;
    let shown = shown.json();
    let shown = shown.as_array().unwrap();
    assert_eq!(shown.len(), 3);
    for image in shown {
        assert_eq!(image["statements"][0]["keys"], json!([key.id()]), "{image}");
        assert_eq!(image["statements"][0]["generation"], made["generation"]);
    }
    assert_eq!(shown[0]["image"], made["converted"]);
    assert_eq!(shown[0]["statements"][0]["source"], made["source"]);
    let text = desk.run(&["inspect", "--provenance", &target]).await.text();
    assert!(
        text.contains(&format!("{} (not verified)", key.id())),
        "{text}"
    );
    let verify = ["verify", &target, "--provenance-key", key.public_path()];
    desk.run(&[&verify[..], &["--against", &source]].concat())
        .await
        .text();
    for image in made["images"].as_array().unwrap() {
        let child = format!(
            "{}/copies/app@{}",
            registry.host(),
            image["digest"].as_str().unwrap()
        );
        let verify = ["verify", &child, "--provenance-key", key.public_path()];
        desk.run(&verify).await.text();
    }
    // One platform in a layout: another index is not made, the image has its own statement.
    let one = [
        "convert",
        "--json",
        &source,
        "oci:one:v1",
        "--platform",
        "linux/amd64",
    ];
    let one = [&one[..], &["--signing-key", key.private_path()]].concat();
    assert_eq!(desk.run(&one).await.json()["statements"], 1);
    let verify = [
        "verify",
        "oci:one:v1",
        "--provenance-key",
        key.public_path(),
    ];
    desk.run(&verify).await.text();
}

#[tokio::test]
async fn an_origin_that_is_not_proven_is_a_finding_with_its_reason() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(1).build()).await;
    let folder = desk.path("");
    let (key, other) = (
        KeyFiles::new(&folder, "key"),
        KeyFiles::new(&folder, "other"),
    );
    desk.run(&["convert", &source, "oci:plain:v1"]).await.text();
    let reason = desk.refused("oci:plain:v1", &key, &[]).await;
    assert!(
        reason.contains("no signed statement refers to sha256:"),
        "{reason}"
    );

    let convert = [
        "convert",
        &source,
        "oci:out:v1",
        "--signing-key",
        key.private_path(),
    ];
    desk.run(&convert).await.text();
    let reason = desk.refused("oci:out:v1", &other, &[]).await;
    let expected = format!("signed by the key {}, which is not trusted", key.id());
    assert!(reason.contains(&expected), "{reason}");

    // One of several keys is enough.
    let both = [
        "verify",
        "oci:out:v1",
        "--provenance-key",
        other.public_path(),
    ];
    let both = [&both[..], &["--provenance-key", key.public_path()]].concat();
    desk.run(&both).await.text();

    registry.push("library/app", "v2", &ImageBuilder::new(5).build());
    let wrong = source.replace(":v1", ":v2");
    let words = [
        "verify",
        "--json",
        "oci:out:v1",
        "--provenance-key",
        key.public_path(),
    ];
    let ran = desk
        .run(&[&words[..], &["--against", &wrong]].concat())
        .await;
    assert_eq!(ran.code, Some(1));
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(
        text.contains("the statement names another source image"),
        "{text}"
    );
}

/// Puts `image` into a repository of its own, with an artifact that refers to it and holds
/// `document`. Returns the artifact's digest.
fn put(registry: &Registry, repository: &str, image: &Manifest, document: Vec<u8>) -> Digest {
    let digest = registry.put_manifest(repository, &image.media_type, image.bytes.clone());
    registry.tag(repository, "v1", &digest);
    let subject = image.descriptor();
    let artifact = Artifact::new(ENVELOPE, document.into(), &subject, Map::new());
    for (_, bytes) in artifact.blobs {
        registry.put_blob(bytes);
    }
    let manifest = artifact.manifest;
    registry.put_manifest(repository, &manifest.media_type, manifest.bytes)
}

#[tokio::test]
async fn altered_foreign_truncated_and_huge_envelopes_are_findings() {
    let desk = Desk::new();
    let (registry, source) = registry(&ImageBuilder::new(1).build()).await;
    let key = KeyFiles::new(&desk.path(""), "key");
    let convert = [
        "convert",
        &source,
        "oci:out:v1",
        "--signing-key",
        key.private_path(),
    ];
    desk.run(&convert).await.text();
    let (envelope, digest) = envelope(&desk.path("out"));
    let whole = blob(&desk.path("out"), &digest.into());
    let image = |tag: &str| {
        let (kind, bytes) = registry.manifest("library/app", tag).unwrap();
        Manifest::new(kind, bytes)
    };
    let converted = format!("{}/copies/app:v1", registry.host());
    desk.run(&["convert", &source, &converted]).await.text();
    let (kind, bytes) = registry.manifest("copies/app", "v1").unwrap();
    let converted = Manifest::new(kind, bytes);

    let mut altered = envelope.clone();
    let payload = STANDARD.decode(altered["payload"].as_str().unwrap());
    let payload = String::from_utf8(payload.unwrap()).unwrap();
    altered["payload"] = STANDARD.encode(payload.replace("gzip", "zstd")).into();
    let half = whole[..whole.len() / 2].to_vec();
    let huge = [&whole[..], &vec![b' '; 1 << 20]].concat();
    let foreign = format!("statement is not about {}", image("v1").digest);
    for (repository, image, document, expected) in [
        ("good", &converted, whole.clone(), None),
        (
            "altered",
            &converted,
            altered.to_string().into(),
            Some("signature does not match"),
        ),
        ("half", &converted, half, Some("not a DSSE envelope")),
        (
            "huge",
            &converted,
            huge,
            Some("no envelope of at most 1048576 bytes"),
        ),
        ("foreign", &image("v1"), whole, Some(foreign.as_str())),
    ] {
        let artifact = put(&registry, repository, image, document).to_string();
        let name = format!("{}/{repository}:v1", registry.host());
        let Some(expected) = expected else {
            let verify = ["verify", &name, "--provenance-key", key.public_path()];
            desk.run(&verify).await.text();
            continue;
        };
        let reason = desk.refused(&name, &key, &[]).await;
        assert!(reason.contains(expected), "{reason}");
        assert!(
            reason.contains(&artifact),
            "the statement is named: {reason}"
        );
        let shown = desk
            .run(&["inspect", "--provenance", "--json", &name])
            .await;
        assert_eq!(shown.json()[0]["statements"][0]["artifact"], artifact);
    }
}

#[tokio::test]
async fn keys_that_cannot_be_used_stop_the_command_with_a_sentence() {
    let desk = Desk::new();
    let (_registry, source) = registry(&ImageBuilder::new(1).build()).await;
    let key = KeyFiles::new(&desk.path(""), "key");
    let convert = ["convert", &source, "oci:out:v1", "--signing-key"];
    let missing = desk.run(&[&convert[..], &["missing.pem"]].concat()).await;
    let missing = missing.error();
    assert!(
        missing.contains("convert.signing_key: key missing.pem: not readable"),
        "{missing}"
    );
    let swapped = desk
        .run(&[&convert[..], &[key.public_path()]].concat())
        .await;
    assert!(swapped.error().contains("a private one is wanted"));
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let environment = [("STARLIFT_CONVERT_SIGNING_KEY", "missing.pem")];
    let stopped = desk.run_with(&serve, &environment).await.error();
    assert!(
        stopped.contains("convert.signing_key: key missing.pem: not readable"),
        "{stopped}"
    );
    let verify = [
        "verify",
        "oci:out:v1",
        "--provenance-key",
        key.private_path(),
    ];
    assert!(
        desk.run(&verify)
            .await
            .error()
            .contains("a public one is wanted")
    );
    let archive = [
        "convert",
        &source,
        "docker-archive:out.tar",
        "--signing-key",
    ];
    let archive = desk
        .run(&[&archive[..], &[key.private_path()]].concat())
        .await;
    assert!(archive.error().contains("sign into a registry or a layout"));
}
