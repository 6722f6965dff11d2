//! The configuration of the whole program.
//!
//! Every module owns the struct of its own section. This module composes them and fills them from
//! four layers, each over the one before it: defaults, the file `starlift.toml`, the environment
//! `STARLIFT_*`, the flags of the command line. The proxy variables that all programs read
//! (`HTTP_PROXY` and its kin) form a layer directly above the defaults. An unknown key in any layer
//! stops the start.

mod effective;
mod environment;
mod layer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::agent;
use crate::convert;
use crate::registry;
use crate::serve;
use crate::store;
use crate::telemetry::log;
use crate::telemetry::traces;
pub use layer::Layer;

/// The files to try, in this order, if no file is named.
const DEFAULT_FILES: [&str; 2] = ["starlift.toml", "/etc/starlift/starlift.toml"];

/// The tables of the file. `[upstream.NAME]` configures one upstream, `[pull]` all of them.
const TABLES: [&str; 8] = [
    "serve", "store", "convert", "agent", "pull", "upstream", "log", "traces",
];

/// The path of a value: the tables' names and the key.
type KeyPath = Vec<String>;

/// The configuration of every module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    pub serve: serve::Config,
    pub store: store::Config,
    pub convert: convert::Config,
    pub agent: agent::Config,
    /// `[pull]` and `[upstream.NAME]`.
    pub upstreams: registry::Config,
    pub log: log::Config,
    pub traces: traces::Config,
}

/// The effective configuration, and which layer each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    origins: BTreeMap<KeyPath, Origin>,
}

/// The layer that a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    /// The name of the environment variable.
    Environment(String),
    /// The flag with its dashes.
    Flag(String),
}

/// The reason why there is no effective configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the configuration file {} cannot be read", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}, line {line}: {reason}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("{origin}: {key}: {reason}")]
    Value {
        origin: Origin,
        key: String,
        reason: String,
    },
}

impl Config {
    /// Loads the effective configuration: `file` or else the first default file that exists, then
    /// `environment` (only its `STARLIFT_*` variables and the proxies), then `flags`.
    ///
    /// # Errors
    /// If a file cannot be read or parsed, or a layer holds an unknown key or an impossible value.
    /// A missing default file is not an error. A missing named file is.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Vec<Layer>,
    ) -> Result<Loaded, Error> {
        let file = file.map(Path::to_owned).or_else(default_file);
        let environment: Vec<_> = environment.into_iter().collect();
        let mut layers = environment::proxies(&environment);
        if let Some(file) = &file {
            layers.push(Layer::read(file)?);
        }
        layers.extend(environment::layers(environment)?);
        layers.extend(flags);
        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        for layer in layers {
            layer.check()?;
            layer.merge_into(&mut table, &mut origins);
        }
        let config = Self::from_table(table).map_err(|error| Error::Value {
            origin: Origin::Default,
            key: error.key,
            reason: error.reason,
        })?;
        Ok(Loaded {
            config,
            file,
            origins,
        })
    }

    fn from_table(mut table: Table) -> Result<Self, BadValue> {
        let config = Self {
            serve: section(&mut table, "serve")?,
            store: section(&mut table, "store")?,
            convert: section(&mut table, "convert")?,
            agent: section(&mut table, "agent")?,
            upstreams: upstreams(&mut table)?,
            log: section(&mut table, "log")?,
            traces: section(&mut table, "traces")?,
        };
        match table.keys().next() {
            None => Ok(config),
            Some(unknown) => {
                let tables = TABLES.map(|name| format!("[{name}]")).join(", ");
                Err(BadValue {
                    key: unknown.clone(),
                    reason: format!("unknown, expected one of {tables}"),
                })
            }
        }
    }

    fn to_table(&self) -> Table {
        let mut pull = table_of(&self.upstreams);
        let upstream = pull
            .remove("upstream")
            .unwrap_or_else(|| Value::Table(Table::new()));
        let mut table = Table::new();
        table.insert("serve".to_owned(), Value::Table(table_of(&self.serve)));
        table.insert("store".to_owned(), Value::Table(table_of(&self.store)));
        table.insert("convert".to_owned(), Value::Table(table_of(&self.convert)));
        table.insert("agent".to_owned(), Value::Table(table_of(&self.agent)));
        table.insert("pull".to_owned(), Value::Table(pull));
        table.insert("upstream".to_owned(), upstream);
        table.insert("log".to_owned(), Value::Table(table_of(&self.log)));
        table.insert("traces".to_owned(), Value::Table(table_of(&self.traces)));
        table
    }
}

/// A module's complaint about its section.
struct BadValue {
    key: String,
    reason: String,
}

fn section<T: DeserializeOwned + Default>(table: &mut Table, name: &str) -> Result<T, BadValue> {
    let bad = |reason: String| BadValue {
        key: format!("[{name}]"),
        reason,
    };
    match table.remove(name) {
        None => Ok(T::default()),
        Some(Value::Table(section)) => section
            .try_into()
            .map_err(|error: toml::de::Error| bad(one_line(&error))),
        Some(_) => Err(bad("is a table, not a value".to_owned())),
    }
}

