//! What a shell script starts and reads, as far as its words say it. Conditions are not judged: both ways count.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::launch::{Process, start};
use super::view::{base_name, join};
use super::walk::Walk;
use super::words::{Command, commands};
use crate::convert::error::Error;
use estargz::toc::Kind;

/// Most commands of one script that are looked at.
const MAX_COMMANDS: usize = 512;
/// How deep scripts include scripts.
const MAX_SOURCES: usize = 8;
/// Most scripts of a directory that a script runs all of (`/docker-entrypoint.d`).
const MAX_PARTS: usize = 32;
/// Directories that are no part of an image.
const VOLATILE: &[&str] = &["/dev/", "/proc/", "/sys/", "/run/", "/tmp/"];

/// Words that stand before a command, which may be one itself.
const BEFORE: &[&str] =
    &["!", "{", "builtin", "command", "do", "elif", "else", "eval", "exec", "if", "then", "time", "until", "while"];
/// What every shell does by itself (POSIX, "Special Built-In Utilities", and those that dash and bash add).
const BUILTINS: &[&str] = &[
    "[", "[[", "]]", "}", ":", "alias", "bg", "break", "case", "cd", "continue", "declare", "done", "echo", "esac",
    "exit", "export", "false", "fg", "fi", "for", "function", "getopts", "hash", "in", "jobs", "kill", "let", "local",
    "printf", "pwd", "read", "readonly", "return", "select", "set", "shift", "shopt", "test", "times", "trap", "true",
    "type", "typeset", "ulimit", "umask", "unalias", "unset", "wait",
];

/// A script that runs.
struct Shell {
    /// Its environment grows with its assignments.
    process: Process,
    /// Words that are behind the script's name.
    arguments: Vec<String>,
    sources: usize,
}

/// Runs a shell: its script, or what is behind `-c`.
pub(super) async fn run(walk: &mut Walk<'_>, process: &Process) -> Result<(), Error> {
    let mut words = process.argv.iter().skip(1);
    let mut is_text = false;
    let script = loop {
        match words.next() {
            Some(word) if word == "-o" || word == "+o" => drop(words.next()),
            Some(word) if word.starts_with("--") => {}
            Some(word) if word.len() > 1 && word.starts_with(['-', '+']) => is_text |= word.contains('c'),
            other => break other,
        }
    };
    let Some(script) = script else { return Ok(()) };
    let mut shell = Shell { process: process.clone(), arguments: words.cloned().collect(), sources: 0 };
    if is_text {
        // The first word behind the text is the name that the shell goes by.
        shell.arguments = shell.arguments.into_iter().skip(1).collect();
        return shell.text(walk, &Arc::from(script.as_str())).await;
    }
    shell.source(walk, script).await
}

impl Shell {
    async fn source(&mut self, walk: &mut Walk<'_>, script: &str) -> Result<(), Error> {
        let Some((_, file)) = self.process.find(walk, script) else { return Ok(()) };
        if self.sources >= MAX_SOURCES {
            return Ok(());
        }
        self.sources += 1;
        walk.name(&file);
        let text = walk.text(&file).await?;
        Box::pin(self.text(walk, &text)).await
    }

    async fn text(&mut self, walk: &mut Walk<'_>, text: &str) -> Result<(), Error> {
        for command in commands(text).into_iter().take(MAX_COMMANDS) {
            self.command(walk, &command).await?;
        }
        Ok(())
    }

    async fn command(&mut self, walk: &mut Walk<'_>, command: &Command) -> Result<(), Error> {
        let mut words: Vec<String> = command.expanded(&self.process.env, &self.arguments);
        let mut assigned = BTreeMap::new();
        loop {
            match words.first() {
                Some(word) if BEFORE.contains(&word.as_str()) => drop(words.remove(0)),
                Some(word) => match assignment(word) {
                    Some((name, value)) => {
                        assigned.insert(name.to_owned(), value.to_owned());
                        words.remove(0);
                    }
                    None => break,
                },
                None => break,
            }
        }
        let Some(name) = words.first().cloned() else {
            self.process.env.extend(assigned);
            return Ok(());
        };
        match name.as_str() {
            "export" => self.process.env.extend(words.iter().filter_map(|word| assignment(word)).map(owned)),
            "cd" => self.change_directory(walk, words.get(1)),
            "set" => self.set(&words),
            "." | "source" => {
                if let Some(script) = words.get(1) {
                    self.source(walk, script).await?;
                }
            }
            name if BUILTINS.contains(&name) => {}
            _ => {
                let files = words.split_off(1);
                let argv: Vec<String> = std::iter::once(name).chain(files.iter().cloned()).collect();
                let mut process = self.process.then(argv);
                process.env.extend(assigned);
                start(walk, process).await?;
                self.mentioned(walk, &files).await?;
            }
        }
        Ok(())
    }

    /// Absolute paths among a command's words: it reads the files, and runs what is in directories made for that.
    async fn mentioned(&self, walk: &mut Walk<'_>, words: &[String]) -> Result<(), Error> {
        for word in words.iter().filter(|word| word.starts_with('/')) {
            if VOLATILE.iter().any(|directory| word.starts_with(directory)) {
                continue;
            }
            match walk.view.resolve(word) {
                Some(found) if found.kind == Kind::File => drop(walk.name(&found)),
                Some(found) if found.kind == Kind::Directory && base_name(&found.path).ends_with(".d") => {
                    let names = walk.view.names(word).into_iter();
                    for name in names.filter(|name| name.ends_with("sh")).take(MAX_PARTS) {
                        start(walk, self.process.then(vec![join(word, &name)])).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn change_directory(&mut self, walk: &Walk<'_>, to: Option<&String>) {
        let Some(to) = to.map(|to| self.process.absolute(to)) else { return };
        if walk.view.is_directory(&to) {
            self.process.directory = to;
        }
    }

    /// `set -- server "$@"` stands where the arguments are options alone, or none.
    fn set(&mut self, words: &[String]) {
        let is_for_us = self.arguments.first().is_none_or(|first| first.starts_with('-'));
        let (Some(behind), true) = (words.iter().position(|word| word == "--"), is_for_us) else { return };
        self.arguments = words.iter().skip(behind + 1).cloned().collect();
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// `NAME=value`.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = |name: &str| name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    (is_name(name) && name.starts_with(|letter: char| !letter.is_ascii_digit())).then_some((name, value))
}
