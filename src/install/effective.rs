//! Compares two effective configurations of containerd.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The keys of a configuration that are not tables, by their paths.
type Keys<'a> = BTreeMap<Vec<&'a str>, &'a Value>;

/// Returns the keys whose values differ, except those at or below `expected`, the list of imports
/// and the version.
pub(super) fn other_changes(
    before: &Table,
    after: &Table,
    expected: &[Vec<&'static str>],
) -> Vec<String> {
    let (mut old, mut new) = (Keys::new(), Keys::new());
    collect(before, &mut Vec::new(), &mut old);
    collect(after, &mut Vec::new(), &mut new);
    let is_expected = |path: &[&str]| {
        let always = [vec!["imports"], vec!["version"]];
        expected
            .iter()
            .chain(&always)
            .any(|expected| path.starts_with(expected))
    };
    let mut paths: Vec<_> = old.keys().chain(new.keys()).collect();
    paths.sort();
    paths.dedup();
    paths
        .into_iter()
        .filter(|path| old.get(*path) != new.get(*path) && !is_expected(path))
        .map(|path| path.join("."))
        .collect()
}

fn collect<'a>(table: &'a Table, path: &mut Vec<&'a str>, keys: &mut Keys<'a>) {
    for (key, value) in table {
        path.push(key);
        match value {
            Value::Table(inner) => collect(inner, path, keys),
            value => drop(keys.insert(path.clone(), value)),
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_other_keys_are_found() {
        let before: Table = "imports = []\na = 1\n[b]\nc = 1\nd = [1]\n"
            .parse()
            .unwrap();
        let after: Table = "imports = ['x']\na = 1\n[b]\nc = 2\ne = true\n"
            .parse()
            .unwrap();
        assert_eq!(
            other_changes(&before, &after, &[vec!["b", "c"]]),
            ["b.d", "b.e"]
        );
        assert!(other_changes(&before, &after, &[vec!["b"]]).is_empty());
    }
}
