//! Parses the headers of answers leniently: unreadable parts count as absent. Pure functions.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LINK, RETRY_AFTER};

use crate::oci::Digest;

pub(super) const DIGEST_HEADER: &str = "docker-content-digest";
/// The longest wait that is returned. Nobody waits longer, and sums of waits do not overflow.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Headers with the seconds until a rate limit resets, used if `Retry-After` is absent
/// (draft-ietf-httpapi-ratelimit-headers).
const LIMIT_RESETS: [&str; 2] = ["ratelimit-reset", "x-ratelimit-reset"];
/// A reset value from here on is a date in seconds since 1970, which some servers send.
const FIRST_DATE: u64 = 1_000_000_000;

/// Returns the range of `Content-Range: bytes FIRST-LAST/SIZE`, and the size unless it is `*`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    parse_content_range(text(headers, CONTENT_RANGE.as_str())?)
}

/// Returns the size in `Content-Range: bytes */SIZE`.
pub(super) fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    let (range, size) = byte_range(text(headers, CONTENT_RANGE.as_str())?)?;
    size.trim().parse().ok().filter(|_| range.trim() == "*")
}

fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = byte_range(text)?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse::<u64>().ok()?),
    };
    let is_sound = first <= last && last < size.unwrap_or(u64::MAX);
    is_sound.then(|| (first..last + 1, size))
}

fn byte_range(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let unit = text
        .get(..5)
        .filter(|unit| unit.eq_ignore_ascii_case("bytes"))?;
    text.get(unit.len()..)?
        .trim_start_matches([' ', '=', ':'])
        .split_once('/')
}

/// Returns the number of requests in a header of a rate limit: `76;w=21600`, or only the number
/// (docs.docker.com, "Docker Hub usage and limits"; draft-ietf-httpapi-ratelimit-headers).
pub(super) fn quota(headers: &HeaderMap, name: &str) -> Option<i64> {
    let requests = text(headers, name)?.split([';', ',']).next()?.trim();
    let requests = requests.parse::<u32>().ok()?;
    Some(i64::from(requests))
}

/// Returns `Content-Type` in lower case, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let media_type = text(headers, CONTENT_TYPE.as_str())?
        .split([';', ','])
        .next()?
        .trim();
    (!media_type.is_empty()).then(|| media_type.to_ascii_lowercase())
}

/// Returns `Docker-Content-Digest`, or `None` if it is not a valid digest.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, DIGEST_HEADER)?
        .trim()
        .trim_matches('"')
        .parse()
        .ok()
}

/// Returns how long the host asks clients to wait before the next request.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let header = text(headers, RETRY_AFTER.as_str()).and_then(|value| wait(value, now));
    let reset = || {
        LIMIT_RESETS
            .iter()
            .find_map(|name| reset(text(headers, name)?, now))
    };
    header.or_else(reset).map(|wait| wait.min(MAX_WAIT))
}

fn wait(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let seconds = value
        .parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let until = || {
        Some(
            httpdate::parse_http_date(value)
                .ok()?
                .duration_since(now)
                .unwrap_or_default(),
        )
    };
    seconds.or_else(until)
}

fn reset(value: &str, now: SystemTime) -> Option<Duration> {
    let seconds: u64 = value.split([',', ';']).next()?.trim().parse().ok()?;
    if seconds < FIRST_DATE {
        return Some(Duration::from_secs(seconds));
    }
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Some(Duration::from_secs(seconds).saturating_sub(since))
}

/// Returns the target of the first `Link: <…>; rel="next"` (RFC 8288).
pub(super) fn next_link(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(next_of)
}

fn next_of(text: &str) -> Option<String> {
    let mut rest = text;
    while let Some((_, link)) = rest.split_once('<') {
        let (target, behind) = link.split_once('>')?;
        let end = behind.find('<').unwrap_or(behind.len());
        let (parameters, next) = behind.split_at(end);
        if parameters.split([';', ',']).any(is_next) {
            return Some(target.trim().to_owned());
        }
        rest = next;
    }
    None
}

