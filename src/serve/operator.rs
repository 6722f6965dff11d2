//! The requests of operators: status, conversions, page and metrics.

use std::sync::Arc;

use axum::extract::{Extension, FromRequestParts};
use http::request::Parts;

use super::access::Action;
use super::account::Account;
use super::app::App;
use super::caller::Caller;
use super::error::ApiError;
use super::face::Face;
use super::registry_request::Sender;

/// A sender that may operate the server. Any other request is refused before its handler runs.
#[derive(Debug)]
pub(crate) struct Operator;

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let face = Extension::<Face>::from_request_parts(parts, app).await;
        let Extension(face) = face.map_err(|_no_listener| ApiError::internal())?;
        admit_operator(app, face, &Caller::of(parts)).await?;
        Ok(Self)
    }
}

/// Admits an operator. The listener of the API is for operators as long as only this machine
/// reaches it.
pub(crate) async fn admit_operator(app: &App, face: Face, caller: &Caller) -> Result<(), ApiError> {
    let account = Account::current();
    if face == Face::Api && app.config.api_listen.ip().to_canonical().is_loopback() {
        account.is_local();
        return Ok(());
    }
    let sender = Sender::of(caller);
    let identity = app
        .access
        .identify(sender.headers, sender.certificate)
        .await;
    let admitted = identity.and_then(|identity| {
        account.identified(&identity);
        app.access.admit_to_all(&identity, Action::Admin)
    });
    admitted.map_err(|refusal| sender.refused(app, &refusal))
}
