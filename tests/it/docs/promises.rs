//! Every promise of docs/SEMANTICS.md and every row of docs/THREATS.md has a test.

use super::sources::{document, tests};

#[test]
fn every_promise_names_a_test_that_exists() {
    let (tests, text) = (tests(), document("SEMANTICS.md"));
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
    let (tests, text) = (tests(), document("THREATS.md"));
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
