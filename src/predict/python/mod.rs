//! The files that a Python process reads: the interpreter's own modules, those of `site`, and the
//! imports of the program.
//!
//! ```text
//! python3.11 ─▶ library, packages ─▶ encodings, site, .pth ─▶ program
//!            ─ imports ▶ modules ─ imports ▶ …
//! ```

mod lines;
mod modules;
mod scan;

use super::fuel::Fuel;
use super::launch::{Process, Program};
use super::system;
use super::view::{PathTarget, base_name, join, parent};
use super::walk::Walk;
use modules::Modules;
use scan::MAX_NAME;

/// Names of the directories of modules, next to the interpreter's directory of programs.
const LIBRARIES: &[&str] = &["lib", "lib64"];
/// Most directories of `PYTHONPATH`, and most modules that arguments name.
const MAX_GIVEN: usize = 32;
const MAX_NAMED: usize = 16;
/// Most `.pth` files of a directory.
const MAX_PTH: usize = 64;
/// The modules that the interpreter imports first (CPython, `Python/pylifecycle.c` and
/// `Lib/site.py`).
const STARTED: &[&str] = &[
    "encodings",
    "codecs",
    "encodings.aliases",
    "encodings.utf_8",
    "io",
    "abc",
    "site",
    "os",
    "stat",
    "_sitebuiltins",
];
/// The last version that needs this encoding to start.
const LAST_WITH_LATIN_1: (u32, u32) = (3, 9);
/// The first version with the modules of its start inside the executable (CPython,
/// `Tools/build/freeze_modules.py`).
const FIRST_FROZEN: (u32, u32) = (3, 11);
const FROZEN: &[&str] = &[
    "_collections_abc",
    "_sitebuiltins",
    "abc",
    "codecs",
    "genericpath",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "importlib.machinery",
    "importlib.util",
    "io",
    "ntpath",
    "os",
    "os.path",
    "posixpath",
    "runpy",
    "site",
    "stat",
    "zipimport",
];

/// The code that Python runs, by its arguments.
#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    Nothing,
    Code(String),
    Module(String),
    Script(String),
}

/// Runs Python.
pub(super) fn run(walk: &mut Walk<'_>, process: &Process, program: Program) {
    let Some(home) = Home::find(walk, &program) else {
        return;
    };
    // If the environment sets no locale, Python uses UTF-8 (PEP 538).
    system::name_categories(
        walk,
        system::locale(process).unwrap_or("C.UTF-8"),
        &["LC_CTYPE"],
    );
    let mut modules = Modules::new(walk, home.search.clone(), home.version, program.loader);
    modules.freeze(if home.version >= FIRST_FROZEN {
        FROZEN
    } else {
        &[]
    });
    if home.version <= LAST_WITH_LATIN_1 {
        modules.import(walk, &["encodings.latin_1"]);
    }
    modules.import(walk, STARTED);
    let code = site(walk, &mut modules, &home);
    modules.run(walk, &code, false);
    modules.import(walk, &["sitecustomize", "usercustomize"]);
    let (invocation, arguments) = parse_arguments(&process.argv, &walk.fuel);
    let fuel = walk.fuel.clone();
    let given = process
        .variable("PYTHONPATH")
        .unwrap_or_default()
        .split(':')
        .filter(|path| !path.is_empty());
    let mut first: Vec<String> = fuel
        .each(given)
        .take(MAX_GIVEN)
        .map(|path| process.absolute(path))
        .collect();
    match invocation {
        Invocation::Nothing => {}
        Invocation::Code(code) => {
            first.insert(0, process.directory.clone());
            modules.search_first(first);
            modules.run(walk, &code, true);
        }
        Invocation::Module(name) => {
            first.insert(0, process.directory.clone());
            modules.search_first(first);
            modules.import(walk, &["runpy"]);
            modules.run_module(walk, &name);
        }
        Invocation::Script(path) => {
            let path = process.absolute(&path);
            let Some(script) = script(walk, &path) else {
                return;
            };
            first.insert(
                0,
                if walk.view.is_directory(&path) {
                    path
                } else {
                    parent(&format!("/{}", script.path)).to_owned()
                },
            );
            modules.search_first(first);
            walk.name(&script);
            let code = walk.text(&script);
            modules.run(walk, &code, true);
        }
    }
    // `gunicorn package.module:application`: the arguments of servers name modules.
    let named: Vec<&str> = fuel
        .each(arguments)
        .filter_map(|word| application(word))
        .take(MAX_NAMED)
        .collect();
    if !named.is_empty() {
        modules.search_first(vec![process.directory.clone()]);
        modules.import(walk, &named);
    }
    if modules.loader.has("libcrypto.so") {
        system::name_openssl(walk, process);
    }
    if modules.loader.has("libssl.so") {
        system::name_certificates(walk, process);
    }
}

/// The directories in which an interpreter finds its modules.
#[derive(Debug)]
struct Home {
    version: (u32, u32),
    /// In the order of the search.
    search: Vec<String>,
    /// Directories whose `.pth` files are read, in order.
    site: Vec<String>,
}

