//! Lists of tags, in pages, in the upstream's order.

use axum::response::Response;
use http::StatusCode;
use http::header::LINK;
use serde_json::json;

use crate::oci::error::ErrorCode;
use crate::registry;

use super::app::App;
use super::error::{ApiError, Subject};
use super::registry_request::RegistryRequest;
use super::response;

/// The longest page. A larger `n` gets this many and a link to the next page.
const MAX_PAGE: usize = 1000;
/// The text around a tag or a name, in bytes.
const PUNCTUATION: usize = 32;
const JSON: &str = "application/json";

pub(crate) async fn answer(app: &App, ask: &RegistryRequest) -> Result<Response, ApiError> {
    let n = ask.query("n").map(page_size).transpose()?;
    let last = ask.query("last").filter(|last| !last.is_empty());
    if n == Some(0) {
        return page(app, ask, Vec::new(), None).await;
    }
    let fail =
        |error: registry::Error| ApiError::upstream(&error, Subject::Repository, ask.is_mirror);
    let mut found = ask
        .admission
        .source
        .tags(&ask.location.repository, n, last)
        .await
        .map_err(fail)?;
    if !found.more {
        found.tags.sort_unstable();
    }
    let next = found
        .tags
        .last()
        .filter(|_| found.more)
        .map(|tag| next_page(ask, n.unwrap_or(MAX_PAGE), tag));
    page(app, ask, found.tags, next).await
}

fn page_size(text: &str) -> Result<usize, ApiError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        let message = "n is a number of tags";
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            ErrorCode::PaginationNumberInvalid,
            message,
        ));
    }
    Ok(text.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE))
}

async fn page(
    app: &App,
    ask: &RegistryRequest,
    tags: Vec<String>,
    next: Option<String>,
) -> Result<Response, ApiError> {
    let tags_size: usize = tags.iter().map(|tag| tag.len() + PUNCTUATION).sum();
    let size = tags_size + ask.name.as_str().len();
    let list = json!({ "name": ask.name.as_str(), "tags": tags });
    let bytes = app.documents.json(size as u64, list).await?;
    let mut response = response::document(StatusCode::OK, JSON, bytes);
    if let Some(next) = next {
        response::set(response.headers_mut(), LINK, &next);
    }
    Ok(response)
}

/// A relative link, because this server does not know its own name behind a proxy. The link keeps
/// the namespace.
fn next_page(ask: &RegistryRequest, n: usize, last: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query
        .append_pair("n", &n.to_string())
        .append_pair("last", last);
    if let Some(namespace) = &ask.namespace {
        query.append_pair("ns", namespace);
    }
    format!(
        "</v2/{}/tags/list?{}>; rel=\"next\"",
        ask.name,
        query.finish()
    )
}
