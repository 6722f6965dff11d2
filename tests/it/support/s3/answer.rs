//! Answers in S3's format.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::TryStreamExt as _;

use super::Stored;

pub(super) fn xml(body: &str) -> Response {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}");
    Response::builder()
        .header(header::CONTENT_TYPE, "application/xml")
        .body(Body::from(body))
        .unwrap()
}

pub(super) fn error(status: StatusCode, code: &str) -> Response {
    let mut response = xml(&format!(
        "<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    ));
    *response.status_mut() = status;
    response
}

pub(super) fn listed(key: &str, stored: &Stored) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
        humantime::format_rfc3339_millis(stored.modified),
        stored.etag.replace('"', "&quot;"),
        stored.bytes.len()
    )
}

/// Returns the same head with a body that breaks off after `after` bytes.
pub(super) fn cut(response: Response, after: usize) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut left = after;
    let cut = body
        .into_data_stream()
        .map_err(std::io::Error::other)
        .and_then(move |bytes: Bytes| {
            let given = bytes.slice(..bytes.len().min(left));
            let is_cut = given.len() < bytes.len();
            left -= given.len();
            async move {
                if is_cut && given.is_empty() {
                    Err(std::io::Error::other("cut"))
                } else {
                    Ok((given, is_cut))
                }
            }
        });
    let broken =
        futures::stream::try_unfold((Box::pin(cut), false), |(mut bytes, ended)| async move {
            if ended {
                return Err(std::io::Error::other("cut"));
            }
            Ok(bytes
                .try_next()
                .await?
                .map(|(given, is_cut)| (given, (bytes, is_cut))))
        });
    // The length lets the client notice that the body is incomplete.
    if let Some(length) = parts.headers.get(header::CONTENT_RANGE).and_then(length_of) {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(parts, Body::from_stream(broken))
}

fn length_of(content_range: &axum::http::HeaderValue) -> Option<u64> {
    let (first, last) = content_range
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split('/')
        .next()?
        .split_once('-')?;
    Some(last.parse::<u64>().ok()? + 1 - first.parse::<u64>().ok()?)
}

/// Returns the range of a single `bytes=a-b` or `bytes=a-`.
pub(super) fn range(header: &str, length: usize) -> Option<Range<usize>> {
    let (start, end) = header.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if end.is_empty() {
        length
    } else {
        end.parse::<usize>().ok()?.saturating_add(1).min(length)
    };
    (start < end).then_some(start..end)
}

pub(super) fn percent_decoded(path: &str) -> String {
    let form = format!("path={}", path.replace('+', "%2B"));
    url::form_urlencoded::parse(form.as_bytes())
        .next()
        .map(|(_, path)| path.into_owned())
        .unwrap_or_default()
}

/// Formats a time like `Tue, 24 Nov 2026 00:03:56 GMT`.
pub(super) fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let days = time.duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let day = DAYS[usize::try_from(days % 7).unwrap()];
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let month = MONTHS[text[5..7].parse::<usize>().unwrap() - 1];
    format!(
        "{day}, {} {month} {} {} GMT",
        &text[8..10],
        &text[..4],
        &text[11..19]
    )
}
