//! One layer of the configuration: a sparse table and where it came from.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::{Config, Error, KeyPath, Origin};

/// Values of one origin, which cover those of the layers before.
#[derive(Debug, Clone)]
pub struct Layer {
    table: Table,
    origin: Origin,
}

impl Layer {
    /// One value at `path`, given by the flag `flag`.
    pub fn flag(flag: &str, path: &[&str], value: impl Into<Value>) -> Self {
        let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
        Self::single(Origin::Flag(flag.to_owned()), &path, value.into())
    }

    pub(super) fn single(origin: Origin, path: &[String], value: Value) -> Self {
        let mut table = Table::new();
        if let Some((last, parents)) = path.split_last() {
            let leaf = Table::from_iter([(last.clone(), value)]);
            table = parents.iter().rev().fold(leaf, |inner, parent| {
                Table::from_iter([(parent.clone(), Value::Table(inner))])
            });
        }
        Self { table, origin }
    }

    pub(super) fn read(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
        let table = text.parse::<Table>().map_err(|error| Error::Syntax {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| line_of(&text, span.start)),
            reason: error.message().to_owned(),
        })?;
        Ok(Self {
            table,
            origin: Origin::File(file.to_owned()),
        })
    }

    /// Checks that every key is known and every value possible, so that an error can name this
    /// layer.
    pub(super) fn check(&self) -> Result<(), Error> {
        match Config::from_table(self.table.clone()) {
            Ok(_) => Ok(()),
            Err(bad) => Err(Error::Value {
                origin: self.origin.clone(),
                key: bad.key,
                reason: bad.reason,
            }),
        }
    }

    pub(super) fn merge_into(self, table: &mut Table, origins: &mut BTreeMap<KeyPath, Origin>) {
        merge(table, self.table, &mut Vec::new(), &mut |path| {
            origins.insert(path.to_vec(), self.origin.clone());
        });
    }
}

fn merge(under: &mut Table, over: Table, path: &mut KeyPath, placed: &mut impl FnMut(&[String])) {
    for (key, value) in over {
        path.push(key.clone());
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over, path, placed),
            (_, Value::Table(over)) => {
                let mut fresh = Table::new();
                merge(&mut fresh, over, path, placed);
                under.insert(key, Value::Table(fresh));
            }
            (_, value) => {
                placed(path);
                under.insert(key, value);
            }
        }
        path.pop();
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
}
