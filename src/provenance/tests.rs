//! Tests of the room as a whole: signing, and the reasons of refusals.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Artifact, Digest, Manifest};

fn digest(of: &str) -> Digest {
    Digest::sha256_of(of.as_bytes())
}

fn source() -> Digest {
    digest("source")
}

/// A new key of each kind.
fn keys() -> [SigningKey; 2] {
    let random = SystemRandom::new();
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    [ed25519, p256].map(|key| from_der(key.as_ref()))
}

fn from_der(der: &[u8]) -> SigningKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let text = STANDARD.encode(der);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    std::fs::write(&path, pem).unwrap();
    SigningKey::read(&path).unwrap()
}

/// The key of all runs of the property tests: RFC 8032, section 7.1, test 1.
fn fixed_key() -> SigningKey {
    let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
    let head = hex::decode("302e020100300506032b657004220420").unwrap();
    from_der(&[head, seed.unwrap()].concat())
}

fn trusting(keys: &[&SigningKey]) -> TrustedKeys {
    keys.iter().map(|key| key.public().clone()).collect()
}

fn annotations() -> Value {
    json!({"dev.starlift.source.digest": source(), "dev.starlift.generation": "g1-gzip6"})
}

fn image() -> Manifest {
    let layer = |of: &str| json!({"mediaType": "t", "size": 1, "digest": digest(of)});
    let manifest = json!({"schemaVersion": 2, "config": layer("config"),
        "layers": [layer("lower"), layer("upper")], "annotations": annotations()});
    Manifest::new(OCI_MANIFEST.to_owned(), manifest.to_string().into())
}

fn signed(key: &SigningKey) -> Artifact {
    sign(key, &image(), &source()).unwrap()
}

fn envelope(key: &SigningKey) -> Vec<u8> {
    signed(key).blobs[1].1.to_vec()
}

/// The envelope with another payload, by the same key.
fn resigned(key: &SigningKey, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let original = Envelope::parse(&envelope(key)).unwrap();
    let mut payload: Value = serde_json::from_slice(&original.payload).unwrap();
    change(&mut payload);
    let payload = payload.to_string().into_bytes();
    let envelope = Envelope::sign(&original.payload_type, payload, key);
    envelope.unwrap().to_json()
}

fn refusal(envelope: &[u8], keys: &TrustedKeys, digest: &Digest) -> String {
    verify(envelope, keys, digest).unwrap_err().to_string()
}

#[test]
fn a_statement_names_the_manifest_each_layer_the_source_and_the_generation() {
    for key in keys() {
        let keys = trusting(&[&key]);
        for named in [image().digest, digest("lower"), digest("upper")] {
            let verified = verify(&envelope(&key), &keys, &named).unwrap();
            assert_eq!(verified.key, *key.id());
            assert_eq!(verified.provenance.source, source());
            assert_eq!(verified.provenance.generation, "g1-gzip6");
        }
        for other in [source(), digest("config"), digest("another")] {
            let text = refusal(&envelope(&key), &keys, &other);
            assert_eq!(text, format!("statement is not about {other}"));
        }
    }
}

#[test]
fn the_statement_is_in_toto_with_the_provenance_of_slsa() {
    let parsed = Envelope::parse(&envelope(&fixed_key())).unwrap();
    assert_eq!(parsed.payload_type, "application/vnd.in-toto+json");
    let statement: Value = serde_json::from_slice(&parsed.payload).unwrap();
    let sum = |digest: &Digest| json!({"sha256": digest.hex()});
    let expected = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "manifest", "digest": sum(&image().digest)},
            {"name": "layer/0", "digest": sum(&digest("lower"))},
            {"name": "layer/1", "digest": sum(&digest("upper"))},
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://starlift.dev/conversion/v1",
                "externalParameters": {"source": source()},
                "internalParameters": {"generation": "g1-gzip6"},
                "resolvedDependencies": [{"name": "manifest", "digest": sum(&source())}],
            },
            "runDetails": {"builder": {"id": "https://starlift.dev/converter"}},
        },
    });
    assert_eq!(statement, expected);
}

#[test]
fn an_index_is_named_without_its_images() {
    let index = json!({"schemaVersion": 2, "annotations": annotations(),
        "manifests": [{"mediaType": OCI_MANIFEST, "size": 1, "digest": digest("child")}]});
    let index = Manifest::new(OCI_INDEX.to_owned(), index.to_string().into());
    let key = fixed_key();
    let artifact = sign(&key, &index, &source()).unwrap();
    let envelope = &artifact.blobs[1].1;
    verify(envelope, &trusting(&[&key]), &index.digest).unwrap();
    refusal(envelope, &trusting(&[&key]), &digest("child"));
}

