//! The project's files, as the tests of its documentation read them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the project's folder.
pub(super) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the text of a document in `docs/`.
pub(super) fn document(name: &str) -> String {
    fs::read_to_string(top().join("docs").join(name)).unwrap()
}

/// Returns the Rust files under `folder`, at any depth.
pub(super) fn rust_files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files = files(folder, &|_| true);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// Returns the files under `folder`, at any depth, but for those that a build made and for folders
/// that `enters` rejects.
pub(super) fn files(folder: PathBuf, enters: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let path = entry.path();
        let is_folder = entry.file_type().unwrap().is_dir();
        if is_folder && !path.ends_with("target") && !path.ends_with(".git") && enters(&path) {
            found.extend(files(path, enters));
        } else if !is_folder {
            found.push(path);
        }
    }
    found
}

/// Returns the names of all tests.
pub(super) fn tests() -> BTreeSet<String> {
    ["src", "tests", "crates"]
        .iter()
        .flat_map(|folder| rust_files(top().join(folder)))
        .flat_map(|file| tests_in(&fs::read_to_string(file).unwrap()))
        .collect()
}

/// Returns the names of the functions that run as tests.
fn tests_in(source: &str) -> Vec<String> {
    let (mut names, mut attributes) = (Vec::new(), Vec::new());
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
        } else if let Some(name) = function(line) {
            if is_run(&attributes) {
                names.push(name.to_owned());
            }
            attributes.clear();
        }
    }
    names.extend(on_each_release(source).map(str::to_owned));
    names
}

/// Returns the names of the functions that `on_each_release!` makes tests of.
fn on_each_release(source: &str) -> impl Iterator<Item = &str> {
    let lists = source.split("on_each_release!(").skip(1);
    let names = lists.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(','));
    names
        .map(str::trim)
        .map(|name| name.strip_prefix("async ").unwrap_or(name))
        .filter(|name| !name.is_empty())
}

/// Returns the name of the function that begins in this line.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split('(').next()
}

/// Whether a function with these attributes is a test that is not ignored.
fn is_run(attributes: &[&str]) -> bool {
    let any = |starts: &[&str]| {
        attributes
            .iter()
            .any(|attribute| starts.iter().any(|start| attribute.starts_with(start)))
    };
    any(&["#[test]", "#[tokio::test]", "#[tokio::test("]) && !any(&["#[ignore"])
}

#[test]
fn only_functions_that_run_as_tests_count_as_tests() {
    let source = [
        "#[test]",
        "fn plain() {}",
        "#[tokio::test(flavor = \"multi_thread\")]",
        "#[expect(",
        "    clippy::panic,",
        ")]",
        "async fn in_a_runtime() {}",
        "fn helper() {}",
        "#[test]",
        "#[ignore = \"slow\"]",
        "fn ignored() {}",
        "// #[test]",
        "fn commented_out() {}",
        "let text = \"fn quoted()\";",
    ];
    assert_eq!(tests_in(&source.join("\n")), ["plain", "in_a_runtime"]);
}
