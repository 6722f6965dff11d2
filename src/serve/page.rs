//! The page at `/`: what this is, how to use it from here, what it is doing.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{Html, IntoResponse as _, Response};
use http::header::{CONTENT_SECURITY_POLICY, HOST};
use http::{HeaderMap, HeaderValue};

use super::app::App;
use super::jobs::Job;

const TEMPLATE: &str = include_str!("page.html");
/// The page is one document with its own style; nothing else may load or run.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
/// Rows of each table.
const MAX_ROWS: usize = 20;

pub(crate) async fn show(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost:8080");
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    let page = TEMPLATE
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{generation}}", &escaped(&app.converter.generation().0))
        .replace("{{jobs}}", &rows(&app.jobs.list()))
        .replace("{{scheme}}", scheme)
        .replace("{{host}}", &escaped(host));
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()
}

fn rows(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "<tr><td colspan=3 class=none>None yet.</td></tr>".to_owned();
    }
    jobs.iter().take(MAX_ROWS).fold(String::new(), |mut rows, job| {
        let outcome = match (&job.twin, &job.error) {
            (Some(twin), _) => twin.to_string(),
            (None, Some(error)) => error.clone(),
            (None, None) => String::new(),
        };
        // Writing to a string cannot fail.
        let _written = write!(
            rows,
            "<tr><td>{}</td><td>{:?}</td><td class=digest>{}</td></tr>",
            escaped(&job.reference),
            job.state,
            escaped(&outcome)
        );
        rows
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
