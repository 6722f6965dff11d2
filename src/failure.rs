//! Why something that a person asked for could not be done, in one line.

use std::error::Error;
use std::fmt;

/// One line for the person at the terminal: what was tried, and each cause behind it.
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

    /// The whole chain of causes of `error`.
    pub(crate) fn from_error(error: impl Error) -> Self {
        Self {
            message: chain(&error),
        }
    }

    /// What was tried when `error` came.
    pub(crate) fn when<E: Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| Self {
            message: format!("{what}: caused by {}", chain(&error)),
        }
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `error` and its causes. A cause that the text before it already tells is left out.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !message.contains(&told) {
            message.push_str(": caused by ");
            message.push_str(&told);
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
    fn the_whole_chain_stands_in_one_line() {
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
