//! Every dependency of a package is named in its sources.

use std::fs;
use std::path::{Path, PathBuf};

use super::sources::{files, rust_files, top};

/// Dependencies that no source names, and why they are there.
const UNNAMED: &[(&str, &str, &str)] = &[(
    "",
    "tonic-prost",
    "the code that is generated from proto/ names it",
)];

#[test]
fn every_dependency_is_used() {
    let manifests: Vec<_> = files(top().to_owned(), &|_| true)
        .into_iter()
        .filter(|file| file.ends_with("Cargo.toml"))
        .collect();
    assert!(manifests.len() > 5, "{manifests:?}");
    let mut unused = Vec::new();
    for manifest in &manifests {
        let folder = manifest.parent().unwrap();
        let sources = sources(folder);
        let place = folder.strip_prefix(top()).unwrap().display().to_string();
        for name in dependencies(manifest) {
            let is_named = names(&sources, &name.replace('-', "_"));
            let is_listed = UNNAMED
                .iter()
                .any(|(package, listed, _)| *package == place && *listed == name);
            match (is_named, is_listed) {
                (true, false) | (false, true) => {}
                (false, false) => unused.push(format!("{place}/Cargo.toml: {name} is not used")),
                (true, true) => unused.push(format!("{place}/Cargo.toml: {name} is used")),
            }
        }
    }
    assert!(unused.is_empty(), "\n{}", unused.join("\n"));
}

/// Returns the names of all dependencies in a manifest.
fn dependencies(manifest: &Path) -> Vec<String> {
    let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|section| section.keys().cloned())
        .collect()
}

/// Returns the code of the package in `folder`, without the packages in folders below, but with
/// the modules of other packages that it compiles.
fn sources(folder: &Path) -> Vec<String> {
    let is_of_package = |folder: &Path| !folder.join("Cargo.toml").exists();
    let mut own = files(folder.to_owned(), &is_of_package);
    own.retain(|file| file.extension().is_some_and(|end| end == "rs"));
    let foreign: Vec<_> = own
        .iter()
        .flat_map(|file| modules_elsewhere(file))
        .collect();
    own.iter().chain(&foreign).map(|file| code(file)).collect()
}

/// Returns the files of the modules that `file` names by `#[path]`. A path may be that of a file, of
/// a room's `mod.rs`, or of the folder of an inline module.
fn modules_elsewhere(file: &Path) -> Vec<PathBuf> {
    let text = code(file);
    let paths = text.split("#[path = \"").skip(1);
    let paths = paths.filter_map(|rest| rest.split('"').next());
    let module = |path: &str| {
        let module = file.parent().unwrap().join(path);
        match module.parent() {
            Some(room) if module.ends_with("mod.rs") => rust_files(room.to_owned()),
            _ if module.is_dir() => rust_files(module),
            _ => Vec::from_iter(module.is_file().then_some(module)),
        }
    };
    paths.flat_map(module).collect()
}

/// Returns the lines of a file that are not comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// Whether `name` is a word of the code.
fn names(code: &[String], name: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.iter().any(|text| {
        text.match_indices(name).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + name.len()..]);
            !before.ends_with(is_word) && !after.starts_with(is_word)
        })
    })
}