/// `[pull]` with the upstreams inserted, which is the form that their module reads.
fn upstreams(table: &mut Table) -> Result<registry::Config, BadValue> {
    if let Some(upstream) = table.remove("upstream") {
        let wrapped = Table::from_iter([("upstream".to_owned(), upstream.clone())]);
        section::<registry::Config>(
            &mut Table::from_iter([("upstream".to_owned(), Value::Table(wrapped))]),
            "upstream",
        )?;
        let pull = table
            .entry("pull")
            .or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(pull) = pull
            && pull.insert("upstream".to_owned(), upstream).is_some()
        {
            let reason = "upstreams stand in [upstream.NAME]".to_owned();
            return Err(BadValue {
                key: "[pull.upstream]".to_owned(),
                reason,
            });
        }
    }
    section(table, "pull")
}

fn one_line(error: &toml::de::Error) -> String {
    error
        .to_string()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Serializing one of these plain structs into a table can only fail on a type that TOML cannot
/// express, and a test rules that out.
fn table_of<T: Serialize>(value: &T) -> Table {
    Table::try_from(value).unwrap_or_default()
}

fn default_file() -> Option<PathBuf> {
    DEFAULT_FILES
        .iter()
        .map(PathBuf::from)
        .find(|file| file.exists())
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: Vec<Layer>) -> Result<Loaded, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("starlift.toml");
        std::fs::write(&path, file).unwrap();
        let environment = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Config::load(Some(&path), environment, flags)
    }

    #[test]
    fn each_layer_covers_the_one_before() {
        let file = "[store]\nlocation = \"from-file\"\n";
        let environment = [("STARLIFT_STORE_LOCATION", "from-environment")];
        let flag = vec![Layer::flag("--store", &["store", "location"], "from-flag")];
        assert_eq!(
            load(file, &[], vec![]).unwrap().config.store.location,
            "from-file"
        );
        assert_eq!(
            load(file, &environment, vec![])
                .unwrap()
                .config
                .store
                .location,
            "from-environment"
        );
        assert_eq!(
            load(file, &environment, flag)
                .unwrap()
                .config
                .store
                .location,
            "from-flag"
        );
    }

    #[test]
    fn proxies_of_the_environment_are_used_unless_the_file_names_others() {
        let environment = [
            ("HTTP_PROXY", "proxy:3128"),
            ("http_proxy", "http://other:1"),
            ("https_proxy", "http://me:hush@tls:3128"),
            ("NO_PROXY", ""),
            ("no_proxy", "a.example"),
            ("ALL_PROXY", "x"),
        ];
        let proxies =
            |file: &str, environment: &[(&str, &str)]| load(file, environment, vec![]).unwrap();
        let loaded = proxies("", &environment);
        let pull = &loaded.config.upstreams;
        assert_eq!(pull.http_proxy, "http://proxy:3128".parse().ok());
        assert_eq!(pull.https_proxy, "http://me:hush@tls:3128".parse().ok());
        assert_eq!(pull.no_proxy, "a.example");
        assert!(!loaded.to_toml().contains("hush"));
        let configured = proxies(
            "[pull]\nhttp_proxy = \"ours:1\"\nno_proxy = \"b\"\n",
            &environment,
        );
        assert_eq!(
            configured.config.upstreams.http_proxy,
            "ours:1".parse().ok()
        );
        assert_eq!(configured.config.upstreams.no_proxy, "b");
        assert_eq!(
            proxies("", &[("HTTP_PROXY", "socks5://x")])
                .config
                .upstreams
                .http_proxy,
            None
        );
    }

    #[test]
    fn unknown_keys_are_reported_with_their_place() {
        let error = load("[store]\nlocatoin = \"x\"\n", &[], vec![])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("starlift.toml")
                && error.contains("[store]")
                && error.contains("locatoin"),
            "{error}"
        );
        let error = load("[stroe]\nlocation = \"x\"\n", &[], vec![])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("stroe") && error.contains("[store]"),
            "{error}"
        );
        let error = load("", &[("STARLIFT_STORE_LOCATOIN", "x")], vec![])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("STARLIFT_STORE_LOCATOIN") && error.contains("locatoin"),
            "{error}"
        );
        let error = load("[upstream.x]\nurll = \"x\"\n", &[], vec![])
            .unwrap_err()
            .to_string();
        assert!(error.contains("urll"), "{error}");
    }

    #[test]
    fn broken_syntax_is_reported_with_its_line() {
        let error = load("[store]\nlocation = \n", &[], vec![])
            .unwrap_err()
            .to_string();
        assert!(error.contains("starlift.toml, line 2"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let missing = Path::new("/nonexistent/starlift.toml");
        assert!(matches!(
            Config::load(Some(missing), [], vec![]),
            Err(Error::Read { .. })
        ));
    }

    #[test]
    fn the_printed_configuration_can_be_read_again_and_names_origins() {
        let environment = [("STARLIFT_UPSTREAM_LOCAL__URL", "http://127.0.0.1:5000")];
        let loaded = load("[store]\nlocation = \"a\"\n", &environment, vec![]).unwrap();
        let text = loaded.to_toml();
        assert!(
            text.contains("url = \"http://127.0.0.1:5000\"  # STARLIFT_UPSTREAM_LOCAL__URL"),
            "{text}"
        );
        assert_eq!(load(&text, &[], vec![]).unwrap().config, loaded.config);
    }
}
