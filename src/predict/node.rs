//! The files that a Node.js process reads: its script, and the modules that are required or
//! imported, resolved as in Node's documentation ("Modules: Packages", "Modules: CommonJS modules",
//! "All together").

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::fuel::Fuel;
use super::launch::{Process, Program, start};
use super::system;
use super::view::{PathTarget, base_name, join, parent};
use super::walk::Walk;

/// Most modules of one process.
const MAX_MODULES: usize = 3000;
/// Most references of one module.
const MAX_REFERENCES: usize = 1024;
/// The deepest nesting of conditions in a package's exports.
const MAX_CONDITIONS: usize = 8;
/// The longest path that an export's pattern may produce (Linux, `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Most bytes of memory that parsing a byte of JSON takes: an empty string of two bytes becomes a
/// value of about seventy. The fuel is charged an eighth of it.
const BYTES_OF_JSON: usize = 32;
/// Suffixes that complete a module's name to the name of its file.
const EXTENSIONS: &[&str] = &["", ".js", ".mjs", ".cjs", ".json", ".node"];
/// The conditions in a package's exports that are true.
const CONDITIONS: &[&str] = &[
    "node",
    "node-addons",
    "module-sync",
    "require",
    "import",
    "default",
];
/// Options with a value in the next word that is not a module.
const VALUED: &[&str] = &["-C", "--conditions", "--env-file", "--title"];
/// Options whose value is a module.
const PRELOADS: &[&str] = &[
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
];
/// Debian's directory of the modules that are not inside the executable of Node.js.
const SYSTEM: &str = "/usr/share/nodejs";
/// The modules in it that every start reads, in order.
const STARTED: &[&str] = &[
    "cjs-module-lexer/lexer.js",
    "cjs-module-lexer/dist/lexer.js",
    "undici/undici-fetch.js",
    "acorn/dist/acorn.js",
    "acorn-walk/dist/walk.js",
];
/// Programs that run a script of a package by its name.
const RUNNERS: &[&str] = &["npm", "pnpm", "yarn"];

/// Runs Node.js.
pub(super) fn run(walk: &mut Walk<'_>, process: &Process, mut program: Program) {
    system::name_openssl(walk, process);
    walk.name_path("/etc/nsswitch.conf");
    for path in STARTED {
        walk.name_path(&join(SYSTEM, path));
    }
    let fuel = walk.fuel.clone();
    let (preloads, script, arguments) = parse_arguments(&process.argv, &fuel);
    let Some(script) = script else { return };
    let script = process.absolute(&script);
    let mut first = Vec::new();
    for preload in fuel.each(preloads) {
        first.extend(resolve(walk, &preload, &process.directory));
    }
    let found = file_or_directory(walk, &script);
    first.extend(found);
    if let Some(command) = package_script(walk, process, &script, arguments) {
        first.truncate(first.len().min(1));
        load(walk, &mut program, first.clone());
        start(
            walk,
            &process.then(vec!["sh".to_owned(), "-c".to_owned(), command], &fuel),
        );
        return;
    }
    load(walk, &mut program, first)
}

/// Returns the modules to preload, the script and its arguments.
fn parse_arguments<'a>(
    argv: &'a [String],
    fuel: &Fuel,
) -> (Vec<String>, Option<String>, &'a [String]) {
    let mut preloads = Vec::new();
    let mut rest = argv.get(1..).unwrap_or_default();
    while let [word, behind @ ..] = rest
        && fuel.burn(1)
    {
        rest = behind;
        if !word.starts_with('-') {
            return (preloads, Some(fuel.copy(word)), rest);
        }
        let (name, value) = word
            .split_once('=')
            .map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let is_preload = PRELOADS.contains(&name);
        if value.is_none() && (is_preload || VALUED.contains(&name)) {
            let Some((next, behind)) = rest.split_first() else {
                break;
            };
            rest = behind;
            preloads.extend(is_preload.then(|| fuel.copy(next)));
        } else if let (true, Some(value)) = (is_preload, value) {
            preloads.push(fuel.copy(value));
        }
    }
    (preloads, None, rest)
}

/// Returns the command that `npm start` and similar commands run.
fn package_script(
    walk: &mut Walk<'_>,
    process: &Process,
    script: &str,
    arguments: &[String],
) -> Option<String> {
    let runner = base_name(script)
        .split(['.', '-'])
        .next()
        .unwrap_or_default();
    if !RUNNERS.contains(&runner) {
        return None;
    }
    let mut words = walk
        .fuel
        .each(arguments)
        .filter(|word| !word.starts_with('-'))
        .map(String::as_str);
    let name = match words.next() {
        Some("run" | "run-script") => words.next(),
        other => other,
    };
    let (Some(name), Some(file)) = (name, walk.name_path(&process.absolute("package.json"))) else {
        return None;
    };
    let package = json(walk, &file);
    let script = package
        .get("scripts")
        .and_then(|scripts| scripts.get(name)?.as_str())?;
    Some(walk.fuel.copy(script))
}