impl Home {
    fn find(walk: &mut Walk<'_>, program: &Program) -> Option<Self> {
        let bin = format!("/{}", parent(&program.file.path).trim_start_matches('/'));
        let prefix = parent(&bin).to_owned();
        let (version, library) = library(walk, &prefix, base_name(&program.file.path))?;
        let (major, minor) = version;
        let mut search = vec![library.clone(), join(&library, "lib-dynload")];
        let environment = parent(parent(&program.path)).to_owned();
        let mut site = Vec::new();
        let configuration = walk.name_path(&join(&environment, "pyvenv.cfg"));
        if configuration.is_some() {
            site.push(format!(
                "{environment}/lib/python{major}.{minor}/site-packages"
            ));
        }
        let with_system = match &configuration {
            Some(file) => walk
                .text(file)
                .to_lowercase()
                .replace(' ', "")
                .contains("include-system-site-packages=true"),
            None => true,
        };
        if with_system {
            // Debian's interpreter has its own directories.
            site.push(format!(
                "/usr/local/lib/python{major}.{minor}/dist-packages"
            ));
            site.push(format!("{prefix}/lib/python{major}.{minor}/site-packages"));
            site.push(format!("{prefix}/lib/python{major}/dist-packages"));
            site.push(format!("{prefix}/lib/python{major}.{minor}/dist-packages"));
        }
        site.retain(|directory| walk.view.is_directory(directory));
        site.dedup();
        search.extend(site.iter().cloned());
        Some(Self {
            version,
            search,
            site,
        })
    }
}

/// Returns the version of an interpreter and the directory of its library.
fn library(walk: &Walk<'_>, prefix: &str, program: &str) -> Option<((u32, u32), String)> {
    let own = program.strip_prefix("python").and_then(version);
    for directory in LIBRARIES.iter().map(|name| join(prefix, name)) {
        let names = walk.fuel.each(walk.view.names(&directory));
        let all = names.filter_map(|name| {
            Some((
                version(name.strip_prefix("python")?)?,
                join(&directory, &name),
            ))
        });
        let fits = |(version, path): &((u32, u32), String)| {
            own.is_none_or(|own| own == *version) && walk.view.file(&join(path, "os.py")).is_some()
        };
        if let Some(found) = all.filter(fits).max() {
            return Some(found);
        }
    }
    None
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Names the `.pth` files, adds their directories to the search, and returns the code in them
/// (CPython, `site.addpackage`).
fn site(walk: &mut Walk<'_>, modules: &mut Modules, home: &Home) -> String {
    let fuel = walk.fuel.clone();
    let mut code = String::new();
    for directory in &home.site {
        let names = fuel
            .each(walk.view.names(directory))
            .filter(|name| name.ends_with(".pth"));
        for name in names.take(MAX_PTH) {
            let Some(file) = walk.name_path(&join(directory, &name)) else {
                continue;
            };
            let text = walk.text(&file);
            let lines = fuel.each(text.lines()).map(str::trim_end);
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                if line.starts_with("import ") && fuel.make(line.len()) {
                    code.push_str(line);
                    code.push('\n');
                } else if walk.view.is_directory(&join(directory, line)) {
                    modules.search_last(join(directory, line));
                }
            }
        }
    }
    code
}

/// Finds the file of a program: the path itself, or `__main__.py` in a directory.
fn script(walk: &Walk<'_>, path: &str) -> Option<PathTarget> {
    walk.view
        .file(path)
        .or_else(|| walk.view.file(&join(path, "__main__.py")))
}

/// Returns the code that the arguments name, and the program's own arguments.
fn parse_arguments<'a>(argv: &'a [String], fuel: &Fuel) -> (Invocation, &'a [String]) {
    let mut rest = argv.get(1..).unwrap_or_default();
    while let [word, behind @ ..] = rest
        && fuel.burn(1)
    {
        let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            return (Invocation::Script(fuel.copy(word)), behind);
        };
        rest = behind;
        if flags.starts_with('-') {
            continue;
        }
        // A letter with a value ends the word: the value is the rest of the word, or the next word.
        let Some((at, letter)) = flags
            .char_indices()
            .find(|(_, letter)| "cmWX".contains(*letter))
        else {
            continue;
        };
        let own = flags
            .get(at + 1..)
            .filter(|value| !value.is_empty())
            .map(|value| fuel.copy(value));
        let value = match own {
            Some(value) => value,
            None => {
                let Some((value, behind)) = rest.split_first() else {
                    break;
                };
                rest = behind;
                fuel.copy(value)
            }
        };
        match letter {
            'c' => return (Invocation::Code(value), rest),
            'm' => return (Invocation::Module(value), rest),
            _ => {}
        }
    }
    (Invocation::Nothing, rest)
}

/// Returns the module of `package.module:application`.
fn application(word: &str) -> Option<&str> {
    let (module, name) = word.split_once(':')?;
    let is_name = |text: &str| {
        text.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "_.".contains(letter))
    };
    (module.len() <= MAX_NAME && is_name(module) && is_name(name.trim_end_matches("()")))
        .then_some(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_the_code_to_run() {
        let ask = |line: &str| {
            let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let (invocation, arguments) = parse_arguments(&argv, &Fuel::new());
            (invocation, arguments.join(" "))
        };
        let script = |path: &str| Invocation::Script(path.to_owned());
        assert_eq!(ask("python3"), (Invocation::Nothing, String::new()));
        assert_eq!(
            ask("python3 -u -W ignore app.py x -m y"),
            (script("app.py"), "x -m y".to_owned())
        );
        assert_eq!(
            ask("python3 -Werror -Xdev app.py"),
            (script("app.py"), String::new())
        );
        assert_eq!(
            ask("python3 -um http.server 80"),
            (
                Invocation::Module("http.server".to_owned()),
                "80".to_owned()
            )
        );
        assert_eq!(
            ask("python3 -cpass x"),
            (Invocation::Code("pass".to_owned()), "x".to_owned())
        );
        assert_eq!(ask("python3 -m"), (Invocation::Nothing, String::new()));
    }

    #[test]
    fn an_application_is_a_module_and_a_name() {
        assert_eq!(application("app.main:create()"), Some("app.main"));
        for word in ["0.0.0.0:80", "http://a", "app", "a b:c", ":c"] {
            assert_eq!(application(word), None, "{word}");
        }
    }
}
