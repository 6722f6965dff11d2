//! Edits containerd's configuration files: keys are set and taken out, everything else stays as
//! people wrote it.

use std::path::Path;

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value};

use super::settings::Setting;
use super::{MARK, PLUGIN};
use crate::failure::Failure;

const VERSION: &str = "version";
const IMPORTS: &str = "imports";

/// Returns `text` with the settings. A text without a version becomes one of `version`.
///
/// # Errors
/// If the text is not TOML, or has a value where the settings need a table.
pub(super) fn with_settings(
    text: &str,
    version: i64,
    settings: &[Setting],
) -> Result<String, Failure> {
    let mut document = parse(text)?;
    if document.get(VERSION).is_none() {
        document.insert(VERSION, toml_edit::value(version));
    }
    for setting in settings {
        set(document.as_table_mut(), &setting.path, &setting.value)?;
    }
    Ok(document.to_string())
}

/// Returns a file of its own with the settings.
///
/// # Errors
/// None, with the settings of this program.
pub(super) fn whole(version: i64, settings: &[Setting]) -> Result<String, Failure> {
    let text = with_settings("", version, settings)?;
    Ok(format!("{MARK}\n{text}"))
}

/// Returns `text` with a pattern of files to import.
///
/// # Errors
/// If the text is not TOML, or `imports` is not a list.
pub(super) fn with_import(text: &str, pattern: &Path) -> Result<String, Failure> {
    let mut document = parse(text)?;
    if has_import(&document, pattern) {
        return Ok(document.to_string());
    }
    let imports = document
        .entry(IMPORTS)
        .or_insert_with(|| toml_edit::value(Array::new()));
    let list = imports
        .as_array_mut()
        .ok_or_else(|| Failure::new("`imports` in containerd's configuration is not a list"))?;
    list.push(pattern.to_string_lossy().into_owned());
    Ok(document.to_string())
}

/// Returns `text` without the settings at `keys`, if its snapshotter has this address. Values come
/// back from `original`, the text before the settings. Values that other people set since stay. If
/// there is an original text, the pattern `import` is taken out of the files to import, and a result
/// that means the same is returned as it was written.
///
/// # Errors
/// If one of the texts is not TOML.
pub(super) fn without_settings(
    text: &str,
    keys: &[Vec<&'static str>],
    original: Option<&str>,
    address: &Path,
    import: &Path,
) -> Result<String, Failure> {
    let mut document = parse(text)?;
    let before = parse(original.unwrap_or_default())?;
    let own = ["proxy_plugins", PLUGIN, "address"];
    let found = find(document.as_table(), &own).and_then(Item::as_str);
    if found.map(Path::new) == Some(address) {
        restore_all(&mut document, keys, &before);
        if original.is_some() && before.get(VERSION).is_none() {
            document.remove(VERSION);
        }
    }
    let Some(original) = original else {
        return Ok(document.to_string());
    };
    remove_import(&mut document, &before, import);
    let without = document.to_string();
    let is_same = without.parse::<toml::Table>().ok() == original.parse().ok();
    Ok(if is_same {
        original.to_owned()
    } else {
        without
    })
}

/// Takes a pattern out of the files to import, unless it was there before.
fn remove_import(document: &mut DocumentMut, before: &DocumentMut, import: &Path) {
    if has_import(before, import) {
        return;
    }
    let Some(list) = document.get_mut(IMPORTS).and_then(Item::as_array_mut) else {
        return;
    };
    list.retain(|one| one.as_str().map(Path::new) != Some(import));
    if list.is_empty() && before.get(IMPORTS).is_none() {
        document.remove(IMPORTS);
    }
}

/// Restores the keys that still have the values of the settings.
fn restore_all(document: &mut DocumentMut, keys: &[Vec<&'static str>], original: &DocumentMut) {
    let is_pods = keys
        .iter()
        .filter(|key| key.last() == Some(&"snapshotter"))
        .any(|key| find(document.as_table(), key).and_then(Item::as_str) == Some(PLUGIN));
    for key in keys {
        let Some(item) = find(document.as_table(), key) else {
            continue;
        };
        let is_own = match key.last() {
            // The annotations are on because of the snapshotter.
            Some(&"snapshotter" | &"disable_snapshot_annotations") => is_pods,
            Some(&"unpack_config") => item.to_string().contains(PLUGIN),
            // It is set only if there was none.
            Some(&"config_path") => find(original.as_table(), key)
                .and_then(Item::as_str)
                .is_none_or(str::is_empty),
            _ => true,
        };
        if is_own {
            restore(document.as_table_mut(), key, original.as_table());
        }
    }
}

fn has_import(document: &DocumentMut, import: &Path) -> bool {
    let list = document.get(IMPORTS).and_then(Item::as_array);
    list.into_iter()
        .flatten()
        .any(|one| one.as_str().map(Path::new) == Some(import))
}

fn parse(text: &str) -> Result<DocumentMut, Failure> {
    text.parse()
        .map_err(Failure::when("containerd's configuration is not TOML"))
}

fn set(table: &mut dyn TableLike, path: &[&str], value: &Value) -> Result<(), Failure> {
    let Some((key, parents)) = path.split_last() else {
        return Ok(());
    };
    let mut table = table;
    for parent in parents {
        let item = table.entry(parent).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        table = item.as_table_like_mut().ok_or_else(|| {
            Failure::new(format!(
                "{parent} in containerd's configuration is not a table"
            ))
        })?;
    }
    match table.get_mut(key) {
        Some(item) if is_same(item, value) => {}
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = value.clone();
            *old.decor_mut() = decor;
        }
        // The key of a list of tables is not written as that of a value.
        _ => {
            table.remove(key);
            table.insert(key, Item::Value(value.clone()));
        }
    }
    Ok(())
}

/// Whether an item means the same as `value`, however it is written.
fn is_same(item: &Item, value: &Value) -> bool {
    let plain = |item: Item| {
        let mut document = DocumentMut::new();
        document.insert("item", item);
        document.to_string().parse::<toml::Table>().ok()
    };
    plain(item.clone()) == plain(Item::Value(value.clone()))
}

fn find<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Item> {
    let (first, rest) = path.split_first()?;
    let mut item = table.get(first)?;
    for key in rest {
        item = item.as_table_like()?.get(key)?;
    }
    Some(item)
}

/// Gives a key the item of `original`, or removes it and the tables that are empty without it.
fn restore(table: &mut dyn TableLike, path: &[&str], original: &Table) {
    let (Some((first, rest)), old) = (path.split_first(), find(original, path)) else {
        return;
    };
    if !rest.is_empty() {
        let Some(inner) = table.get_mut(first).and_then(Item::as_table_like_mut) else {
            return;
        };
        let below = original.get(first).and_then(Item::as_table);
        restore(inner, rest, below.unwrap_or(&Table::new()));
        if inner.is_empty() && below.is_none() {
            table.remove(first);
        }
        return;
    }
    match (old, table.get_mut(first)) {
        (Some(old), Some(item)) => *item = old.clone(),
        (None, Some(_)) => drop(table.remove(first)),
        (_, None) => {}
    }
}