/// Names modules and all modules that they refer to, each before its references.
fn load(walk: &mut Walk<'_>, program: &mut Program, first: Vec<PathTarget>) {
    let mut seen = HashSet::new();
    let mut left: Vec<PathTarget> = first.into_iter().rev().collect();
    let fuel = walk.fuel.clone();
    while let Some(module) = left.pop().filter(|_| fuel.burn(1)) {
        if seen.len() >= MAX_MODULES || !seen.insert((module.layer, module.node)) {
            continue;
        }
        if module.path.ends_with(".node") {
            program.loader.open(walk, &module);
            continue;
        }
        name_package(walk, &module);
        walk.name(&module);
        if module.path.ends_with(".json") {
            continue;
        }
        let code = walk.text(&module);
        let directory = parent(&format!("/{}", module.path)).to_owned();
        let mut found = Vec::new();
        for reference in fuel.each(references(&code, &fuel)) {
            found.extend(resolve(walk, &reference, &directory));
        }
        walk.prepare(&found);
        left.extend(found.into_iter().rev());
    }
}

/// Names the nearest `package.json` of a module, which decides the kind of the module.
fn name_package(walk: &mut Walk<'_>, module: &PathTarget) {
    let path = format!("/{}", module.path);
    let mut directory = parent(&path);
    while base_name(directory) != "node_modules" && walk.fuel.burn(1) {
        if walk.name_path(&join(directory, "package.json")).is_some() || directory == "/" {
            return;
        }
        directory = parent(directory);
    }
}

/// Finds the file of a reference in a module of `directory`. `None` for modules inside Node.js.
fn resolve(walk: &mut Walk<'_>, reference: &str, directory: &str) -> Option<PathTarget> {
    if reference.starts_with("./")
        || reference.starts_with("../")
        || matches!(reference, "." | "..")
        || reference.starts_with('/')
    {
        return file_or_directory(walk, &join(directory, reference));
    }
    let scope = usize::from(reference.starts_with('@'));
    let end = reference
        .match_indices('/')
        .nth(scope)
        .map_or(reference.len(), |(at, _)| at);
    let (package, inner) = reference.split_at(end);
    if package.is_empty() || reference.contains(':') {
        return None;
    }
    let mut above = directory;
    while walk.fuel.burn(1) {
        if base_name(above) != "node_modules" {
            let place = join(&join(above, "node_modules"), package);
            if walk.view.is_directory(&place) {
                return in_package(walk, &place, inner);
            }
        }
        if above == "/" {
            break;
        }
        above = parent(above);
    }
    let place = join(SYSTEM, package);
    if walk.view.is_directory(&place) {
        return in_package(walk, &place, inner);
    }
    walk.view
        .file(&format!("{place}.js"))
        .filter(|_| inner.is_empty())
}

fn in_package(walk: &mut Walk<'_>, place: &str, inner: &str) -> Option<PathTarget> {
    let Some(file) = walk.view.file(&join(place, "package.json")) else {
        return file_or_directory(walk, &format!("{place}{inner}"));
    };
    walk.name(&file);
    let package = json(walk, &file);
    if let Some(exports) = package.get("exports")
        && let Some(path) = resolve_export(exports, &format!(".{inner}"), &walk.fuel)
    {
        return walk.view.file(&join(place, &path));
    }
    file_or_directory(walk, &format!("{place}{inner}"))
}

/// Finds a file by its name or with an extension. For a directory, finds the file that its package
/// names, or `index`.
fn file_or_directory(walk: &mut Walk<'_>, path: &str) -> Option<PathTarget> {
    let file = |walk: &Walk<'_>, path: &str| {
        EXTENSIONS
            .iter()
            .find_map(|end| walk.view.file(&format!("{path}{end}")))
    };
    if let Some(found) = file(walk, path) {
        return Some(found);
    }
    if let Some(package) = walk.view.file(&join(path, "package.json")) {
        walk.name(&package);
        let package = json(walk, &package);
        if let Some(main) = package.get("main").and_then(Value::as_str) {
            let main = join(path, main.trim_end_matches('/'));
            if let Some(found) = file(walk, &main).or_else(|| file(walk, &join(&main, "index"))) {
                return Some(found);
            }
        }
    }
    file(walk, &join(path, "index"))
}

fn json(walk: &mut Walk<'_>, file: &PathTarget) -> Map<String, Value> {
    let text = walk.text(file);
    let is_paid =
        walk.fuel.make(text.len() * BYTES_OF_JSON / 8) && walk.fuel.burn(text.len() as u64);
    is_paid
        .then(|| serde_json::from_str(&text).ok())
        .flatten()
        .unwrap_or_default()
}

