//! containerd's filter language: `name==a,labels."b.c"~=/^d/`.
//!
//! ```text
//! filters  := filter*                           one must match
//! filter   := selector ("," selector)*          all must match
//! selector := field ("." field)* [operator value]
//! operator := "==" | "!=" | "~="                if there is none: the field is present
//! field    := [A-Za-z0-9_]+ | "quoted"
//! value    := [^ ,]+ | "quoted"                 also /quoted/ and |quoted| after ~=
//! ```

use std::iter::Peekable;
use std::str::CharIndices;

use regex::{Regex, RegexBuilder};

/// Most bytes of the filters of one list. containerd sends some hundred.
const MAX_BYTES: usize = 64 << 10;
/// Most regular expressions of one list, and most memory of each, in bytes.
const MAX_PATTERNS: usize = 64;
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Selects entries of a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    /// One of them must match. Everything matches if there is none.
    alternatives: Vec<Vec<Selector>>,
}

/// The reason why a text is not a filter.
#[derive(Debug, thiserror::Error)]
pub enum ParseFilterError {
    #[error("{filter:?} is not a filter: {expected} expected at byte {at}")]
    Syntax {
        filter: String,
        at: usize,
        expected: &'static str,
    },
    #[error("filters have more than {MAX_BYTES} bytes or {MAX_PATTERNS} regular expressions")]
    TooLong,
    #[error("{pattern:?} is not a regular expression")]
    Pattern {
        pattern: String,
        source: Box<regex::Error>,
    },
}

#[derive(Debug, Clone)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Parses filters, one of which must match. An empty text matches everything.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, ParseFilterError> {
        if filters.iter().map(String::len).sum::<usize>() > MAX_BYTES || filters.len() > MAX_BYTES {
            return Err(ParseFilterError::TooLong);
        }
        let mut patterns = 0;
        let mut alternatives = Vec::new();
        for filter in filters {
            let selectors = Parser::new(filter, &mut patterns).filter()?;
            alternatives.push(selectors);
        }
        Ok(Self { alternatives })
    }

    /// Whether an entry matches. `value` returns the entry's value at a path of fields, if it has
    /// one.
    pub(crate) fn matches<'a>(&self, value: impl Fn(&[String]) -> Option<&'a str>) -> bool {
        let all = |selectors: &Vec<Selector>| {
            selectors
                .iter()
                .all(|selector| selector.matches(value(&selector.field)))
        };
        self.alternatives.is_empty() || self.alternatives.iter().any(all)
    }
}

