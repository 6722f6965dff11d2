//! Follows a shell script: the programs that it starts and the files that it reads, as far as its
//! words show them. Conditions are not evaluated: both branches count.

use std::collections::{BTreeMap, VecDeque};

use super::fuel::Fuel;
use super::launch::{Process, start};
use super::shell_lexer::{Command, commands};
use super::view::{base_name, join};
use super::walk::Walk;
use estargz::toc::Kind;

/// Most commands of one script that are read.
const MAX_COMMANDS: usize = 512;
/// How deep scripts include scripts.
const MAX_SOURCES: usize = 8;
/// Most scripts that are run from one directory (`/docker-entrypoint.d`).
const MAX_PARTS: usize = 32;
/// Directories that are not part of an image.
const VOLATILE: &[&str] = &["/dev/", "/proc/", "/sys/", "/run/", "/tmp/"];

/// Words in front of a command. Several may follow each other.
const BEFORE: &[&str] = &[
    "!", "{", "builtin", "command", "do", "elif", "else", "eval", "exec", "if", "then", "time",
    "until", "while",
];
/// Commands inside every shell (POSIX, "Special Built-In Utilities", and those that dash and bash
/// add).
const BUILTINS: &[&str] = &[
    "[", "[[", "]]", "}", ":", "alias", "bg", "break", "case", "cd", "continue", "declare", "done",
    "echo", "esac", "exit", "export", "false", "fg", "fi", "for", "function", "getopts", "hash",
    "in", "jobs", "kill", "let", "local", "printf", "pwd", "read", "readonly", "return", "select",
    "set", "shift", "shopt", "test", "times", "trap", "true", "type", "typeset", "ulimit", "umask",
    "unalias", "unset", "wait",
];

/// A running script.
struct Shell {
    /// Its environment grows with its assignments.
    process: Process,
    /// The words after the script's name.
    arguments: Vec<String>,
    sources: usize,
}

/// Runs a shell with its script, or with the text after `-c`.
pub(super) fn run(walk: &mut Walk<'_>, process: &Process) {
    let fuel = walk.fuel.clone();
    let mut words = fuel.each(process.argv.iter().skip(1));
    let mut is_text = false;
    let script = loop {
        match words.next() {
            Some(word) if word == "-o" || word == "+o" => drop(words.next()),
            Some(word) if word.starts_with("--") => {}
            Some(word) if word.len() > 1 && word.starts_with(['-', '+']) => {
                is_text |= word.contains('c')
            }
            other => break other,
        }
    };
    let Some(script) = script else { return };
    // The first word after a text is the name of the shell, `$0`.
    let arguments = fuel.copies(words.skip(usize::from(is_text)).map(String::as_str));
    let mut shell = Shell {
        process: process.then(Vec::new(), &fuel),
        arguments,
        sources: 0,
    };
    shell.process.depth = process.depth;
    if is_text {
        return shell.text(walk, script);
    }
    shell.source(walk, script)
}

impl Shell {
    fn source(&mut self, walk: &mut Walk<'_>, script: &str) {
        let Some((_, file)) = self.process.find(walk, script) else {
            return;
        };
        if self.sources >= MAX_SOURCES {
            return;
        }
        self.sources += 1;
        walk.name(&file);
        let text = walk.text(&file);
        self.text(walk, &text)
    }

    fn text(&mut self, walk: &mut Walk<'_>, text: &str) {
        let fuel = walk.fuel.clone();
        for command in fuel.each(commands(text, MAX_COMMANDS, &fuel)) {
            self.command(walk, &command);
        }
    }

    fn command(&mut self, walk: &mut Walk<'_>, command: &Command) {
        let fuel = walk.fuel.clone();
        let mut words = VecDeque::from(command.expanded(&self.process.env, &self.arguments, &fuel));
        let mut assigned = BTreeMap::new();
        while let Some(word) = words.front().filter(|_| fuel.burn(1)) {
            if let Some((name, value)) = assignment(word) {
                assigned.insert(fuel.copy(name), fuel.copy(value));
            } else if !BEFORE.contains(&word.as_str()) {
                break;
            }
            words.pop_front();
        }
        let Some(name) = words.pop_front() else {
            self.process.set(assigned, &fuel);
            return;
        };
        match name.as_str() {
            "export" => {
                let pairs = fuel.each(&words).filter_map(|word| assignment(word));
                let pairs = pairs.map(|(name, value)| (fuel.copy(name), fuel.copy(value)));
                self.process.set(pairs.collect(), &fuel);
            }
            "cd" => self.change_directory(walk, words.front()),
            "set" => self.set(&words.into(), &fuel),
            "." | "source" => {
                if let Some(script) = words.front() {
                    self.source(walk, script);
                }
            }
            name if BUILTINS.contains(&name) => {}
            _ => {
                let files = Vec::from(words);
                let argv = fuel.copies(std::iter::once(&name).chain(&files).map(String::as_str));
                let mut process = self.process.then(argv, &fuel);
                process.set(assigned, &fuel);
                start(walk, &process);
                self.mentioned(walk, &files);
            }
        }
    }

    /// Handles the absolute paths among a command's words: names files, and runs the scripts in
    /// directories made for them (`*.d`).
    fn mentioned(&self, walk: &mut Walk<'_>, words: &[String]) {
        let fuel = walk.fuel.clone();
        for word in fuel.each(words).filter(|word| word.starts_with('/')) {
            if VOLATILE.iter().any(|directory| word.starts_with(directory)) {
                continue;
            }
            match walk.view.resolve(word) {
                Some(found) if found.kind == Kind::File => drop(walk.name(&found)),
                Some(found)
                    if found.kind == Kind::Directory && base_name(&found.path).ends_with(".d") =>
                {
                    let names = fuel
                        .each(walk.view.names(word))
                        .filter(|name| name.ends_with("sh"));
                    for name in names.take(MAX_PARTS) {
                        start(walk, &self.process.then(vec![join(word, &name)], &fuel));
                    }
                }
                _ => {}
            }
        }
    }

    fn change_directory(&mut self, walk: &Walk<'_>, to: Option<&String>) {
        let Some(to) = to.map(|to| self.process.absolute(to)) else {
            return;
        };
        if walk.view.is_directory(&to) {
            self.process.directory = to;
        }
    }

    /// Replaces the arguments, as `set -- server "$@"` does, if there are none or the first is an
    /// option: entrypoints guard the line with that condition.
    fn set(&mut self, words: &Vec<String>, fuel: &Fuel) {
        let takes_effect = self
            .arguments
            .first()
            .is_none_or(|first| first.starts_with('-'));
        let (Some(behind), true) = (fuel.each(words).position(|word| word == "--"), takes_effect)
        else {
            return;
        };
        self.arguments = fuel.copies(words.iter().skip(behind + 1).map(String::as_str));
    }
}

/// Splits `NAME=value`.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = |name: &str| {
        name.chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    (is_name(name) && name.starts_with(|letter: char| !letter.is_ascii_digit()))
        .then_some((name, value))
}
