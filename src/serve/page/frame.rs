//! The frame of every page: head, navigation and footer, and the policy for browsers.

use std::sync::LazyLock;

use axum::response::{Html, IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use http::{HeaderValue, StatusCode};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use crate::serve::app::App;

const STYLE: &str = include_str!("style.css");
/// A page is one document with this one style. Nothing else may load or run, no other page may
/// frame it, and its forms go nowhere else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});
/// Pages show the present state, and not everybody may see them.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The place of a page in the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Start,
    Images,
    None,
}

/// A page before it is framed.
pub(super) struct Page {
    pub(super) title: String,
    pub(super) tab: Tab,
    /// The text in the search box.
    pub(super) search: String,
    /// Seconds after which the browser loads the page again.
    pub(super) refresh: Option<u32>,
    pub(super) content: Markup,
}

impl Page {
    pub(super) fn new(title: impl Into<String>, tab: Tab, content: Markup) -> Self {
        Self {
            title: title.into(),
            tab,
            search: String::new(),
            refresh: None,
            content,
        }
    }

    pub(super) fn answer(self, app: &App) -> Response {
        self.answer_with(StatusCode::OK, Some(app))
    }

    /// The answer with another status. A refusal names neither version nor generation.
    pub(super) fn answer_with(self, status: StatusCode, app: Option<&App>) -> Response {
        let page = self.framed(app).into_string();
        let mut response = (status, Html(page)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
        headers.insert(CACHE_CONTROL, NO_STORE);
        response
    }

    fn framed(self, app: Option<&App>) -> Markup {
        let current = |tab: Tab| (self.tab == tab).then_some("page");
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    @if let Some(seconds) = self.refresh {
                        meta http-equiv="refresh" content=(seconds);
                    }
                    title { (self.title) " · Starlift" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a class="skip" href="#content" { "Skip to the content" }
                    header class="top" {
                        div class="wide" {
                            a class="brand" href="/" { span aria-hidden="true" { "↥" } " Starlift" }
                            @if app.is_some() {
                                nav aria-label="Pages" {
                                    a href="/" aria-current=[current(Tab::Start)] { "Start" }
                                    a href="/images" aria-current=[current(Tab::Images)] { "Images" }
                                }
                                form role="search" action="/images" {
                                    input type="search" name="q" value=(self.search) maxlength="255"
                                        placeholder="Name or digest" aria-label="Search images by name or digest";
                                    button { "Search" }
                                }
                            }
                        }
                    }
                    main id="content" class="wide" { (self.content) }
                    @if let Some(app) = app { (footer(app)) }
                }
            }
        }
    }
}

fn footer(app: &App) -> Markup {
    html! {
        footer class="wide" {
            p {
                "Starlift " (env!("CARGO_PKG_VERSION")) " · generation "
                code { (app.converter.generation().0) }
            }
            nav aria-label="For machines" {
                a href="/api/v1/status" { "Status" }
                a href="/metrics" { "Metrics" }
                a href="/readyz" { "Ready" }
            }
        }
    }
}

/// A page that says why there is no other.
pub(super) fn failure(app: &App, status: StatusCode, title: &str, text: &str) -> Response {
    let content = html! {
        h1 { (title) }
        p class="lead" { (text) }
        p { a href="/images" { "All images" } }
    };
    Page::new(title, Tab::None, content).answer_with(status, Some(app))
}

/// A page for a store or TOC that could not be read. The log has the cause.
pub(super) fn unreadable(app: &App, error: &(dyn std::error::Error + 'static)) -> Response {
    let chain = crate::telemetry::log::chain(error);
    tracing::warn!(error = chain, "the page has no content");
    let text =
        "The store or the layer could not be read; the log has more. Reload the page to try again.";
    failure(
        app,
        StatusCode::SERVICE_UNAVAILABLE,
        "Not readable now",
        text,
    )
}
