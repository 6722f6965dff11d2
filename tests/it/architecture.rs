//! The layers of docs/ARCHITECTURE.md, as a test: who may import whom, and how imports are written.

use std::fs;
use std::path::{Path, PathBuf};

/// A module of `src/` and the modules it may name; `aside`, `budget`, `flight` and `telemetry` may be named by all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("serve", &["convert", "store", "upstream", "profile", "oci"]),
    ("convert", &["store", "upstream", "profile", "oci"]),
    ("agent", &["containerd", "upstream", "profile", "oci"]),
    ("store", &["profile", "oci"]),
    ("profile", &["oci"]),
    ("upstream", &["oci"]),
    ("oci", &[]),
    ("containerd", &[]),
    ("aside", &[]),
    ("budget", &[]),
    ("flight", &[]),
    ("telemetry", &[]),
];
const FOR_ALL: &[&str] = &["aside", "budget", "flight", "telemetry"];
/// These may import everything.
const ROOTS: &[&str] = &["cli", "config", "main", "lib", "fuzzing"];

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut broken = Vec::new();
    each_line("src", |file, number, code| {
        let module = module_of(file);
        if ROOTS.contains(&module.as_str()) {
            return;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            broken.push(format!(
                "{}: the module {module} has no rule",
                file.display()
            ));
            return;
        };
        for named in code.split("crate::").skip(1).map(first_word) {
            let known = MAY_IMPORT.iter().any(|(name, _)| *name == named) || ROOTS.contains(&named);
            let fine =
                named == module || FOR_ALL.contains(&named) && !FOR_ALL.contains(&module.as_str());
            if known && !fine && !allowed.contains(&named) {
                broken.push(format!(
                    "{}:{number}: {module} may not name {named}",
                    file.display()
                ));
            }
        }
        if code.contains("estargz::") && !["convert", "agent"].contains(&module.as_str()) {
            broken.push(format!(
                "{}:{number}: {module} may not name estargz",
                file.display()
            ));
        }
    });
    broken.dedup();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_format_crate_names_nothing_of_ours() {
    let mut broken = Vec::new();
    each_line("crates/estargz/src", |file, number, code| {
        if code.contains("starlift::") || code.contains("tokio::") {
            broken.push(format!("{}:{number}: {code}", file.display()));
        }
    });
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn imports_are_greppable_and_promises_have_an_issue() {
    let mut broken = Vec::new();
    for root in ["src", "crates", "tests", "loadtests"] {
        each_line(root, |file, number, code| {
            let group = concat!("use crate", "::{");
            let grandparent = concat!("super::", "super");
            if code.contains(group) || code.contains(grandparent) {
                broken.push(format!("{}:{number}: {}", file.display(), code.trim()));
            }
        });
    }
    for root in ["src", "crates", "tests", "loadtests"] {
        for file in rust_files(Path::new(env!("CARGO_MANIFEST_DIR")).join(root)) {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let promise = [concat!("TO", "DO"), concat!("FIX", "ME")]
                    .iter()
                    .any(|word| line.contains(word));
                if promise && !line.contains('#') {
                    broken.push(format!(
                        "{}:{}: {}",
                        file.display(),
                        number + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Calls `see` with each line of code beneath `root`, comments left out.
fn each_line(root: &str, mut see: impl FnMut(&Path, usize, &str)) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = rust_files(top.join(root));
    assert!(!files.is_empty(), "no Rust files in {root}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(top).unwrap();
        for (number, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with("//") {
                see(relative, number + 1, line);
            }
        }
    }
}

fn rust_files(folder: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `src/store/key.rs` and `src/store.rs` belong to `store`.
fn module_of(file: &Path) -> String {
    let second = file
        .components()
        .nth(1)
        .unwrap()
        .as_os_str()
        .to_string_lossy();
    second.trim_end_matches(".rs").to_owned()
}

fn first_word(text: &str) -> &str {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .next()
        .unwrap_or_default()
}