#[test]
fn statements_by_ed25519_are_the_same_on_every_replica() {
    assert_eq!(
        signed(&fixed_key()).manifest,
        signed(&fixed_key()).manifest,
        "artifact, envelope and statement"
    );
    let [_, p256] = keys();
    assert_ne!(signed(&p256).manifest, signed(&p256).manifest);
}

#[test]
fn an_image_that_names_another_source_is_not_signed() {
    let error = sign(&fixed_key(), &image(), &digest("other")).unwrap_err();
    assert!(error.to_string().contains(&source().to_string()), "{error}");
    let foreign = Manifest::new(OCI_MANIFEST.to_owned(), r#"{"layers":[]}"#.into());
    sign(&fixed_key(), &foreign, &source()).unwrap_err();
}

#[test]
fn an_image_of_more_layers_than_any_runtime_mounts_is_not_signed() {
    let layer = json!({"mediaType": "t", "size": 1, "digest": digest("layer")});
    let of = |layers: usize| {
        let manifest = json!({"layers": vec![layer.clone(); layers], "annotations": annotations()});
        Manifest::new(OCI_MANIFEST.to_owned(), manifest.to_string().into())
    };
    let key = fixed_key();
    let most = sign(&key, &of(1024), &source()).unwrap();
    assert!(most.blobs[1].1.len() < MAX_ENVELOPE_BYTES / 2);
    verify(&most.blobs[1].1, &trusting(&[&key]), &digest("layer")).unwrap();
    let error = sign(&key, &of(1025), &source()).unwrap_err();
    assert_eq!(error.to_string(), "image has more than 1024 layers");
}

#[test]
fn only_signatures_of_trusted_keys_count() {
    let [ed25519, p256] = keys();
    let named = image().digest;
    let text = refusal(&envelope(&p256), &trusting(&[&ed25519]), &named);
    assert_eq!(
        text,
        format!("signed by the key {}, which is not trusted", p256.id())
    );
    // Rotation: both keys are trusted for a while.
    let both = trusting(&[&ed25519, &p256]);
    for key in [&ed25519, &p256] {
        assert_eq!(
            &verify(&envelope(key), &both, &named).unwrap().key,
            key.id()
        );
    }
    refusal(&envelope(&p256), &TrustedKeys::default(), &named);
}

#[test]
fn the_name_of_a_key_in_an_envelope_decides_nothing() {
    let [key, other] = keys();
    let named = image().digest;
    let text = String::from_utf8(envelope(&key)).unwrap();
    // cosign writes an empty name.
    for id in [String::new(), other.id().to_string(), "x".repeat(300)] {
        let renamed = text.replace(key.id().as_str(), &id);
        assert_ne!(renamed, text);
        verify(renamed.as_bytes(), &trusting(&[&key]), &named).unwrap();
    }
    let claimed = String::from_utf8(envelope(&other)).unwrap();
    let claimed = claimed.replace(other.id().as_str(), key.id().as_str());
    assert!(refusal(claimed.as_bytes(), &trusting(&[&key]), &named).contains("does not match"));
}

#[test]
fn other_signed_documents_of_the_same_key_are_refused() {
    let key = fixed_key();
    let (keys, named) = (trusting(&[&key]), image().digest);
    verify(&resigned(&key, |_| ()), &keys, &named).unwrap();
    verify(
        &resigned(&key, |document| document["later"] = json!(1)),
        &keys,
        &named,
    )
    .unwrap();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 7] = [
        (|document| document["_type"] = json!("x"), "_type"),
        (
            |document| document["predicateType"] = json!("https://spdx.dev/Document"),
            "predicateType",
        ),
        (
            |document| document["predicate"]["buildDefinition"]["buildType"] = json!("make"),
            "buildType",
        ),
        (
            |document| {
                document["predicate"]["buildDefinition"]["externalParameters"]["source"] =
                    json!("latest");
            },
            "no source image",
        ),
        (
            |document| {
                document["predicate"]["buildDefinition"]["resolvedDependencies"] = json!([]);
            },
            "another one as its dependency",
        ),
        (|document| document["subject"] = json!([]), "not about"),
        (
            |document| *document = json!([1]),
            "not an in-toto statement",
        ),
    ];
    for (change, expected) in changes {
        let text = refusal(&resigned(&key, change), &keys, &named);
        assert!(text.contains(expected), "{text}");
    }
    let payload = Envelope::parse(&envelope(&key)).unwrap().payload;
    let typed = Envelope::sign("text/plain", payload, &key).unwrap();
    assert!(refusal(&typed.to_json(), &keys, &named).contains("\"text/plain\""));
}

