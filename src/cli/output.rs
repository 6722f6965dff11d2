//! Standard output and standard error: results go to the first, everything said to a person to the second.

use std::io::{ErrorKind, Write as _};

use crate::failure::Failure;

/// Writes `text` to standard output. A reader that has gone away, as in `… | head`, is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// Writes `bytes` to standard output as they are.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::when("standard output cannot be written")(error))
        }
        _ => Ok(()),
    }
}

/// Writes `value` to standard output as JSON for machines and readers alike.
pub(super) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(Failure::when("the result is no JSON"))?;
    text.push('\n');
    print(&text)
}

/// Says something to the person at the terminal.
pub(super) fn say(line: &str) {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

pub(super) fn error_line(message: &str) {
    say(&format!("error: {message}"));
}