/// Whether a parameter is `rel` with `next` among its values.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = value
        .trim()
        .trim_matches(['"', '\''])
        .split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )])
    }

    #[test]
    fn content_ranges_make_sense_or_are_none() {
        assert_eq!(parse_content_range("bytes 0-0/1"), Some((0..1, Some(1))));
        assert_eq!(
            parse_content_range(" Bytes=5 - 9 / 100"),
            Some((5..10, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5..10, None)));
        for text in [
            "",
            "bytes */5",
            "bytes 5-4/100",
            "bytes 5-100/100",
            "bytes 0-18446744073709551615/*",
            "0-1/2",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
        assert_eq!(
            unsatisfied_size(&headers("content-range", "bytes */5")),
            Some(5)
        );
        assert_eq!(
            unsatisfied_size(&headers("content-range", "bytes 0-1/5")),
            None
        );
    }

    #[test]
    fn the_next_page_is_found_in_every_form() {
        let next = |value: &str| next_link(&headers("link", value));
        for value in [
            "</x?n=2&last=b>; rel=\"next\"",
            "</x?n=2&last=b>;rel=next",
            " < /x?n=2&last=b > ; title=\"a, b\"; REL = 'Next'",
            "</first>; rel=\"first\", </x?n=2&last=b>; rel=\"last next\"",
        ] {
            assert_eq!(next(value).as_deref(), Some("/x?n=2&last=b"), "{value}");
        }
        for value in [
            "",
            "</x>",
            "</x>; rel=prev",
            "/x; rel=next",
            "</x; rel=next",
            "</x>; next",
        ] {
            assert_eq!(next(value), None, "{value}");
        }
        let mut several = headers("link", "</a>; rel=prev");
        several.append(LINK, HeaderValue::from_static("</b>; rel=next"));
        assert_eq!(next_link(&several).as_deref(), Some("/b"));
    }

    #[test]
    fn waits_are_read_in_seconds_or_as_dates_and_are_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let wait = |name: &'static str, value: &str| {
            retry_after(&headers(name, value), now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("retry-after", " 7"), Some(7));
        assert_eq!(wait("retry-after", "1.5"), Some(1));
        assert_eq!(
            wait(
                "retry-after",
                &httpdate::fmt_http_date(now + Duration::from_secs(60))
            ),
            Some(60)
        );
        assert_eq!(wait("retry-after", "9999999999"), Some(MAX_WAIT.as_secs()));
        assert_eq!(wait("retry-after", "soon"), None);
        assert_eq!(wait("retry-after", "-1"), None);
        assert_eq!(wait("ratelimit-reset", "9, x"), Some(9));
        assert_eq!(wait("x-ratelimit-reset", "1700000030"), Some(30));
    }

    #[test]
    fn media_types_lose_their_parameters_and_digests_their_quotes() {
        assert_eq!(
            media_type(&headers("content-type", "Text/HTML; charset=utf-8")).as_deref(),
            Some("text/html")
        );
        assert_eq!(media_type(&headers("content-type", ";")), None);
        let digest = Digest::sha256_of(b"x");
        assert_eq!(
            content_digest(&headers(DIGEST_HEADER, &format!(" \"{digest}\""))),
            Some(digest)
        );
        assert_eq!(
            content_digest(&headers(DIGEST_HEADER, "sha256:short")),
            None
        );
    }

    proptest! {
        #[test]
        fn parsers_accept_any_text_and_keep_their_bounds(text in "[ -~]{0,80}", bytes in "(bytes)? ?[0-9*-]{0,24}/[0-9*]{0,24}") {
            let next = next_of(&text);
            prop_assert!(next.is_none_or(|next| text.contains(&next)));
            if let Some((range, size)) = parse_content_range(&bytes) {
                prop_assert!(range.start < range.end && size.is_none_or(|size| range.end <= size));
            }
            let now = SystemTime::UNIX_EPOCH;
            prop_assert!(retry_after(&headers("retry-after", &text), now).is_none_or(|wait| wait <= MAX_WAIT));
        }
    }
}
