//! Splits a shell script into commands and words (POSIX, "Shell Command Language", section 2.3),
//! without running any.
//!
//! The output of a substitution is not known: a word with one in it is dropped, and the command
//! inside is a command of its own.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use super::fuel::Fuel;

/// The deepest nesting of substitutions.
const MAX_NESTED: usize = 32;
/// The longest word, including the value of a variable (Linux, `MAX_ARG_STRLEN`). No program can
/// receive a longer one.
const MAX_WORD: usize = 128 << 10;
/// Most bytes of a command's words. Programs can receive sixteen times as many, but no known image
/// passes them.
const MAX_WORDS: usize = 128 << 10;
/// Bytes that a word or a part of one takes besides its text.
const BYTES_OF_WORD: usize = 256;
const BYTES_OF_PART: usize = 64;

/// The words of a command, without its redirections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Command {
    words: Vec<Word>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Word {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A variable, and the value to use if it is empty.
    Variable(String, Option<String>),
    /// The output of a substitution or a calculation.
    Unknown,
}

impl Command {
    /// Returns the words with these variables replaced, without the words that are not known.
    /// Returns no words if they are too long for any program, or once the fuel has ended.
    pub(super) fn expanded(
        &self,
        variables: &BTreeMap<String, String>,
        arguments: &[String],
        fuel: &Fuel,
    ) -> Vec<String> {
        let (mut words, mut bytes) = (Vec::new(), 0);
        for word in fuel.each(&self.words) {
            let before = words.len();
            if let [Part::Variable(name, _)] = word.parts.as_slice()
                && matches!(name.as_str(), "@" | "*")
            {
                words.extend(fuel.copies(arguments.iter().map(String::as_str)));
            } else {
                words.extend(word.expanded(variables, arguments, fuel));
            }
            bytes += words
                .iter()
                .skip(before)
                .map(|word| word.len() + size_of::<String>())
                .sum::<usize>();
            if bytes > MAX_WORDS || !fuel.lasts() {
                return Vec::new();
            }
        }
        words
    }
}

impl Word {
    fn expanded(
        &self,
        variables: &BTreeMap<String, String>,
        arguments: &[String],
        fuel: &Fuel,
    ) -> Option<String> {
        let mut text = String::new();
        for part in fuel.each(&self.parts) {
            let piece = match part {
                Part::Text(piece) => piece,
                Part::Variable(name, otherwise) => {
                    let argument = || arguments.get(name.parse::<usize>().ok()?.checked_sub(1)?);
                    let value = variables
                        .get(name)
                        .or_else(argument)
                        .filter(|value| !value.is_empty());
                    value.or(otherwise.as_ref())?
                }
                Part::Unknown => return None,
            };
            if text.len() + piece.len() > MAX_WORD || !fuel.make(piece.len()) {
                return None;
            }
            text.push_str(piece);
        }
        Some(text)
    }

    fn push(&mut self, letter: char) {
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.push(letter),
            _ => self.parts.push(Part::Text(letter.into())),
        }
    }
}

/// Returns the first `most` commands of a script, those in substitutions before the commands around
/// them.
pub(super) fn commands(text: &str, most: usize, fuel: &Fuel) -> Vec<Command> {
    let mut reader = Reader {
        letters: text.chars().peekable(),
        done: Vec::new(),
        open: vec![Open::default()],
        here: Vec::new(),
        fuel: fuel.clone(),
    };
    reader.read(most);
    reader.done.truncate(most);
    reader.done
}

/// An unfinished command.
#[derive(Default)]
struct Open {
    command: Command,
    word: Option<Word>,
    in_quotes: bool,
    /// Whether it ends at a backquote.
    is_backquoted: bool,
    /// The redirection that the next word belongs to.
    redirects: Option<Redirection>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirection {
    File,
    Here,
}

struct Reader<'a> {
    letters: Peekable<Chars<'a>>,
    done: Vec<Command>,
    /// The outermost first. Never empty.
    open: Vec<Open>,
    /// The ends of the here-documents of this line.
    here: Vec<String>,
    fuel: Fuel,
}

