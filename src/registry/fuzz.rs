//! Fuzz targets: headers that registries send, and the files that operators write.

use std::path::Path;
use std::time::SystemTime;

use reqwest::header::{
    CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RETRY_AFTER, WWW_AUTHENTICATE,
};

use super::challenge::Challenge;
use super::{headers as read, hosts};

/// Parses `data` as the value of each header that the client reads. Nothing panics, and content
/// ranges are valid.
pub fn headers(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let names = [
        CONTENT_RANGE,
        CONTENT_TYPE,
        LINK,
        RETRY_AFTER,
        WWW_AUTHENTICATE,
    ];
    let headers: HeaderMap = names
        .into_iter()
        .map(|name| (name, value.clone()))
        .collect();
    let _challenge = Challenge::from_headers(&headers);
    let _rest = (
        read::media_type(&headers),
        read::next_link(&headers),
        read::content_digest(&headers),
    );
    let _wait = read::retry_after(&headers, SystemTime::UNIX_EPOCH);
    if let Some((range, size)) = read::content_range(&headers) {
        assert!(
            range.start < range.end && size.is_none_or(|size| range.end <= size),
            "{range:?} of {size:?}"
        );
    }
}

/// Parses `data` as a `hosts.toml`.
pub fn hosts(data: &[u8]) {
    let _parsed = hosts::file::parse(&String::from_utf8_lossy(data), Path::new("/etc/certs"));
}
