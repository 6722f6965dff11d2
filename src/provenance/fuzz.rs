//! A fuzz target: envelopes and statements as a registry may send them.

use super::envelope::Envelope;
use super::keys::TrustedKeys;
use super::statement::Statement;
use super::verify::{unverified, verify};
use crate::oci::Digest;

/// An envelope, whose signature is of no key, and the statement in it.
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = "0123456789abcdef".repeat(4);
    let statement = serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "manifest", "digest": {"sha256": digest}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://starlift.dev/conversion/v1",
                "externalParameters": {"source": format!("sha256:{digest}")},
                "internalParameters": {"generation": "g1"},
                "resolvedDependencies": [{"digest": {"sha256": digest}}],
            },
            "runDetails": {"builder": {"id": "x"}},
        },
    });
    let envelope = r#"{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"ab","sig":"AA=="}]}"#;
    vec![statement.to_string().into(), envelope.into()]
}

/// Input: an envelope, or the statement in one. A parsed envelope survives its JSON, and without a
/// key nothing is proven.
pub fn statements(data: &[u8]) {
    let _read = Statement::parse(data).map(|statement| statement.provenance());
    let Ok(envelope) = Envelope::parse(data) else {
        return;
    };
    // The same in base64 of the other alphabet may be longer.
    if let Ok(again) = Envelope::parse(&envelope.to_json()) {
        assert_eq!(again, envelope);
    }
    let _shown = unverified(data);
    let proven = verify(data, &TrustedKeys::default(), &Digest::sha256_of(data));
    assert!(proven.is_err());
}
