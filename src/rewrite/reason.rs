//! Foreign text in pass-through reasons: shortened, and without control characters, which a
//! terminal or a page would interpret.

/// The most characters of foreign text in a reason. Media types, digests and most paths fit.
const MOST: usize = 200;

/// Returns the beginning of `text` on one line.
pub(crate) fn printable(text: &str) -> String {
    let mut printable: String = text
        .chars()
        .take(MOST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(MOST).is_some() {
        printable.push('…');
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_stays_and_long_text_is_cut() {
        assert_eq!(
            printable("application/vnd.oci.image.index.v1+json"),
            "application/vnd.oci.image.index.v1+json"
        );
        assert_eq!(printable("a\n\u{1b}[31m"), "a\u{fffd}\u{fffd}[31m");
        assert_eq!(printable(&"é".repeat(1 << 20)).chars().count(), MOST + 1);
    }
}