impl Reader<'_> {
    fn read(&mut self, most: usize) {
        while self.done.len() < most
            && let Some(letter) = self.letter()
        {
            let in_quotes = self.top().in_quotes;
            match letter {
                '\\' => match self.letter() {
                    Some('\n') | None => {}
                    Some(letter) => self.word().push(letter),
                },
                '\'' if !in_quotes => self.single_quoted(),
                '"' => {
                    self.word();
                    self.top().in_quotes = !in_quotes;
                }
                '$' => self.dollar(),
                '`' => self.backquote(),
                letter if in_quotes => self.word().push(letter),
                ' ' | '\t' | '\r' => self.end_word(),
                '\n' => {
                    self.end_command();
                    self.skip_here_documents();
                }
                ';' | '&' | '|' | '(' => self.end_command(),
                ')' => self.close(),
                '<' | '>' => self.redirection(letter),
                '#' if self.top().word.is_none() => {
                    while self.letter_if(|letter| letter != '\n').is_some() {}
                }
                letter => self.word().push(letter),
            }
        }
        while self.open.len() > 1 {
            self.close();
        }
        self.end_command();
    }

    fn letter(&mut self) -> Option<char> {
        self.letter_if(|_| true)
    }

    /// Takes the next letter if `is_wanted` returns true for it.
    fn letter_if(&mut self, is_wanted: impl FnOnce(char) -> bool) -> Option<char> {
        self.letters
            .next_if(|letter| self.fuel.burn(1) && is_wanted(*letter))
    }

    fn top(&mut self) -> &mut Open {
        if self.open.is_empty() {
            self.open.push(Open::default());
        }
        let last = self.open.len() - 1;
        &mut self.open[last]
    }

    /// Returns the unfinished word. The fuel is charged for its parts as they begin, and for its
    /// letters as they are read.
    fn word(&mut self) -> &mut Word {
        if self.top().word.is_none() {
            self.fuel.make(BYTES_OF_WORD);
        }
        self.top().word.get_or_insert_default()
    }

    fn end_word(&mut self) {
        let top = self.top();
        let Some(word) = top.word.take() else { return };
        match top.redirects.take() {
            None => top.command.words.push(word),
            Some(Redirection::File) => {}
            Some(Redirection::Here) => {
                let end = word
                    .expanded(&BTreeMap::new(), &[], &self.fuel)
                    .unwrap_or_default();
                self.here.push(end);
            }
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        let command = std::mem::take(&mut self.top().command);
        if !command.words.is_empty() {
            self.done.push(command);
        }
    }

    fn single_quoted(&mut self) {
        self.word();
        while let Some(letter) = self.letter_if(|letter| letter != '\'') {
            self.word().push(letter);
        }
        self.letters.next();
    }

    fn dollar(&mut self) {
        self.fuel.make(BYTES_OF_PART);
        match self.letters.peek() {
            Some('(') => {
                self.letters.next();
                self.word().parts.push(Part::Unknown);
                if self.open.len() <= MAX_NESTED {
                    self.open.push(Open::default());
                }
            }
            Some('{') => {
                self.letters.next();
                let variable = self.braced();
                self.word().parts.push(variable);
            }
            Some(letter) if letter.is_ascii_alphabetic() || *letter == '_' => {
                let mut name = String::new();
                while let Some(letter) =
                    self.letter_if(|letter| letter.is_ascii_alphanumeric() || letter == '_')
                {
                    name.push(letter);
                }
                self.word().parts.push(Part::Variable(name, None));
            }
            Some(letter) if letter.is_ascii_digit() || "@*#?$!-".contains(*letter) => {
                let name = self.letters.next().into_iter().collect();
                self.word().parts.push(Part::Variable(name, None));
            }
            _ => self.word().push('$'),
        }
    }

    /// Reads the rest of `${…}`.
    fn braced(&mut self) -> Part {
        let mut depth = 1;
        let mut text = String::new();
        while let Some(letter) = self.letter() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            text.push(letter);
        }
        let end = text
            .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .unwrap_or(text.len());
        let (name, rest) = if text == "@" || text == "*" {
            (text.as_str(), "")
        } else {
            text.split_at(end)
        };
        let otherwise = rest
            .strip_prefix(":-")
            .or_else(|| rest.strip_prefix('-'))
            .or_else(|| rest.strip_prefix(":="));
        match (name, rest, otherwise) {
            ("", _, _) => Part::Unknown,
            (name, "", _) => Part::Variable(name.to_owned(), None),
            (name, _, Some(otherwise)) if !otherwise.contains('$') => Part::Variable(
                name.to_owned(),
                Some(otherwise.trim_matches(['"', '\'']).to_owned()),
            ),
            _ => Part::Unknown,
        }
    }

    /// Handles a backquote. The old substitution does not nest: the second backquote closes it.
    fn backquote(&mut self) {
        if self.top().is_backquoted {
            self.close();
            return;
        }
        self.fuel.make(BYTES_OF_PART);
        self.word().parts.push(Part::Unknown);
        if self.open.len() <= MAX_NESTED {
            self.open.push(Open {
                is_backquoted: true,
                ..Open::default()
            });
        }
    }

    /// Handles `)`, which ends a substitution, a group, or the pattern of a case. A pattern is not
    /// a command.
    fn close(&mut self) {
        if self.open.len() > 1 {
            self.end_command();
            self.open.pop();
            return;
        }
        self.end_word();
        let words = std::mem::take(&mut self.top().command.words);
        if words.len() > 1 {
            self.done.push(Command { words });
        }
    }

    fn redirection(&mut self, letter: char) {
        let is_number = |word: &Word| matches!(word.parts.as_slice(), [Part::Text(text)] if text.parse::<u8>().is_ok());
        if self.top().word.as_ref().is_some_and(is_number) {
            self.top().word = None;
        }
        self.end_word();
        let mut kind = Redirection::File;
        if letter == '<' && self.letters.next_if_eq(&'<').is_some() {
            // `<<<` takes a word of text.
            kind = if self.letters.next_if_eq(&'<').is_some() {
                Redirection::File
            } else {
                Redirection::Here
            };
            self.letters.next_if_eq(&'-');
        }
        while self
            .letter_if(|letter| matches!(letter, '>' | '&' | '|'))
            .is_some()
        {}
        self.top().redirects = Some(kind);
    }

    fn skip_here_documents(&mut self) {
        for end in std::mem::take(&mut self.here) {
            loop {
                let mut line = String::new();
                let mut ended = true;
                while let Some(letter) = self.letter() {
                    if letter == '\n' {
                        ended = false;
                        break;
                    }
                    line.push(letter);
                }
                if ended || line.trim_start_matches('\t') == end {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<String> {
        let variables = [("HOME", "/root"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let arguments = ["one".to_owned(), "two words".to_owned()];
        let expanded = |command: Command| {
            command
                .expanded(&variables.clone().into(), &arguments, &Fuel::new())
                .join("_")
        };
        commands(text, 1000, &Fuel::new())
            .into_iter()
            .map(expanded)
            .collect()
    }

    #[test]
    fn a_script_is_split_into_commands_and_words() {
        for (text, expected) in [
            ("a b; c | d && e & f", &["a_b", "c", "d", "e", "f"][..]),
            (
                "a 'b c' \"d $HOME\" e\\ f # g\nh#i",
                &["a_b c_d /root_e f", "h#i"],
            ),
            ("a \\\n b", &["a_b"]),
            (
                "exec \"$@\" $1 x$2 $3 ${EMPTY:-y} ${HOME%/*}",
                &["exec_one_two words_one_xtwo words_y"],
            ),
            ("a=$(b \"$(c d)\") e", &["c_d", "b", "e"]),
            ("a `b c` d", &["b_c", "a_d"]),
            ("a >b 2>&1 <c d 3>/dev/null", &["a_d"]),
            ("a <<EOF; b\nc d\nEOF\ne", &["a", "b", "e"]),
            ("a <<-'X Y'\n\tc\n\tX Y\ne", &["a", "e"]),
            (
                "case $1 in\n one) a;;\n *) b c;;\nesac",
                &["case_one_in", "a", "b_c", "esac"],
            ),
            ("f() { a; }", &["f", "{_a", "}"]),
            (
                "if [ -n \"$X\" ]; then a; fi",
                &["if_[_-n_]", "then_a", "fi"],
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "[a-z$(){}`'\"\\\\<>|;& \n#=@*-]{0,200}") {
            let _ = read(&text);
        }

        #[test]
        fn plain_words_are_kept(words in proptest::collection::vec("[a-z0-9/._]{1,8}", 1..8)) {
            prop_assert_eq!(read(&words.join(" ")), [words.join("_")]);
        }
    }
}
