//! Translates every failure into an HTTP answer, in one place: status, code, and a message for the
//! client.
//!
//! The client gets a sentence without internal names. The log gets the chain of errors, once, with
//! the request's id.

use std::error::Error as StdError;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use crate::budget::Full;
use crate::oci::error::{ErrorBody, ErrorCode};
use crate::oci::range::unsatisfied_range;
use crate::oci::route::RouteError;
use crate::registry;
use crate::store;
use crate::telemetry::{log, metrics};

use super::access::Refusal;
use super::budgets::{NotNow, OverBudget};
use super::response;

/// The kind of the requested object, which decides the code of a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Manifest,
    Blob,
    Repository,
}

impl Subject {
    fn unknown(self) -> ErrorCode {
        match self {
            Self::Manifest => ErrorCode::ManifestUnknown,
            Self::Blob => ErrorCode::BlobUnknown,
            Self::Repository => ErrorCode::NameUnknown,
        }
    }
}

/// A failure, as the client sees it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: ErrorCode,
    message: String,
    retry_after: Option<Duration>,
    content_range: Option<String>,
    /// The value of `WWW-Authenticate`.
    challenge: Option<String>,
    /// Why a client was refused, for the audit log.
    reason: Option<Reason>,
}

/// Why a client was refused something, in the audit log. Answers carry it as an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason(pub(crate) String);

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after: None,
            content_range: None,
            challenge: None,
            reason: None,
        }
    }

    pub(crate) fn not_found(asked: Subject) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            asked.unknown(),
            "not known here nor to the upstream",
        )
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// An internal failure: logged here and not shown to the client.
    pub(crate) fn inside(error: &(dyn StdError + 'static)) -> Self {
        warn(error);
        Self::internal()
    }

    pub(crate) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Unsupported,
            "this registry is read-only",
        )
    }

    pub(crate) fn busy() -> Self {
        let busy = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "too many requests at once",
        );
        Self {
            retry_after: Some(Duration::from_secs(1)),
            reason: Some("busy".into()),
            ..busy
        }
    }

    /// A client has used up a budget. A mirror's client gets 503 for the reason that
    /// [`ApiError::upstream`] has.
    pub(crate) fn over_budget(over: &OverBudget, is_mirror: bool) -> Self {
        let OverBudget {
            of,
            budget,
            retry_after,
        } = over;
        let message = format!("the budget of this {of} for {budget} is used up");
        let refused = Self::new(too_many(is_mirror), ErrorCode::TooManyRequests, message);
        // In whole seconds, so that asking again at that time is not too early.
        let seconds = retry_after.as_nanos().div_ceil(1_000_000_000);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        Self {
            retry_after: Some(Duration::from_secs(seconds)),
            reason: Some(Reason(format!("budget-{of}-{budget}"))),
            ..refused
        }
    }

    /// A request whose sender may do what it asks for, only not now.
    pub(crate) fn not_now(refused: &NotNow, is_mirror: bool) -> Self {
        match refused {
            NotNow::NoPlace(none) => {
                metrics()
                    .requests_refused
                    .get_or_create(&[("reason", none.label())])
                    .inc();
                Self::busy()
            }
            NotNow::OverBudget(over) => Self::over_budget(over, is_mirror),
        }
    }

    /// The same with the reason of a refusal, for the audit log.
    pub(crate) fn because(self, reason: &str) -> Self {
        Self {
            reason: Some(reason.into()),
            ..self
        }
    }

    /// No memory is left for the content of a request.
    pub(crate) fn full(full: &Full) -> Self {
        metrics()
            .requests_refused
            .get_or_create(&[("reason", "memory")])
            .inc();
        tracing::info!(
            budget = full.name,
            wanted = full.wanted,
            "refused: no memory is left for it"
        );
        Self::busy()
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Unknown,
            "internal error; the log has more",
        )
    }

    /// A refusal of the access rules. Only clients without sufficient credentials get the challenge.
    pub(crate) fn access(refusal: &Refusal, challenge: String) -> Self {
        let unauthorized = |message: &str| Self {
            challenge: Some(challenge),
            ..Self::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message)
        };
        match refusal {
            Refusal::Unidentified => {
                unauthorized("credentials are needed for this").because("no-credentials")
            }
            Refusal::BadCredentials => {
                unauthorized("the credentials are wrong or expired").because("bad-credentials")
            }
            Refusal::Denied => Self::denied("access denied").because("rule"),
            Refusal::Unavailable => {
                let message = "access cannot be checked now";
                let unavailable = Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    ErrorCode::Unavailable,
                    message,
                );
                Self {
                    retry_after: Some(Duration::from_secs(1)),
                    ..unavailable.because("upstream-silent")
                }
            }
        }
    }

    /// The upstream did not answer in time.
    pub(crate) fn timeout() -> Self {
        let message = "the upstream did not answer in time";
        Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable, message)
    }

    pub(crate) fn unsatisfiable(size: u64) -> Self {
        let message = "no range lies within the blob";
        let failure = Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::Unsupported,
            message,
        );
        Self {
            content_range: Some(unsatisfied_range(size)),
            ..failure
        }
    }

    /// The parts are so many and so far apart that reading them would cost the upstream far more
    /// than the client needs. The status is 400 because stargz-snapshotter then asks for one range
    /// at a time.
    pub(crate) fn far_parts() -> Self {
        let message = "too many parts far from each other in a blob that is not held here; ask for fewer at once";
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
    }

    pub(crate) fn route(error: &RouteError) -> Self {
        let (status, code) = match error {
            RouteError::Endpoint => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
            RouteError::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
            RouteError::Name => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
            RouteError::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            // The specification has no code for an invalid tag. A tag that cannot exist is not
            // found.
            RouteError::Tag => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
        };
        Self::new(status, code, error.to_string())
    }

    /// An upstream's failure. `is_mirror` says whether the client has other hosts to try.
    ///
    /// An upstream's 401 becomes 403: a challenge would ask clients for credentials that this
    /// server cannot pass on. 429 becomes 503 for mirrors, because containerd repeats after a 429
    /// at once and never tries the next host.
    pub(crate) fn upstream(error: &registry::Error, asked: Subject, is_mirror: bool) -> Self {
        use registry::Error;
        match error {
            Error::NotFound => Self::not_found(asked),
            Error::UnknownUpstream(_) => Self::new(
                StatusCode::NOT_FOUND,
                ErrorCode::NameUnknown,
                "no such upstream is configured or allowed",
            )
            .because("upstream-not-allowed"),
            Error::Unauthorized => {
                Self::denied("the upstream wants credentials that this server does not have")
                    .because("upstream")
            }
            Error::Denied => Self::denied("the upstream denies access").because("upstream"),
            // Only the log names the address: an operator has to allow it by name.
            refused @ Error::Refused(_) => {
                warn(refused);
                Self::denied("this server may not dial that address").because("address")
            }
            Error::RangeNotSatisfiable { size: Some(size) } => Self::unsatisfiable(*size),
            Error::TooManyRequests { retry_after } => {
                let failure = Self::new(
                    too_many(is_mirror),
                    ErrorCode::TooManyRequests,
                    "the upstream asks for fewer requests",
                );
                Self {
                    retry_after: *retry_after,
                    ..failure
                }
            }
            other => {
                warn(other);
                let message = "the upstream does not answer as it should";
                Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, message)
            }
        }
    }

    /// The digest is of an image that this name was not shown to hold.
    pub(crate) fn other_name() -> Self {
        Self::denied("this repository was not shown to hold that digest").because("other-name")
    }

    fn denied(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        let failure = Self::inside(&error);
        if !error.is_forgotten() && !matches!(error, store::Error::Full { .. }) {
            return failure;
        }
        let message = "the store has to make it again; ask once more";
        let busy = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            message,
        );
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..busy
        }
    }
}

