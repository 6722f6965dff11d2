//! Who may see the pages. Browsers ask their users for a password only after a Basic challenge,
//! so that pages have one where registry clients get a Bearer challenge.

use std::sync::Arc;

use axum::extract::{Extension, FromRequestParts};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use maud::html;

use super::frame::{Page, Tab};
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::face::Face;
use crate::serve::operator::admit_operator;

/// RFC 7617: names and passwords are sent as UTF-8.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"Starlift\", charset=\"UTF-8\"");

/// A reader that may operate the server. Any other gets a page that says so, and 401 with a Basic
/// challenge if it has not shown who it is.
#[derive(Debug)]
pub(crate) struct Viewer;

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let face = Extension::<Face>::from_request_parts(parts, app).await;
        let Extension(face) = face.map_err(axum::response::IntoResponse::into_response)?;
        let admitted = admit_operator(app, face, &Caller::of(parts)).await;
        match admitted {
            Ok(()) => Ok(Self),
            Err(refusal) => Err(refused(refusal.into_response())),
        }
    }
}

/// Turns the answer for registry clients into one for people. Its reason for the audit log stays.
fn refused(answer: Response) -> Response {
    let status = answer.status();
    let (title, text) = match status {
        StatusCode::UNAUTHORIZED => (
            "Sign in",
            "This page is for the operators of the server. Sign in with a user and a password of the server whose rules allow admin.",
        ),
        StatusCode::FORBIDDEN => (
            "Not for this user",
            "The rules of the server do not let this user operate it.",
        ),
        // Access cannot be checked, or the server failed: nothing to say to people only.
        _ => return answer,
    };
    let content = html! {
        h1 { (title) }
        p class="lead" { (text) }
        p { a class="button" href="/sign-in" { "Sign in as another user" } }
    };
    let page = Page::new(title, Tab::None, content);
    let mut response = page.answer_with(status, None);
    *response.extensions_mut() = answer.extensions().clone();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    }
    response
}

/// `GET /sign-in`: leads operators to the start page, and asks all others for a password, also
/// those that have shown one.
pub(crate) async fn sign_in(viewer: Result<Viewer, Response>) -> Response {
    match viewer {
        Ok(Viewer) => Redirect::to("/").into_response(),
        Err(mut answer) if answer.status() == StatusCode::FORBIDDEN => {
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            answer.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
            answer
        }
        Err(answer) => answer,
    }
}
