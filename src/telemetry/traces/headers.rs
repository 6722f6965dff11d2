//! The file with the headers of exports.

use std::io;
use std::path::Path;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The longest file that is read.
const MAX_BYTES: usize = 64 << 10;

/// The reason why the headers cannot be used. It never shows a value, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    #[error("not readable")]
    Read(#[source] io::Error),
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("line {0} is not of the form Name: value")]
    Line(usize),
}

/// Reads the headers in `file`. Blocking, for a file of a few lines.
pub(super) fn read(file: &Path) -> Result<HeaderMap, HeadersError> {
    let text = std::fs::read_to_string(file).map_err(HeadersError::Read)?;
    if text.len() > MAX_BYTES {
        return Err(HeadersError::TooLong);
    }
    parse(&text)
}

fn parse(text: &str) -> Result<HeaderMap, HeadersError> {
    let mut headers = HeaderMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, mut value) = header(line).ok_or(HeadersError::Line(index + 1))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_headers_and_errors_name_only_the_line() {
        let headers = parse("# the token\nAuthorization: Bearer abc:d\n\nX-Scope: a\n").unwrap();
        assert_eq!(headers["authorization"], "Bearer abc:d");
        assert_eq!(headers["x-scope"], "a");
        for text in ["X-Scope: a\nhush", "a b: hush", "a: hu\u{1}sh"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
