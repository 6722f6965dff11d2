//! The start of a program: finds its file, loads its libraries, and follows the programs that it
//! starts.
//!
//! ```text
//! argv ─ PATH ▶ file ─┬─ ELF ▶ loader ▶ files of its kind (shell, python, node, …)
//!                     └─ #! or text ▶ argv of its interpreter, once more
//! ```

use std::collections::BTreeMap;

use super::fuel::Fuel;
use super::loader::Loader;
use super::view::{PathTarget, base_name, join};
use super::walk::Walk;
use super::{java, node, python, servers, shell, system};

/// The deepest chain of programs that start programs. Shebangs and launchers take a few links each.
const MAX_DEPTH: usize = 12;
/// Most bytes of an environment (Linux, `ARG_MAX` with the usual stack). No program starts with
/// more.
const MAX_ENVIRONMENT: usize = 2 << 20;
/// The longest first line of a script (Linux, `BINPRM_BUF_SIZE`).
const MAX_SHEBANG: usize = 256;
/// The directories of programs if the environment has no `PATH` (containerd, `oci.defaultUnixEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs that become, or start, the program named after their options. Each has a list of its
/// options that take a value, and the number of words between its options and the program.
const LAUNCHERS: &[(&str, &[&str], usize)] = &[
    ("catatonit", &[], 0),
    ("chpst", &["-u", "-U", "-e", "-n"], 0),
    ("docker-init", &[], 0),
    ("dumb-init", &["-r", "--rewrite"], 0),
    ("env", &["-u", "--unset", "-C", "--chdir"], 0),
    ("gosu", &[], 1),
    ("ionice", &["-c", "-n"], 0),
    ("nice", &["-n"], 0),
    ("nohup", &[], 0),
    ("setpriv", &["--reuid", "--regid", "--groups"], 0),
    ("setsid", &[], 0),
    ("stdbuf", &["-i", "-o", "-e"], 0),
    ("su-exec", &[], 1),
    ("timeout", &["-k", "-s"], 1),
    ("tini", &["-p", "-e"], 0),
    ("tini-static", &["-p", "-e"], 0),
];
const SHELLS: &[&str] = &["ash", "bash", "dash", "ksh", "sh", "zsh"];

/// A program to start.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Always absolute.
    pub(super) directory: String,
    /// The number of programs that led to this one.
    pub(super) depth: usize,
}

/// A running program.
#[derive(Debug)]
pub(super) struct Program {
    /// The absolute path that it was called by; links are not followed.
    pub(super) path: String,
    pub(super) file: PathTarget,
    pub(super) loader: Loader,
}

impl Process {
    /// Returns a process with another program and the same environment. The environment is empty
    /// once the fuel has ended.
    pub(super) fn then(&self, argv: Vec<String>, fuel: &Fuel) -> Self {
        let is_paid = fuel.burn(self.env.len() as u64) && fuel.make(self.size());
        let env = if is_paid {
            self.env.clone()
        } else {
            BTreeMap::new()
        };
        Self {
            argv,
            env,
            directory: fuel.copy(&self.directory),
            depth: self.depth + 1,
        }
    }

    /// Sets variables, unless the environment becomes too large.
    pub(super) fn set(&mut self, variables: BTreeMap<String, String>, fuel: &Fuel) {
        let is_paid = fuel.burn((self.env.len() + variables.len()) as u64);
        if is_paid && self.size() + size(&variables) <= MAX_ENVIRONMENT {
            self.env.extend(variables);
        }
    }

    fn size(&self) -> usize {
        size(&self.env)
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Returns the absolute form of a path of this process.
    pub(super) fn absolute(&self, path: &str) -> String {
        join(&self.directory, path)
    }

    /// Finds the file of a command.
    pub(super) fn find(&self, walk: &Walk<'_>, name: &str) -> Option<(String, PathTarget)> {
        let at = |path: String| walk.view.file(&path).map(|file| (path, file));
        if name.contains('/') {
            return at(self.absolute(name));
        }
        let path = self.variable("PATH").unwrap_or(DEFAULT_PATH);
        let mut directories = walk.fuel.each(path.split(':')).filter(|_| !name.is_empty());
        directories.find_map(|directory| at(join(&self.absolute(directory), name)))
    }
}

/// Returns the size of variables in bytes.
fn size(variables: &BTreeMap<String, String>) -> usize {
    variables
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2 * size_of::<String>())
        .sum()
}

/// Names the files that starting the process reads, in order.
pub(super) fn start(walk: &mut Walk<'_>, process: &Process) {
    let Some(name) = process.argv.first().filter(|_| process.depth < MAX_DEPTH) else {
        return;
    };
    let Some((path, file)) = process.find(walk, name) else {
        return;
    };
    if !walk.may_start(&process.argv) {
        return;
    }
    walk.name(&file);
    let Some(elf) = walk.elf(&file) else {
        let text = walk.text(&file);
        let interpreter = interpreter_process(process, &path, &text, &walk.fuel);
        start(walk, &interpreter);
        return;
    };
    let libraries = process.variable("LD_LIBRARY_PATH").unwrap_or_default();
    let libraries = walk
        .fuel
        .copies(libraries.split([':', ';']).filter(|path| !path.is_empty()));
    let loader = Loader::load(walk, &file, elf, libraries);
    let program = Program { path, file, loader };
    system::started(walk, process, &program);
    run(walk, process, program);
}