impl Selector {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    /// The regular expressions so far, of all filters.
    patterns: &'a mut usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, patterns: &'a mut usize) -> Self {
        Self {
            text,
            rest: text.char_indices().peekable(),
            patterns,
        }
    }

    fn filter(mut self) -> Result<Vec<Selector>, ParseFilterError> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => drop(self.rest.next()),
                Some(_) => return Err(self.expected("a comma")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, ParseFilterError> {
        let mut field = vec![self.field()?];
        while self.peek() == Some('.') {
            self.rest.next();
            field.push(self.field()?);
        }
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => self.test()?,
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String, ParseFilterError> {
        match self.peek() {
            Some('"') => self.quoted(),
            Some(first) if is_field(first) => Ok(self.take_while(is_field)),
            _ => Err(self.expected("a field")),
        }
    }

    fn test(&mut self) -> Result<Test, ParseFilterError> {
        match self.take_while(is_operator).as_str() {
            "==" => Ok(Test::Equal(self.value(false)?)),
            "!=" => Ok(Test::NotEqual(self.value(false)?)),
            "~=" => self.pattern().map(Test::Matches),
            _ => Err(self.expected("==, != or ~=")),
        }
    }

    fn pattern(&mut self) -> Result<Regex, ParseFilterError> {
        let pattern = self.value(true)?;
        *self.patterns += 1;
        if *self.patterns > MAX_PATTERNS {
            return Err(ParseFilterError::TooLong);
        }
        let built = RegexBuilder::new(&pattern)
            .size_limit(MAX_PATTERN_BYTES)
            .dfa_size_limit(MAX_PATTERN_BYTES)
            .build();
        built.map_err(|error| ParseFilterError::Pattern {
            pattern,
            source: Box::new(error),
        })
    }

    fn value(&mut self, is_pattern: bool) -> Result<String, ParseFilterError> {
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') if is_pattern => self.quoted(),
            None | Some('/' | '|' | '.' | ',') => Err(self.expected("a value")),
            Some(first) if is_operator(first) => Err(self.expected("a value")),
            Some(_) => Ok(self.take_while(|letter| letter != ',' && !letter.is_whitespace())),
        }
    }

    /// Reads a text between two quotes of the kind that comes next, with Go's escapes.
    fn quoted(&mut self) -> Result<String, ParseFilterError> {
        let Some((_, quote)) = self.rest.next() else {
            return Err(self.expected("a quote"));
        };
        let mut bytes = Vec::new();
        loop {
            match self.rest.next() {
                None | Some((_, '\n')) => return Err(self.expected("the closing quote")),
                Some((_, letter)) if letter == quote => break,
                Some((_, '\\')) => self.escape(quote, &mut bytes)?,
                Some((_, letter)) => push(&mut bytes, letter),
            }
        }
        String::from_utf8(bytes).map_err(|_not_utf8| self.expected("UTF-8"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), ParseFilterError> {
        let Some((_, letter)) = self.rest.next() else {
            return Err(self.expected("an escape"));
        };
        match letter {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            letter if letter == quote => push(bytes, quote),
            'x' => bytes.push(self.byte(0, 16, 2)?),
            '0'..='7' => bytes.push(self.byte(letter.to_digit(8).unwrap_or_default(), 8, 2)?),
            'u' => push(bytes, self.letter(4)?),
            'U' => push(bytes, self.letter(8)?),
            _ => return Err(self.expected("an escape")),
        }
        Ok(())
    }

    fn byte(&mut self, start: u32, base: u32, digits: usize) -> Result<u8, ParseFilterError> {
        let number = self.number(start, base, digits)?;
        u8::try_from(number).map_err(|_too_large| self.expected("a byte"))
    }

    fn letter(&mut self, digits: usize) -> Result<char, ParseFilterError> {
        let number = self.number(0, 16, digits)?;
        char::from_u32(number).ok_or_else(|| self.expected("a letter's number"))
    }

    /// Reads exactly `digits` digits, at most eight.
    fn number(&mut self, start: u32, base: u32, digits: usize) -> Result<u32, ParseFilterError> {
        let mut number = start;
        for _ in 0..digits {
            let digit = self
                .rest
                .next()
                .and_then(|(_, letter)| letter.to_digit(base));
            number = number.wrapping_mul(base) | digit.ok_or_else(|| self.expected("a digit"))?;
        }
        Ok(number)
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some((_, letter)) = self.rest.next_if(|&(_, letter)| fits(letter)) {
            taken.push(letter);
        }
        taken
    }

    /// Skips blanks and returns the next letter without consuming it.
    fn peek(&mut self) -> Option<char> {
        while self
            .rest
            .next_if(|(_, letter)| letter.is_whitespace())
            .is_some()
        {}
        self.rest.peek().map(|&(_, letter)| letter)
    }

    fn expected(&mut self, expected: &'static str) -> ParseFilterError {
        let at = self.rest.peek().map_or(self.text.len(), |&(at, _)| at);
        ParseFilterError::Syntax {
            filter: self.text.to_owned(),
            at,
            expected,
        }
    }
}

fn push(bytes: &mut Vec<u8>, letter: char) {
    bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_field(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

fn is_operator(letter: char) -> bool {
    matches!(letter, '=' | '!' | '~')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the filters match an entry with a name, an empty parent, and one label with dots in
    /// its key.
    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        Filter::parse(&filters)
            .unwrap()
            .matches(|path| match path.join("/").as_str() {
                "name" => Some("sha256:abc"),
                "parent" => Some(""),
                "labels/containerd.io/x.ref" | "labels/a/b" => Some("Ünit 7"),
                _ => None,
            })
    }

    #[test]
    fn every_operator_works_as_in_containerd() {
        for filter in [
            "",
            "name",
            "name==sha256:abc",
            "name == sha256:abc",
            "name==sha256:abc,parent==\"\"",
            "labels.\"containerd.io/x.ref\"==\"Ünit 7\"",
            "labels.a.b==\"\\u00dc\\x6eit \\067\"",
            "name!=x",
            "absent!=x",
            "name~=^sha256:[a-c]+$",
            "labels.a.b~=/^\\u00dcnit \\\\d$/",
            "labels.a.b~=|t 7|",
            "absent~=^$",
        ] {
            assert!(matches(&[filter]), "{filter}");
        }
        for filter in [
            "absent",
            "name==x",
            "name!=sha256:abc",
            "absent==\"\"",
            "name~=^abc",
            "name,absent",
        ] {
            assert!(!matches(&[filter]), "{filter}");
        }
    }

    #[test]
    fn of_several_filters_one_must_match() {
        assert!(matches(&[]));
        assert!(matches(&["name==x", "name"]));
        assert!(!matches(&["name==x", "absent"]));
    }

    #[test]
    fn an_invalid_filter_is_refused_with_its_position() {
        for filter in [
            ",",
            "name,",
            "name=x",
            "name===x",
            "name==",
            "name==,",
            "=x",
            "name==\"x",
            "name==/x/",
            "name x",
            ".name",
            "name.",
            "name==a b",
            "name==\"\\q\"",
            "name==\"\\xff\"",
            "name==\"\\uD800\"",
            "name==\"\\777\"",
            "name~=(",
        ] {
            assert!(Filter::parse(&[filter.to_owned()]).is_err(), "{filter}");
        }
        let error = Filter::parse(&["name==x y".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"name==x y\" is not a filter: a comma expected at byte 8"
        );
    }
}