#[test]
fn bytes_that_are_not_an_envelope_are_refused_with_the_reason() {
    let (key, named) = (fixed_key(), image().digest);
    let keys = trusting(&[&key]);
    let whole = envelope(&key);
    for end in [0, 1, whole.len() / 2, whole.len() - 1] {
        assert_eq!(refusal(&whole[..end], &keys, &named), "not a DSSE envelope");
    }
    let huge = [&whole[..], &vec![b' '; MAX_ENVELOPE_BYTES]].concat();
    assert!(refusal(&huge, &keys, &named).contains("longer than 1048576 bytes"));
    let change = |change: fn(&mut Value)| {
        let mut document: Value = serde_json::from_slice(&whole).unwrap();
        change(&mut document);
        refusal(document.to_string().as_bytes(), &keys, &named)
    };
    assert!(change(|envelope| envelope["signatures"] = json!([])).contains("no signature"));
    assert!(
        change(|envelope| {
            let one = envelope["signatures"][0].clone();
            envelope["signatures"] = json!(vec![one; 17]);
        })
        .contains("more than 16")
    );
    assert!(change(|envelope| envelope["payload"] = json!("?")).contains("the payload"));
    assert!(
        change(|envelope| envelope["signatures"][0]["sig"] = json!("?")).contains("a signature")
    );
    assert!(change(|envelope| envelope["signatures"][0]["sig"] = json!("")).contains("match"));
}

#[test]
fn one_good_signature_among_others_is_enough() {
    let [key, other] = keys();
    let mut document: Value = serde_json::from_slice(&envelope(&key)).unwrap();
    let foreign: Value = serde_json::from_slice(&envelope(&other)).unwrap();
    let signatures = document["signatures"].as_array_mut().unwrap();
    signatures.insert(0, foreign["signatures"][0].clone());
    let text = document.to_string();
    verify(text.as_bytes(), &trusting(&[&key]), &image().digest).unwrap();
}

#[test]
fn referrers_are_statements_by_type_and_predicate() {
    let artifact = signed(&fixed_key());
    let mut listed = artifact.listed();
    assert!(is_statement(&listed));
    assert_eq!(
        document_of(&artifact.manifest),
        Some(artifact.blobs[1].0.clone())
    );
    let manifest: Value = serde_json::from_slice(&artifact.manifest.bytes).unwrap();
    assert_eq!(manifest["subject"]["digest"], json!(image().digest));
    assert_eq!(
        manifest["artifactType"],
        "application/vnd.dsse.envelope.v1+json"
    );
    listed.annotations.insert(
        "in-toto.io/predicate-type".to_owned(),
        "https://spdx.dev/Document".into(),
    );
    assert!(!is_statement(&listed));
    listed.annotations.clear();
    assert!(is_statement(&listed), "a copy may have lost the annotation");
    listed.rest.clear();
    assert!(!is_statement(&listed));
}

#[test]
fn trusted_keys_are_read_from_files_and_one_bad_file_fails_all() {
    let missing = Path::new("/nonexistent/key.pem");
    let error = TrustedKeys::read(&[missing]).unwrap_err().to_string();
    assert!(
        error.starts_with("key /nonexistent/key.pem: not readable"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn an_envelope_with_a_changed_byte_of_payload_or_signature_is_refused(
        part in 0..2, at: prop::sample::Index, mask in 1..=255_u8,
    ) {
        let key = fixed_key();
        let mut changed = Envelope::parse(&envelope(&key)).unwrap();
        let bytes = match part {
            0 => &mut changed.payload,
            _ => &mut changed.signatures[0].bytes,
        };
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        let text = refusal(&changed.to_json(), &trusting(&[&key]), &image().digest);
        prop_assert!(text.contains("does not match"), "{}", text);
    }

    #[test]
    fn any_change_of_an_envelopes_text_leaves_the_statement_as_it_was_or_is_refused(
        at: prop::sample::Index, byte: u8,
    ) {
        let key = fixed_key();
        let (mut text, keys) = (envelope(&key), trusting(&[&key]));
        let whole = verify(&text, &keys, &image().digest).unwrap();
        let at = at.index(text.len());
        text[at] = byte;
        // The key's name is not signed.
        if let Ok(verified) = verify(&text, &keys, &image().digest) {
            prop_assert_eq!(verified, whole);
        }
    }

    #[test]
    fn payloads_and_types_that_differ_are_signed_as_different_bytes(
        one in ("[ a-z0-9]{0,6}", "[ a-z0-9]{0,6}"), other in ("[ a-z0-9]{0,6}", "[ a-z0-9]{0,6}"),
    ) {
        let pae = |(kind, body): &(String, String)| pae(kind, body.as_bytes());
        prop_assert_eq!(one == other, pae(&one) == pae(&other));
    }
}
