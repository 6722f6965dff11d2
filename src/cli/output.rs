//! Standard output and standard error. Results go to the first, messages for people to the second.

use std::io::{ErrorKind, Write as _};

use crate::failure::Failure;

/// Writes `text` to standard output. A reader that closes the pipe, as in `… | head`, is not a
/// failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes `bytes` to standard output.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::when("standard output cannot be written")(error))
        }
        _ => Ok(()),
    }
}

/// Writes `value` to standard output as indented JSON.
pub(super) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(Failure::when("result cannot be written as JSON"))?;
    text.push('\n');
    print(&text)
}

/// Writes a message to standard error.
pub(super) fn say(line: &str) {
    // If standard error is closed, there is no place to report it.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

pub(super) fn error_line(message: &str) {
    say(&format!("error: {message}"));
}
