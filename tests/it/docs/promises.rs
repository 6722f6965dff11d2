//! Every promise of docs/SEMANTICS.md and every row of docs/THREATS.md has a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Collects the names of all test functions under `folder`.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text
                .split("fn ")
                .skip(1)
                .filter_map(|rest| rest.split('(').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

/// Returns the names of all test functions of the project.
fn all_tests() -> BTreeSet<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests", "crates"] {
        tests_in(&top.join(folder), &mut tests);
    }
    tests
}

fn document(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs")
            .join(name),
    )
    .unwrap()
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let (tests, text) = (all_tests(), document("SEMANTICS.md"));
    let promises: Vec<_> = text.split("\n* ").skip(1).collect();
    assert!(promises.len() > 30);
    for promise in promises {
        let promise = promise.split("\n\n").next().unwrap();
        for name in promise.rsplit('—').next().unwrap().split(',') {
            let name = name.trim().trim_matches('`');
            assert!(tests.contains(name), "no test {name:?} for: {promise}");
        }
    }
}

#[test]
fn every_threat_names_a_test_that_exists() {
    let (tests, text) = (all_tests(), document("THREATS.md"));
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .collect();
    assert!(rows.len() > 30);
    for row in rows {
        let named = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        for name in named.split(',') {
            let name = name.trim().trim_matches('`');
            assert!(tests.contains(name), "no test {name:?} for: {row}");
        }
    }
}
