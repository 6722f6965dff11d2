//! Endpoints for monitoring: alive, ready, metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::time::timeout;

use crate::convert::{Conversion, State as Progress};
use crate::telemetry::metrics::{CONTENT_TYPE as OPEN_METRICS, metrics as process};

use super::app::App;
use super::error::{ApiError, Chain};
use super::operator::Operator;
use super::response;

/// Longer than any healthy store takes, shorter than the usual timeout of a probe.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// Answers if the process does.
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

/// Answers whether the store is reachable and the server is not about to stop.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    let reason = if app.is_draining() {
        "stopping"
    } else {
        match timeout(STORE_PATIENCE, app.store.ready()).await {
            Ok(Ok(())) => return response::json(StatusCode::OK, &json!({ "ready": true })),
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "the store is out of reach");
                "the store is out of reach"
            }
            Err(_) => "the store does not answer",
        }
    };
    response::json(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({ "ready": false, "reason": reason }),
    )
}

/// The process's metrics, including those that are only counted on request.
pub(crate) async fn metrics(State(app): State<Arc<App>>, _: Operator) -> Response {
    let is_running = |conversion: &Conversion| conversion.state == Progress::Running;
    let running = app
        .converter
        .status()
        .iter()
        .filter(|conversion| is_running(conversion))
        .count();
    process()
        .conversions_running
        .set(i64::try_from(running).unwrap_or(i64::MAX));
    let (waiting, longest) = app.converter.queue();
    process()
        .conversions_waiting
        .set(i64::try_from(waiting).unwrap_or(i64::MAX));
    process().conversion_queue_age.set(longest.as_secs_f64());
    app.budgets.measure();
    match process().render() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => {
            tracing::warn!(%error, "metrics not rendered");
            ApiError::internal().into_response()
        }
    }
}
