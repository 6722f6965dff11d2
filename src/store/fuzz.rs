//! Fuzz targets: records as a failing disk may return them.

use super::key::Key;
use super::records::{ImageRecord, LayerRecord};
use super::seal;

/// Records as they are written, but without their checksums.
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let passed = serde_json::json!({"source": digest, "outcome": {"passed-through": {"reason": "encrypted"}}, "reason": "x"});
    vec![
        passed.to_string().into_bytes(),
        br#"{"a":[1,{"b":null}],"c":"\u0000"}"#.to_vec(),
    ]
}

/// Input: a record's JSON, with its checksum or without. A changed byte makes a record damaged.
pub fn records(data: &[u8]) {
    let key = Key::Probe(String::new());
    let _raw = (
        seal::unseal::<LayerRecord>(&key, data),
        seal::unseal::<ImageRecord>(&key, data),
    );
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else {
        return;
    };
    let Ok(sealed) = seal::seal(&key, &value) else {
        return;
    };
    assert!(seal::is_intact(&key, &sealed));
    let _read = (
        seal::unseal::<LayerRecord>(&key, &sealed),
        seal::unseal::<ImageRecord>(&key, &sealed),
    );
    let mut turned = sealed.to_vec();
    if let Some(byte) = turned.get_mut(data.len() % sealed.len()) {
        *byte ^= 1;
    }
    assert!(!seal::is_intact(&key, &turned));
}
