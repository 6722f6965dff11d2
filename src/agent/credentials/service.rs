//! Forwards every call of the CRI image service to containerd unchanged: messages, metadata and
//! trailers. The credentials of a PullImage are recorded first, because layers are mounted while
//! the pull runs.

use std::convert::Infallible;
use std::path::Path;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::frame;
use super::logins::{CriCredentials, RecordedLogin};
use crate::containerd::runtime::v1::PullImageRequest;

const PULL_IMAGE: &str = "/runtime.v1.ImageService/PullImage";
/// The limit of the gRPC servers of kubelets and containerd.
const MAX_MESSAGE: usize = 16 << 20;
const STATUS_HEADER: &str = "grpc-status";

/// `runtime.v1.ImageService`, answered by containerd.
#[derive(Debug, Clone)]
pub struct ImageService {
    containerd: Channel,
    credentials: CriCredentials,
}

impl ImageService {
    /// Forwards calls to the socket of containerd's CRI service. The socket is dialled at the first
    /// call, and again after a lost connection. Must be called inside a runtime.
    ///
    /// # Errors
    /// If no socket can be dialled by this path.
    pub fn new(
        containerd: &Path,
        credentials: CriCredentials,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", containerd.display()))?;
        Ok(Self {
            containerd: endpoint.connect_lazy(),
            credentials,
        })
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().path() != PULL_IMAGE {
            return self.forward(request).await;
        }
        let (parts, body) = request.into_parts();
        let too_long = |error| Status::resource_exhausted(format!("request not readable: {error}"));
        let body = Limited::new(body, MAX_MESSAGE)
            .collect()
            .await
            .map_err(too_long)?
            .to_bytes();
        let noted = self.note(body.clone());
        let credentials = self.credentials.clone();
        let answer = self
            .forward(Request::from_parts(parts, Body::new(Full::new(body))))
            .await;
        if let Some(noted) = noted
            && !answer.as_ref().is_ok_and(may_be_success)
        {
            credentials.withdraw(noted);
        }
        answer
    }

    fn note(&self, body: Bytes) -> Option<RecordedLogin> {
        let pull: PullImageRequest = frame::message(body)?;
        self.credentials.note(&pull.image?.image, &pull.auth?)
    }

    async fn forward(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let gone = |error| {
            Status::unavailable(format!("containerd's CRI service does not answer: {error}"))
        };
        self.containerd.oneshot(request).await.map_err(gone)
    }
}

/// Whether the call may have succeeded, as far as the head of the answer shows. A refusal has no
/// body, so its status is in the head.
fn may_be_success(response: &Response<Body>) -> bool {
    let status = response.headers().get(STATUS_HEADER);
    status.is_none_or(|status| Code::from_bytes(status.as_bytes()) == Code::Ok)
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<Request<Body>> for ImageService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}
