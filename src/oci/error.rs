//! The error body and the error codes of a registry (OCI distribution-spec, "Error Codes").

use serde::{Deserialize, Serialize};

/// The codes of the specification that a read-only registry needs, and two that docker-registry
/// added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    BlobUnknown,
    DigestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    Denied,
    Unauthorized,
    Unsupported,
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// docker-registry's code for "not now".
    Unavailable,
    /// docker-registry's code for everything internal.
    Unknown,
}

/// `{"errors":[…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub errors: Vec<ErrorEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEntry {
    pub code: ErrorCode,
    pub message: String,
    pub detail: serde_json::Value,
}

impl ErrorBody {
    pub fn new(code: ErrorCode, message: String, detail: serde_json::Value) -> Self {
        Self {
            errors: vec![ErrorEntry {
                code,
                message,
                detail,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_body_has_the_form_of_the_specification() {
        let body = ErrorBody::new(
            ErrorCode::ManifestUnknown,
            "no".to_owned(),
            serde_json::Value::Null,
        );
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(
            text,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no","detail":null}]}"#
        );
        let code = serde_json::to_string(&ErrorCode::TooManyRequests).unwrap();
        assert_eq!(code, r#""TOOMANYREQUESTS""#);
    }
}
