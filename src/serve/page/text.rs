//! Numbers, times and foreign names as people read them.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// The longest name that is shown, in characters.
const MAX_NAME: usize = 200;
/// The characters of a query's value that stay: those that no reader of a URL changes.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// `58.1 MB`, in powers of ten.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // In hundredths of the unit. Rounding to tenths may reach the next unit.
    let tenths_of = |rest: u64| (rest / 10 + 5) / 10;
    let (mut rest, mut unit) = (bytes, 0);
    while tenths_of(rest) >= 10_000 && unit + 1 < UNITS.len() {
        rest /= 1000;
        unit += 1;
    }
    let tenths = tenths_of(rest);
    let name = UNITS.get(unit).copied().unwrap_or_default();
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A number with a narrow space between thousands.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `340 ms`, `1.2 s`, `2 min 5 s`, `3 h 10 min`, `2 days`.
pub(super) fn duration(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        0 => format!("{millis} ms"),
        1..=59 => format!("{}.{} s", seconds, millis % 1000 / 100),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => match seconds / 86_400 {
            1 => "1 day".to_owned(),
            days => format!("{} days", number(days)),
        },
    }
}

/// How long ago a time was, in seconds since 1970.
pub(super) fn ago(then: u64, now: u64) -> String {
    match now.saturating_sub(then) {
        0..=59 => "less than a minute ago".to_owned(),
        60..=3599 => format!("{} min ago", now.saturating_sub(then) / 60),
        3600..=86_399 => format!("{} h ago", now.saturating_sub(then) / 3600),
        seconds => format!("{} ago", duration(Duration::from_secs(seconds))),
    }
}

/// A time for machines, in seconds since 1970: `2026-11-29T20:33:00Z`. Empty if there is no such
/// time.
pub(super) fn machine_time(seconds: u64) -> String {
    // The year 9999 is the last one that the format has.
    const LAST: u64 = 253_402_300_799;
    if seconds > LAST {
        return String::new();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// `2026-11-29 20:33`, in UTC.
pub(super) fn time(seconds: u64) -> String {
    let text = machine_time(seconds).replace('T', " ");
    text.get(..16).unwrap_or("unknown").to_owned()
}

/// A foreign name: bytes that are no text, control characters and those that turn the direction of
/// writing are shown by their numbers. A long name is cut.
pub(super) fn name(name: &[u8]) -> String {
    let mut shown = String::new();
    let mut count = 0;
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            count += 1;
            if count > MAX_NAME {
                return shown + "…";
            }
            if is_misleading(character) {
                let _infallible = write!(shown, "\\u{{{:x}}}", u32::from(character));
            } else {
                shown.push(character);
            }
        }
        for byte in chunk.invalid() {
            count += 1;
            let _infallible = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// Whether a character is invisible, or changes how those beside it look.
fn is_misleading(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The first digits of a digest.
pub(super) fn short(digest: &crate::oci::Digest) -> &str {
    digest.hex().get(..12).unwrap_or_default()
}

/// Bytes as the value of a query's parameter.
pub(super) fn encoded(value: &[u8]) -> String {
    value.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.extend(utf8_percent_encode(chunk.valid(), VALUE));
        for byte in chunk.invalid() {
            let _infallible = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The bytes of the first parameter of the query with this name.
pub(super) fn parameter(uri: &Uri, name: &str) -> Option<Vec<u8>> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let value = pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)?
        .1;
    let value = value.replace('+', " ");
    Some(percent_decode_str(&value).collect())
}

/// The number in a parameter, or 0.
pub(super) fn number_in(uri: &Uri, name: &str) -> usize {
    let value = parameter(uri, name).and_then(|value| String::from_utf8(value).ok());
    value.and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_one_decimal() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1449, "1.4 kB"),
            (1450, "1.5 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (58_123_456, "58.1 MB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text, "{size}");
        }
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(number(12), "12");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(duration(Duration::from_millis(340)), "340 ms");
        assert_eq!(duration(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(duration(Duration::from_secs(86_400)), "1 day");
        assert_eq!(time(1_700_000_000), "2023-11-14 22:13");
        assert_eq!(time(u64::MAX), "unknown");
        assert_eq!(ago(100, 90), "less than a minute ago");
        assert_eq!(ago(0, 7200), "2 h ago");
    }

    #[test]
    fn hostile_names_are_shown_by_their_numbers() {
        assert_eq!(name("ü/<b>".as_bytes()), "ü/<b>", "templates escape markup");
        assert_eq!(name(b"a\xff\xfeb\n"), "a\\xff\\xfeb\\u{a}");
        assert_eq!(name("gnp.\u{202e}exe".as_bytes()), "gnp.\\u{202e}exe");
        assert_eq!(name(&[b'x'; 1000]).chars().count(), MAX_NAME + 1);
    }

    #[test]
    fn bytes_survive_a_query() {
        let odd = b"a b+&=%\xff/\xc3\xbc\"'<";
        let uri: Uri = format!("/x?y=1&in={}", encoded(odd)).parse().unwrap();
        assert_eq!(parameter(&uri, "in").unwrap(), odd);
        assert_eq!(number_in(&uri, "y"), 1);
        assert_eq!(number_in(&uri, "in"), 0);
        assert_eq!(parameter(&uri, "absent"), None);
    }
}
