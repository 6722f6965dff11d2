//! The page at `/`: what Starlift is, how to use this server, and its current work.

use std::sync::{Arc, LazyLock};

use axum::extract;
use axum::response::{Html, IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_SECURITY_POLICY, HOST};
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::convert::{Conversion, State};

use super::app::App;
use super::config::Config;
use super::jobs::Job;
use super::operator::Operator;

const TEMPLATE: &str = include_str!("page.html");
/// The page is one document with this one style. Nothing else may load or run, and no other page
/// may frame it.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = TEMPLATE
        .split_once("<style>")
        .and_then(|(_, rest)| rest.split_once("</style>"));
    let hash = STANDARD.encode(Sha256::digest(style.map_or("", |(style, _)| style)));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});
/// Rows of each table.
const MAX_ROWS: usize = 20;

pub(crate) async fn show(
    extract::State(app): extract::State<Arc<App>>,
    _: Operator,
    headers: HeaderMap,
) -> Response {
    let host = images_at(&app.config, &headers);
    let scheme = if app.config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let page = TEMPLATE
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{generation}}", &escaped(&app.converter.generation().0))
        .replace("{{jobs}}", &job_rows(&app.jobs.list()))
        .replace("{{conversions}}", &conversion_rows(&app.converter.status()))
        .replace("{{scheme}}", scheme)
        .replace("{{host}}", &escaped(&host));
    ([(CONTENT_SECURITY_POLICY, POLICY.clone())], Html(page)).into_response()
}

/// The host that images are pulled from: this one, or that of the public listener.
fn images_at(config: &Config, headers: &HeaderMap) -> String {
    let here = || {
        headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .map(str::to_owned)
    };
    let elsewhere = || match config.hosts.first() {
        Some(name) => format!("{name}:{}", config.listen.port()),
        None => config.listen.to_string(),
    };
    if config.has_api_listener() {
        elsewhere()
    } else {
        here().unwrap_or_else(elsewhere)
    }
}

fn job_rows(jobs: &[Job]) -> String {
    table(jobs.iter().take(MAX_ROWS).map(|job| {
        let converted = job.converted.as_ref().map(ToString::to_string);
        [
            job.reference.clone(),
            format!("{:?}", job.state).to_lowercase(),
            converted
                .or(job.error.map(|reason| reason.to_string()))
                .unwrap_or_default(),
        ]
    }))
}

fn conversion_rows(conversions: &[Conversion]) -> String {
    table(conversions.iter().take(MAX_ROWS).map(|conversion| {
        let name = format!("{}/{}", conversion.upstream, conversion.repository);
        [name, progress(conversion), conversion.source.to_string()]
    }))
}

/// `running, 41 % of 2 layers`.
fn progress(conversion: &Conversion) -> String {
    let (done, total) = conversion
        .layers
        .iter()
        .fold((0, 0), |(done, total), layer| {
            (done + layer.done, total + layer.total)
        });
    match conversion.state {
        State::Running if total > 0 => {
            let percent = u128::from(done) * 100 / u128::from(total);
            let layers = conversion.layers.len();
            let plural = if layers == 1 { "" } else { "s" };
            format!("running, {} % of {layers} layer{plural}", percent.min(100))
        }
        State::Running => "running".to_owned(),
        State::Converted => "converted".to_owned(),
        State::PassedThrough => "passes through".to_owned(),
        State::Failed => "failed".to_owned(),
    }
}

fn table(rows: impl Iterator<Item = [String; 3]>) -> String {
    let rows: String = rows
        .map(|[name, state, what]| {
            let (name, state, what) = (escaped(&name), escaped(&state), escaped(&what));
            format!("<tr><td>{name}</td><td>{state}</td><td class=digest>{what}</td></tr>")
        })
        .collect();
    if rows.is_empty() {
        "<tr><td colspan=3 class=none>None yet.</td></tr>".to_owned()
    } else {
        rows
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_become_markup() {
        let row = table(std::iter::once([
            "<script>".to_owned(),
            "\"".to_owned(),
            "&".to_owned(),
        ]));
        assert!(!row.contains("<script>"));
        assert!(row.contains("&lt;script&gt;") && row.contains("&quot;") && row.contains("&amp;"));
    }
}