/// Runs a program whose behaviour is known by its name.
fn run(walk: &mut Walk<'_>, process: &Process, program: Program) {
    // A link's name selects the tool (`sh` of busybox), its target's name the version
    // (`python3.11`).
    let name = base_name(&program.path).to_owned();
    let target = base_name(&program.file.path).to_owned();
    let fuel = walk.fuel.clone();
    if let Some(argv) = launcher_target(&name, &process.argv, &fuel) {
        start(walk, &process.then(argv, &fuel));
        return;
    }
    match name.as_str() {
        "busybox" => {
            let argv = fuel.copies(process.argv.iter().skip(1).map(String::as_str));
            start(walk, &process.then(argv, &fuel));
        }
        name if SHELLS.contains(&name) => shell::run(walk, process),
        _ if target.starts_with("python") => python::run(walk, process, program),
        "node" | "nodejs" => node::run(walk, process, program),
        "java" => java::run(walk, process, program),
        "nginx" => servers::nginx(walk, process, program),
        "postgres" => servers::postgres(walk, process, &program),
        _ => {}
    }
}

/// Returns the arguments of the program that a launcher starts.
fn launcher_target(name: &str, argv: &[String], fuel: &Fuel) -> Option<Vec<String>> {
    let (_, valued, before) = LAUNCHERS
        .iter()
        .find(|(launcher, _, _)| *launcher == name)?;
    let mut rest = argv.get(1..)?;
    while let [word, behind @ ..] = rest
        && fuel.burn(1)
    {
        rest = match word.as_str() {
            "--" => {
                rest = behind;
                break;
            }
            word if valued.contains(&word) => behind.get(1..).unwrap_or_default(),
            word if word.starts_with('-') || name == "env" && word.contains('=') => behind,
            _ => break,
        };
    }
    rest.get(*before..)
        .map(|argv| fuel.copies(argv.iter().map(String::as_str)))
}

/// Returns the process that interprets a script.
fn interpreter_process(process: &Process, path: &str, text: &str, fuel: &Fuel) -> Process {
    let mut argv = match shebang(text) {
        Some((interpreter, argument)) => std::iter::once(interpreter).chain(argument).collect(),
        None => vec!["/bin/sh".to_owned()],
    };
    // The kernel passes the text after `env -S` as one word. `env` splits it.
    if let [env, words] = argv.as_slice()
        && base_name(env) == "env"
        && let Some(words) = words.strip_prefix("-S")
    {
        argv = std::iter::once(env.clone())
            .chain(words.split_whitespace().map(str::to_owned))
            .collect();
    }
    argv.push(fuel.copy(path));
    argv.extend(fuel.copies(process.argv.iter().skip(1).map(String::as_str)));
    process.then(argv, fuel)
}

/// Returns the interpreter in a script's first line, and its only argument.
fn shebang(text: &str) -> Option<(String, Option<String>)> {
    let line = text.strip_prefix("#!")?.lines().next()?;
    if line.len() > MAX_SHEBANG {
        return None;
    }
    let line = line.trim();
    let (interpreter, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
    (!interpreter.is_empty()).then(|| (interpreter.to_owned(), argument.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn launchers_start_the_program_after_their_options() {
        for (line, starts) in [
            ("tini -- app -x", "app -x"),
            ("tini -g -p SIGTERM app", "app"),
            ("env -i A=1 B=2 app c=3", "app c=3"),
            ("gosu postgres app", "app"),
            ("timeout -k 5 10 app", "app"),
            ("setpriv --reuid=1 --groups 2 app --", "app --"),
            ("nice app", "app"),
        ] {
            let argv = words(line);
            assert_eq!(
                launcher_target(&argv[0], &argv, &Fuel::new()),
                Some(words(starts)),
                "{line}"
            );
        }
        assert_eq!(launcher_target("app", &words("app x"), &Fuel::new()), None);
    }

    #[test]
    fn the_first_line_names_an_interpreter_and_one_argument() {
        assert_eq!(
            shebang("#!/bin/sh\nexit"),
            Some(("/bin/sh".to_owned(), None))
        );
        assert_eq!(
            shebang("#! /usr/bin/env  -S a b \n"),
            Some(("/usr/bin/env".to_owned(), Some("-S a b".to_owned())))
        );
        assert_eq!(shebang("#!\n"), None);
        assert_eq!(shebang("echo"), None);
        assert_eq!(shebang(&format!("#!/{}\n", "a".repeat(300))), None);
    }

    #[test]
    fn a_script_is_run_by_its_interpreter() {
        let process = Process {
            argv: words("app one"),
            env: BTreeMap::new(),
            directory: "/".to_owned(),
            depth: 0,
        };
        let argv = |text| interpreter_process(&process, "/bin/app", text, &Fuel::new()).argv;
        assert_eq!(
            argv("#!/usr/bin/env -S python3 -u"),
            words("/usr/bin/env python3 -u /bin/app one")
        );
        assert_eq!(argv("#!/bin/bash -e"), words("/bin/bash -e /bin/app one"));
        assert_eq!(argv("echo"), words("/bin/sh /bin/app one"));
    }
}
