//! Request bodies that are answered before they are read to their end.
//!
//! Over HTTP/1 such a connection cannot be used again, because the rest of the body is still on the
//! way. The answer has to say so (RFC 9112, section 9.6): a client that does not know it sends its
//! next request over a connection that is about to end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Whether the body of a request was read to its end. `None` if it has none, or if its connection
/// has streams.
#[derive(Debug)]
pub(super) struct Unread(Option<Arc<AtomicBool>>);

/// A body that notes its end.
struct Watched {
    inner: Body,
    has_ended: Arc<AtomicBool>,
}

/// Watches the body of a request.
pub(super) fn watch(request: Request) -> (Request, Unread) {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return (request, Unread(None));
    }
    let has_ended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&has_ended);
    let request = request.map(|inner| Body::new(Watched { inner, has_ended }));
    (request, Unread(Some(seen)))
}

impl Unread {
    /// Lets the connection end after the answer if the request's body was not read.
    pub(super) fn close_after(&self, response: &mut Response) {
        let has_ended = |seen: &Arc<AtomicBool>| seen.load(Ordering::Relaxed);
        if !self.0.as_ref().is_none_or(has_ended) {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if frame.is_none() || self.inner.is_end_stream() {
            self.has_ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn says_close(version: Version, body: &'static str, is_read: bool) -> bool {
        let request = Request::builder().version(version).body(Body::from(body));
        let (request, unread) = watch(request.unwrap());
        if is_read {
            assert_eq!(to_bytes(request.into_body(), 100).await.unwrap(), body);
        }
        let mut response = Response::default();
        unread.close_after(&mut response);
        response.headers().contains_key(CONNECTION)
    }

    #[tokio::test]
    async fn only_a_connection_with_the_rest_of_a_body_is_closed() {
        assert!(says_close(Version::HTTP_11, "body", false).await);
        assert!(!says_close(Version::HTTP_11, "body", true).await);
        assert!(!says_close(Version::HTTP_11, "", false).await);
        assert!(!says_close(Version::HTTP_2, "body", false).await);
    }
}