/// Returns the path that a package exports under a name that begins with a dot.
fn resolve_export(exports: &Value, name: &str, fuel: &Fuel) -> Option<String> {
    let is_paths = exports
        .as_object()
        .is_some_and(|map| fuel.each(map.keys()).any(|key| key.starts_with('.')));
    if !is_paths {
        return target(exports, MAX_CONDITIONS, fuel)
            .filter(|_| name == ".")
            .map(|path| fuel.copy(path));
    }
    if let Some(found) = exports.get(name) {
        return target(found, MAX_CONDITIONS, fuel).map(|path| fuel.copy(path));
    }
    fuel.each(exports.as_object()?).find_map(|(key, value)| {
        let (before, behind) = key.split_once('*')?;
        let middle = name.strip_prefix(before)?.strip_suffix(behind)?;
        let path =
            target(value, MAX_CONDITIONS, fuel).filter(|path| fuel.look_through(path.len()))?;
        // The whole name replaces every star of the pattern.
        let longest = path.len() + path.matches('*').count() * middle.len();
        (longest <= MAX_PATH && fuel.make(longest)).then(|| path.replace('*', middle))
    })
}

/// Returns the path of an export whose conditions are true.
fn target<'v>(value: &'v Value, depth: usize, fuel: &Fuel) -> Option<&'v str> {
    match value {
        Value::String(path) => Some(path),
        Value::Array(all) => fuel
            .each(all)
            .find_map(|value| target(value, depth.checked_sub(1)?, fuel)),
        Value::Object(map) => {
            let holds = fuel
                .each(map)
                .filter(|(condition, _)| CONDITIONS.contains(&condition.as_str()));
            holds
                .map(|(_, value)| value)
                .find_map(|value| target(value, depth.checked_sub(1)?, fuel))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Returns the literal references of a module: after `require(`, `import(`, `import` and `from`.
fn references(code: &str, fuel: &Fuel) -> Vec<String> {
    let mut found = Vec::new();
    if !fuel.look_through(code.len()) {
        return found;
    }
    for (at, quote) in fuel.each(
        code.char_indices()
            .filter(|(_, letter)| matches!(letter, '\'' | '"')),
    ) {
        let before = code[..at].trim_end_matches([' ', '\t', '\n', '\r']);
        let call = before.strip_suffix('(').map(str::trim_end);
        let refers = match call {
            Some(call) => ends_with_word(call, "require") || ends_with_word(call, "import"),
            None => ends_with_word(before, "from") || ends_with_word(before, "import"),
        };
        let text = refers
            .then(|| code[at + 1..].split([quote, '\n']).next())
            .flatten();
        found.extend(
            text.filter(|text| !text.is_empty() && text.len() < 256)
                .map(|text| fuel.copy(text)),
        );
        if found.len() >= MAX_REFERENCES {
            break;
        }
    }
    found
}

fn ends_with_word(text: &str, word: &str) -> bool {
    let before = text.strip_suffix(word);
    before.is_some_and(|before| {
        !before.ends_with(|letter: char| letter.is_alphanumeric() || "_$.".contains(letter))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_found_in_every_form() {
        let code = "const a = require('a');import b from \"b\"\nimport 'c'; export * from './d';\nawait import( 'e' );\n\
                    require ('f'); x.require('no'); requires('no'); 'no'; from_('no')";
        assert_eq!(
            references(code, &Fuel::new()),
            ["a", "b", "c", "./d", "e", "f"]
        );
    }

    #[test]
    fn exports_are_resolved_by_their_conditions() {
        let exports = json!({".": {"browser": "./b.js", "node": {"import": "./i.mjs"}, "default": "./d.js"},
                             "./x": "./x.js", "./l/*": {"require": "./lib/*.js"}, "./no": null});
        let get = |name| resolve_export(&exports, name, &Fuel::new());
        assert_eq!(get(".").as_deref(), Some("./i.mjs"));
        assert_eq!(get("./x").as_deref(), Some("./x.js"));
        assert_eq!(get("./l/a/b").as_deref(), Some("./lib/a/b.js"));
        assert_eq!((get("./no"), get("./else")), (None, None));
        assert_eq!(
            resolve_export(&json!("./m.js"), ".", &Fuel::new()).as_deref(),
            Some("./m.js")
        );
        assert_eq!(
            resolve_export(&json!({"require": "./m.js"}), ".", &Fuel::new()),
            Some("./m.js".to_owned())
        );
    }

    #[test]
    fn arguments_name_the_modules_to_load() {
        let argv: Vec<String> = "node -r a --import=b --max-old-space-size=1 -C x s.js -r y"
            .split(' ')
            .map(str::to_owned)
            .collect();
        let (preloads, script, arguments) = parse_arguments(&argv, &Fuel::new());
        assert_eq!(
            (preloads, script.as_deref()),
            (vec!["a".to_owned(), "b".to_owned()], Some("s.js"))
        );
        assert_eq!(arguments, ["-r", "y"]);
    }
}
