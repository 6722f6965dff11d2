//! The head of an answer, what it means, and its body still to come.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use reqwest::header::{AsHeaderName, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use url::Url;

use super::error::Error;
use super::http::transport;

/// An answer whose body has not been read.
#[derive(Debug)]
pub(super) struct Answer {
    response: Response,
    /// Where it came from in the end.
    pub(super) url: Url,
    /// Whether it came from the host that was asked.
    pub(super) is_own: bool,
    /// Whether the host that was asked is a Starlift server.
    pub(super) is_starlift: bool,
    /// How long the body may say nothing.
    patience: Duration,
}

impl Answer {
    pub(super) fn new(response: Response, url: Url, is_own: bool, patience: Duration) -> Self {
        Self { response, url, is_own, is_starlift: false, patience }
    }

    pub(super) fn of_starlift(self, is_starlift: bool) -> Self {
        Self { is_starlift, ..self }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The answer, if it is a success.
    pub(super) fn accepted(self) -> Result<Self, Error> {
        if !self.status().is_success() {
            return Err(self.refusal());
        }
        if self.header(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Error::Malformed("the answer is encoded though nobody asked for it".to_owned()));
        }
        Ok(self)
    }

    /// What an answer that is no success means.
    pub(super) fn refusal(&self) -> Error {
        match self.status() {
            StatusCode::UNAUTHORIZED => Error::Unauthorized,
            StatusCode::FORBIDDEN => Error::Denied,
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound,
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { retry_after: self.retry_after() },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let size = self.header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                Error::RangeNotSatisfiable { size }
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Error::Unavailable(format!("status {status}"))
            }
            status => Error::Malformed(format!("status {status}")),
        }
    }

    /// `Retry-After` in seconds or as a date.
    fn retry_after(&self) -> Option<Duration> {
        let value = self.header(RETRY_AFTER)?;
        if let Ok(seconds) = value.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(value).ok()?;
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The body as it comes; silence is an error.
    pub(super) fn chunks(self) -> BoxStream<'static, Result<Bytes, Error>> {
        let state = (self.response, self.patience);
        let chunks = stream::try_unfold(state, |(mut response, patience)| async move {
            let chunk = heard(patience, response.chunk()).await?;
            Ok(chunk.map(|chunk| (chunk, (response, patience))))
        });
        chunks.boxed()
    }

    /// The whole body, of at most `limit` bytes.
    pub(super) async fn limited_body(self, limit: u64) -> Result<Bytes, Error> {
        if self.response.content_length().is_some_and(|length| length > limit) {
            return Err(Error::TooLarge { limit });
        }
        let mut body = BytesMut::new();
        let mut chunks = self.chunks();
        while let Some(chunk) = chunks.next().await.transpose()? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(Error::TooLarge { limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

/// Waits for a sign of the upstream, but not for ever.
pub(super) async fn heard<T>(
    patience: Duration,
    sign: impl Future<Output = Result<T, reqwest::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(patience, sign).await {
        Ok(heard) => heard.map_err(transport),
        Err(_) => Err(Error::Unavailable(format!("silent for {}", humantime::format_duration(patience)))),
    }
}
