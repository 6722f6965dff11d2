//! Why an operation that a person requested failed, in one line.

use std::error::Error;
use std::fmt;

/// A message of one line for the terminal: the attempted operation, and each cause behind it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    /// Returns a failure with the whole chain of causes of `error`.
    pub(crate) fn from_error(error: impl Error) -> Self {
        Self {
            message: chain(&error),
        }
    }

    /// Returns a function that wraps an error of the operation `action`.
    pub(crate) fn when<E: Error>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |error| Self {
            message: format!("{action}: caused by {}", chain(&error)),
        }
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Returns the text of `error` and its causes. A cause whose text is already part of the message is
/// left out.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": caused by ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer\nline")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[test]
    fn the_whole_chain_is_in_one_line() {
        assert_eq!(
            Failure::from_error(Outer(Inner)).to_string(),
            "outer line: caused by inner"
        );
        assert_eq!(
            Failure::when("trying")(Inner).to_string(),
            "trying: caused by inner"
        );
    }
}
