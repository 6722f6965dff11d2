//! The memory that working on a JSON document takes.

use crate::oci::weight;

/// The number of trees of a document in memory at once: the source, the converted document, and its
/// translation to other media types.
const TREES: u64 = 3;

/// The most memory for a document: room for some 100,000 keys and values. The largest images and
/// indexes in the wild have a few thousand.
pub(crate) const MAX_WEIGHT: u64 = 48 << 20;

/// Returns the most bytes that working on a JSON document takes, beside its text.
///
/// # Errors
/// When the text is not JSON.
pub(crate) fn document(text: &[u8]) -> Result<u64, serde_json::Error> {
    Ok(weight::tree(text)?.saturating_mul(TREES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_weigh_more_than_text() {
        let zeros = format!("[{}0]", "0,".repeat(2_000_000));
        let text = format!("[\"{}\"]", "x".repeat(4_000_000));
        assert!(document(zeros.as_bytes()).unwrap() > MAX_WEIGHT);
        assert!(document(text.as_bytes()).unwrap() < MAX_WEIGHT);
    }

    #[test]
    fn a_large_image_weighs_little() {
        let layer = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:0","size":1}"#;
        let image = format!(r#"{{"layers":[{}]}}"#, vec![layer; 500].join(","));
        assert!(document(image.as_bytes()).unwrap() < MAX_WEIGHT / 10);
    }
}
