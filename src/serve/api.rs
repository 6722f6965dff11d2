//! Starlift's own API: status, and conversions before any pull.

use std::sync::Arc;

use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::convert::{Conversion, State as ConversionState};
use crate::oci::route::Location;
use crate::telemetry::traces::in_trace;

use super::access::{Action, Admission, Proof, Reader};
use super::account::Account;
use super::ahead::{self, Target};
use super::app::App;
use super::caller::Caller;
use super::error::{ApiError, refused};
use super::face::Face;
use super::jobs::{Asked, Job};
use super::operator::{Operator, admit_operator};
use super::registry_request::{Sender, admit};
use super::{request_body, response};

/// The longest request body: one reference, escaped in any way.
pub(crate) const MAX_BODY: usize = 16 << 10;

/// The body of a request to convert.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    reference: String,
}

pub(crate) async fn status(State(app): State<Arc<App>>, _: Operator) -> Response {
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "generation": app.converter.generation(),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "draining": app.is_draining(),
        "conversions": app.converter.status(),
        "profiles": app.profiles.status(),
        "budgets": app.budgets.status(),
    });
    response::json(StatusCode::OK, &status)
}

pub(crate) async fn list(State(app): State<Arc<App>>, _: Operator) -> Response {
    response::json(StatusCode::OK, &json!({ "conversions": app.jobs.list() }))
}

/// Shows one job to operators, and to clients that may start it.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Extension(face): Extension<Face>,
    Path(id): Path<String>,
    caller: Caller,
) -> Response {
    let job = app.jobs.get(&id);
    let operator = admit_operator(&app, face, &caller).await;
    let location = job.as_ref().and_then(Job::location);
    let admitted = match (operator, location) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(location)) => admit_to_warm(&app, &caller, &location).await.map(drop),
        (refused, None) => refused,
    };
    if let Err(failure) = admitted {
        return failure.into_response();
    }
    let Some(job) = job else {
        return refused(StatusCode::NOT_FOUND, "no such conversion").into_response();
    };
    // An index's images are converted on their own, in the same repository.
    let is_part = |conversion: &Conversion| {
        let is_running = conversion.state == ConversionState::Running;
        Some(&conversion.source) == job.source.as_ref()
            || is_running && job.is_of(&conversion.upstream, &conversion.repository)
    };
    let progress: Vec<_> = app.converter.status().into_iter().filter(is_part).collect();
    response::json(
        StatusCode::OK,
        &json!({ "conversion": job, "progress": progress }),
    )
}

/// Starts a conversion and answers 202 at once. Only JSON is accepted, because a foreign web page
/// cannot send it without permission.
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    Extension(face): Extension<Face>,
    request: Request,
) -> Response {
    start_wanted(&app, face, request)
        .await
        .unwrap_or_else(ApiError::into_response)
}

async fn start_wanted(app: &Arc<App>, face: Face, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    if !is_json(&parts.headers) {
        return Err(refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is application/json",
        ));
    }
    let body = request_body::read(app, &parts.headers, body, MAX_BODY).await?;
    let bad = |message: &str| refused(StatusCode::BAD_REQUEST, message);
    let Wanted { reference } = serde_json::from_slice(&body.bytes)
        .map_err(|_no_reference| bad("the body is {\"reference\": \"…\"}"))?;
    let target = Target::parse(&reference, |name| app.upstreams.is_configured(name));
    let target = target.ok_or_else(|| bad("that is no reference"))?;
    let caller = Caller::of(&parts);
    let operator = admit_operator(app, face, &caller).await;
    let admission = match (operator, app.source(&target.location.upstream)) {
        (Ok(()), Ok(source)) => Admission {
            reader: Reader::Server,
            source,
        },
        _ => admit_to_warm(app, &caller, &target.location).await?,
    };
    let account = Account::current();
    account.asks_for(Action::Warm, &target.location);
    account.asks_for_reference(&target.reference);
    let ticket = account.conversion().take(app).await?;
    let ticket = ticket.map_err(|over| ApiError::over_budget(&over, false))?;
    let (job, is_new) = app
        .jobs
        .start(&reference, &target.location, Asked::Api)
        .ok_or_else(ApiError::busy)?;
    if is_new {
        let (app, id) = (Arc::clone(app), job.id.clone());
        tokio::spawn(in_trace(ahead::run(app, id, target, admission, ticket)));
    }
    let mut response = response::json(StatusCode::ACCEPTED, &json!({ "conversion": job }));
    response::set(
        response.headers_mut(),
        LOCATION,
        &format!("/api/v1/conversions/{}", job.id),
    );
    Ok(response)
}

/// Admits a client that wants to convert an image before it is pulled.
async fn admit_to_warm(
    app: &App,
    caller: &Caller,
    location: &Location,
) -> Result<Admission, ApiError> {
    let sender = Sender::of(caller);
    let proof = async { Ok(Proof::Tags) };
    admit(app, &sender, Action::Warm, location, proof).await
}

pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    kind.is_some_and(|value| {
        value
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim() == "application/json")
    })
}
