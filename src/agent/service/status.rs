//! Errors of the agent as gRPC answers, with the codes that containerd expects.

use tonic::{Code, Status};

use crate::agent::snapshots::Error;
use crate::agent::snapshots::filter::ParseFilterError;
use crate::telemetry::log::chain;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = code(&error);
        // Only root can use the socket, so the client may read the whole text.
        let message = chain(&error);
        if code == Code::Internal {
            tracing::error!(error = message, "snapshot operation failed");
        }
        Self::new(code, message)
    }
}

impl From<ParseFilterError> for Status {
    fn from(error: ParseFilterError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::NoName
        | Error::ParentNotCommitted(_)
        | Error::ParentChanged(_)
        | Error::LabelTooLong(_)
        | Error::IdMap(_)
        | Error::NoSuchField(_) => Code::InvalidArgument,
        Error::HasChildren(_) | Error::NotActive(_) | Error::NotMountable(_) => {
            Code::FailedPrecondition
        }
        Error::Damaged { .. } | Error::Root(_) | Error::Metadata(_) | Error::Directory { .. } => {
            Code::Internal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_gets_the_codes_it_expects() {
        let name = || "a".to_owned();
        for (error, code) in [
            (Error::NotFound(name()), Code::NotFound),
            (Error::AlreadyExists(name()), Code::AlreadyExists),
            (Error::ParentNotCommitted(name()), Code::InvalidArgument),
            (Error::NoSuchField(name()), Code::InvalidArgument),
            (Error::HasChildren(name()), Code::FailedPrecondition),
            (Error::NotActive(name()), Code::FailedPrecondition),
            (Error::NotMountable(name()), Code::FailedPrecondition),
        ] {
            assert_eq!(Status::from(error).code(), code);
        }
        let io = std::io::Error::other("disk on fire");
        let status = Status::from(Error::Directory {
            path: "/x".into(),
            source: io,
        });
        assert_eq!(
            (status.code(), status.message()),
            (Code::Internal, "/x: disk on fire")
        );
    }
}
