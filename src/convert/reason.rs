//! Words of others in our reasons: cut, and with nothing in them that a terminal or a page would obey.

/// Characters of others' text in a reason; media types, digests and most paths fit.
const MOST: usize = 200;

/// The beginning of `text` on one line.
pub(super) fn told(text: &str) -> String {
    let mut told: String = text
        .chars()
        .take(MOST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(MOST).is_some() {
        told.push('…');
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_stays_and_long_text_is_cut() {
        assert_eq!(
            told("application/vnd.oci.image.index.v1+json"),
            "application/vnd.oci.image.index.v1+json"
        );
        assert_eq!(told("a\n\u{1b}[31m"), "a\u{fffd}\u{fffd}[31m");
        assert_eq!(told(&"é".repeat(1 << 20)).chars().count(), MOST + 1);
    }
}
