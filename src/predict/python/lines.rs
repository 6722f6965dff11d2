//! The logical lines of a Python source (language reference, section 2.1). Comments and long
//! strings are left out, lines within brackets are joined.

use crate::predict::fuel::Fuel;

/// The longest logical line that is kept. Longer ones are data.
const MAX_LINE: usize = 64 << 10;
/// Columns between tab stops.
const TAB: usize = 8;

/// A logical line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) indent: usize,
    pub(super) text: String,
}

/// Splits a source into its lines. Empty ones are left out.
pub(super) fn lines(source: &str, fuel: &Fuel) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut line = Line::default();
    let mut depth = 0usize;
    let mut rest = source;
    while let Some(letter) = rest.chars().next().filter(|_| fuel.burn(1)) {
        let at_start = line.text.is_empty();
        match letter {
            ' ' if at_start && depth == 0 => line.indent += 1,
            '\t' if at_start && depth == 0 => line.indent = (line.indent / TAB + 1) * TAB,
            '\n' if depth == 0 => end(&mut lines, &mut line, fuel),
            '\n' | '\r' => push(&mut line, ' '),
            '#' => {
                rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                continue;
            }
            '\\' => {
                rest = rest.get(1..).unwrap_or_default();
                rest = rest
                    .strip_prefix("\r\n")
                    .or_else(|| rest.strip_prefix('\n'))
                    .unwrap_or(rest);
                continue;
            }
            '\'' | '"' => {
                let behind = text(rest, &mut line);
                fuel.look_through(rest.len() - behind.len());
                rest = behind;
                continue;
            }
            _ => {
                match letter {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                push(&mut line, letter);
            }
        }
        rest = &rest[letter.len_utf8()..];
    }
    end(&mut lines, &mut line, fuel);
    lines
}

fn push(line: &mut Line, letter: char) {
    if line.text.len() < MAX_LINE {
        line.text.push(letter);
    }
}

fn end(lines: &mut Vec<Line>, line: &mut Line, fuel: &Fuel) {
    let line = std::mem::take(line);
    if !line.text.trim().is_empty() && fuel.make(line.text.len() + size_of::<Line>()) {
        lines.push(Line {
            indent: line.indent,
            text: line.text.trim_end().to_owned(),
        });
    }
}

/// Reads the string that `rest` begins with and returns the text after it. A short string is kept
/// with its quotes.
fn text<'a>(rest: &'a str, line: &mut Line) -> &'a str {
    let quote = rest.chars().next().unwrap_or('"');
    let long: String = std::iter::repeat_n(quote, 3).collect();
    let mut escaped = false;
    if let Some(body) = rest.strip_prefix(long.as_str()) {
        push(line, quote);
        push(line, quote);
        for (at, letter) in body.char_indices() {
            if !escaped && body[at..].starts_with(long.as_str()) {
                return &body[at + long.len()..];
            }
            escaped = letter == '\\' && !escaped;
        }
        return "";
    }
    push(line, quote);
    let body = rest.get(quote.len_utf8()..).unwrap_or_default();
    for (at, letter) in body.char_indices() {
        match letter {
            '\n' if !escaped => return &body[at..],
            // A semicolon in a string does not end a statement.
            ';' => push(line, ' '),
            _ => push(line, letter),
        }
        if letter == quote && !escaped {
            return &body[at + letter.len_utf8()..];
        }
        escaped = letter == '\\' && !escaped;
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &str) -> Vec<(usize, String)> {
        lines(source, &Fuel::new())
            .into_iter()
            .map(|line| (line.indent, line.text))
            .collect()
    }

    #[test]
    fn lines_are_joined_and_long_texts_left_out() {
        let source = "a = (1, # one\n  2)\n\tb\n\n  c \\\n  d\n'''x\ny'''\ne = \"#\\\"\" # f\n";
        let expected = [
            (0, "a = (1,    2)"),
            (8, "b"),
            (2, "c   d"),
            (0, "''"),
            (0, "e = \"#\\\"\""),
        ];
        assert_eq!(
            read(source),
            expected.map(|(indent, text)| (indent, text.to_owned()))
        );
    }

    #[test]
    fn an_unclosed_string_or_bracket_ends_with_the_source() {
        assert_eq!(read("a = '''b\nc"), [(0, "a = ''".to_owned())]);
        assert_eq!(read("a = (b\nc"), [(0, "a = (b c".to_owned())]);
        assert_eq!(
            read("a = 'b\nc"),
            [(0, "a = 'b".to_owned()), (0, "c".to_owned())]
        );
    }
}
