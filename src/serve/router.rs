//! Paths to handlers. Repository names hold slashes, so all of `/v2/` is one handler's, whose path is
//! split by [`RegistryRequest`].

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use futures::FutureExt as _;
use futures::future::Either;
use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use serde_json::json;
use tower::ServiceExt as _;

use crate::oci::route::{Operation, RouteError};

use super::access::Refusal;
use super::app::App;
use super::caller::Caller;
use super::error::ApiError;
use super::face::Face;
use super::registry_request::{RegistryRequest, Sender};
use super::{
    ahead, api, blobs, health, manifests, middleware, page, profiles, referrers, response, tags,
    token,
};

/// The requests of a listener.
#[derive(Clone)]
pub(crate) struct Routes {
    app: Arc<App>,
    face: Face,
    router: Router,
}

impl Routes {
    pub(crate) fn new(app: &Arc<App>, face: Face) -> Self {
        Self {
            app: Arc::clone(app),
            face,
            router: router(Arc::clone(app), face),
        }
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, request: Request) -> Response {
        middleware::observe(&self.app, request, |request| self.handle(request)).await
    }

    /// Lazy clients send thousands of requests for ranges a second. Those for images do not pass
    /// through the router, whose layers copy themselves for each request.
    async fn handle(&self, request: Request) -> Response {
        let is_of_image = self.face != Face::Api
            && matches!(request.uri().path().strip_prefix("/v2/"), Some(rest) if !rest.is_empty());
        let answer = if is_of_image {
            Either::Left(registry(&self.app, request))
        } else {
            let answer = self.router.clone().oneshot(request);
            Either::Right(answer.map(|answer| answer.unwrap_or_else(|never| match never {})))
        };
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        answer.unwrap_or_else(panicked)
    }
}

/// All but the requests for images.
fn router(app: Arc<App>, face: Face) -> Router {
    let health = Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready));
    let public = Router::new()
        .route("/v2", any(ping))
        .route("/v2/", any(ping))
        // This handler limits its body itself.
        .route("/token", get(token::give).post(token::give_by_form))
        // These handlers limit their bodies themselves.
        .route("/api/v1/notifications/{name}", post(ahead::take))
        .route(
            "/api/v1/profiles/{stack}",
            get(profiles::show).post(profiles::take),
        );
    let api = Router::new()
        .route("/metrics", get(health::metrics))
        .route("/", get(page::start))
        .route("/images", get(page::images))
        .route("/images/{image}", get(page::image))
        .route("/images/{image}/layers/{layer}", get(page::folder))
        .route("/sign-in", get(page::sign_in))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/conversions", get(api::list).post(api::start))
        .route("/api/v1/conversions/{id}", get(api::one));
    let routes = match face {
        Face::Local => health.merge(public).merge(api),
        Face::Public => health.merge(public),
        Face::Api => health.merge(api),
    };
    routes
        .fallback(missing)
        .layer(Extension(face))
        .layer(DefaultBodyLimit::max(api::MAX_BODY))
        .with_state(app)
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Clients ask here first. A challenge makes them log in; without one, some send no credentials at
/// all, also where they are needed.
async fn ping(State(app): State<Arc<App>>, method: Method, caller: Caller) -> Response {
    if !is_read(&method) {
        return ApiError::method().into_response();
    }
    let sender = Sender::of(&caller);
    let identity = app.access.identify(sender.headers, sender.certificate);
    let refusal = match identity.await {
        // A certificate only is not enough: the client may have other credentials too, which some
        // clients send only after a challenge here.
        Ok(_) if app.access.is_open() || sender.headers.contains_key(AUTHORIZATION) => {
            return response::json(StatusCode::OK, &json!({}));
        }
        Ok(_) => Refusal::Unidentified,
        Err(refusal) => refusal,
    };
    sender.refused(&app, &refusal).into_response()
}

async fn registry(app: &Arc<App>, request: Request) -> Response {
    if !is_read(request.method()) {
        return ApiError::method().into_response();
    }
    let ask = match RegistryRequest::read(app, request).await {
        Ok(ask) => ask,
        Err(failure) => return failure.into_response(),
    };
    let answer = match &ask.operation {
        Operation::Manifest(reference) => Box::pin(manifests::answer(app, &ask, reference)).await,
        Operation::Blob(digest) => blobs::answer(app, &ask, digest).await,
        Operation::Referrers(digest) => Box::pin(referrers::answer(app, &ask, digest)).await,
        Operation::Tags => Box::pin(tags::answer(app, &ask)).await,
    };
    answer.unwrap_or_else(ApiError::into_response)
}

async fn missing() -> Response {
    ApiError::route(&RouteError::Endpoint).into_response()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the layer defines the signature"
)]
fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(message, "a handler panicked");
    ApiError::internal().into_response()
}