/// The status for too many requests. See [`ApiError::upstream`].
fn too_many(is_mirror: bool) -> StatusCode {
    if is_mirror {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::TOO_MANY_REQUESTS
    }
}

/// Logs an error and its causes. The span of the request carries its id.
fn warn(error: &(dyn StdError + 'static)) {
    tracing::warn!(error = %Chain(error), "the request failed");
}

/// An error and its causes on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn StdError + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.", log::chain(self.0))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody::new(self.code, self.message, Value::Null);
        let mut response = response::json(self.status, &body);
        if let Some(reason) = self.reason {
            response.extensions_mut().insert(reason);
        }
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if let Some(range) = self
            .content_range
            .and_then(|range| HeaderValue::from_str(&range).ok())
        {
            headers.insert(CONTENT_RANGE, range);
        }
        if let Some(challenge) = &self.challenge {
            response::set(headers, WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// A request to the API that is not one.
pub(crate) fn refused(status: StatusCode, message: impl Into<String>) -> ApiError {
    ApiError::new(status, ErrorCode::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(error: &registry::Error, is_mirror: bool) -> u16 {
        ApiError::upstream(error, Subject::Manifest, is_mirror)
            .into_response()
            .status()
            .as_u16()
    }

    #[test]
    fn upstream_failures_are_mapped_on_purpose() {
        use registry::Error;
        let cases = [
            (Error::NotFound, 404, 404),
            (Error::UnknownUpstream("a.b".to_owned()), 404, 404),
            (Error::Unauthorized, 403, 403),
            (Error::Denied, 403, 403),
            (Error::Refused("10.0.0.1".to_owned()), 403, 403),
            (Error::TooManyRequests { retry_after: None }, 429, 503),
            (Error::Unavailable("x".to_owned()), 502, 502),
            (Error::TooLarge { limit: 1 }, 502, 502),
            (Error::Malformed("x".to_owned()), 502, 502),
        ];
        for (error, direct, mirror) in cases {
            assert_eq!(status_of(&error, false), direct, "{error}");
            assert_eq!(status_of(&error, true), mirror, "{error} for a mirror");
        }
    }

    #[test]
    fn retry_after_is_kept() {
        let error = registry::Error::TooManyRequests {
            retry_after: Some(Duration::from_secs(7)),
        };
        let response = ApiError::upstream(&error, Subject::Manifest, true).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "7");
    }

    #[test]
    fn a_used_up_budget_names_the_time_in_whole_seconds_and_never_too_early() {
        for (millis, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (59_500, "60")] {
            let over = OverBudget {
                of: "identity",
                budget: "requests",
                retry_after: Duration::from_millis(millis),
            };
            for (is_mirror, status) in [(false, 429), (true, 503)] {
                let response = ApiError::over_budget(&over, is_mirror).into_response();
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()[RETRY_AFTER], seconds);
            }
        }
    }

    #[test]
    fn internal_failures_are_not_shown_to_clients() {
        let error = store::Error::Config("the secret bucket".to_owned());
        let failure = ApiError::from(error);
        assert!(!failure.message.contains("secret"));
        assert_eq!(failure.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
