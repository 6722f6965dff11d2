//! Lists of images: one reference a line, comments behind `#`.

use std::io::{self, Read as _};
use std::path::Path;

use crate::failure::Failure;

/// The longest list: a hundred thousand references.
const MAX_LIST: u64 = 16 << 20;

/// Reads a file, or standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<String>, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(MAX_LIST + 1)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_LIST + 1).read_to_string(&mut text))
    };
    let length = read.map_err(Failure::when(format!("{shown} cannot be read")))?;
    if length as u64 > MAX_LIST {
        return Err(Failure::new(format!("{shown} is over {MAX_LIST} bytes")));
    }
    parse(&text).map_err(|line| Failure::new(format!("{shown}, line {line}: more than one word")))
}

/// Returns the references, or the number of the line that holds more than one word.
fn parse(text: &str) -> Result<Vec<String>, usize> {
    let mut references = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut words = line
            .split_whitespace()
            .take_while(|word| !word.starts_with('#'));
        let Some(reference) = words.next() else {
            continue;
        };
        if words.next().is_some() {
            return Err(number + 1);
        }
        references.push(reference.to_owned());
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_left_out() {
        let text = "# images\n\n  nginx:1  \nghcr.io/a/b:2 # the app\r\n\t#c\nlast";
        assert_eq!(parse(text).unwrap(), ["nginx:1", "ghcr.io/a/b:2", "last"]);
        assert_eq!(parse("a\nb c\n"), Err(2));
        assert_eq!(parse(""), Ok(Vec::new()));
    }
}
