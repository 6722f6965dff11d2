//! The effective configuration as TOML text: each value with the layer it came from, secrets
//! redacted.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::{KeyPath, Loaded, Origin};

const REDACTED: &str = "(secret)";

impl Loaded {
    /// The effective configuration as TOML, one comment for each value: `listen = "127.0.0.1:8080"
    /// # default`.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.print_table(&self.config.to_table(), &mut Vec::new(), &mut text);
        text
    }

    /// Whether no layer has set the value at `path`: the tables' names and the key.
    pub fn is_default(&self, path: &[&str]) -> bool {
        let path: KeyPath = path.iter().map(ToString::to_string).collect();
        !self.origins.contains_key(&path)
    }

    fn print_table(&self, table: &Table, path: &mut KeyPath, text: &mut String) {
        let (tables, values): (Vec<_>, Vec<_>) =
            table.iter().partition(|(_, value)| value.is_table());
        if !path.is_empty() && !values.is_empty() {
            let header = path
                .iter()
                .map(|part| quoted(part))
                .collect::<Vec<_>>()
                .join(".");
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{gap}[{header}]");
        }
        for (key, value) in values {
            path.push(key.clone());
            let origin = self.origins.get(path).unwrap_or(&Origin::Default);
            let _ = writeln!(text, "{} = {}  # {origin}", quoted(key), shown(key, value));
            path.pop();
        }
        for (key, value) in tables {
            if let Value::Table(inner) = value {
                path.push(key.clone());
                self.print_table(inner, path, text);
                path.pop();
            }
        }
    }
}

fn shown(key: &str, value: &Value) -> String {
    let has_value = value.as_str().is_none_or(|text| !text.is_empty());
    if is_secret(key) && has_value {
        Value::from(REDACTED).to_string()
    } else {
        value.to_string()
    }
}

/// Whether the value of `key` is a secret. Keys that name a file are not.
fn is_secret(key: &str) -> bool {
    let names_a_secret = ["password", "secret", "token"]
        .iter()
        .any(|word| key.contains(word));
    names_a_secret && !key.ends_with("_file")
}

/// `key` as TOML writes it: bare if possible, else quoted.
fn quoted(key: &str) -> String {
    let is_bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if is_bare {
        key.to_owned()
    } else {
        Value::from(key).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_recognised_by_their_names() {
        for key in ["password", "secret_access_key", "token", "identity_token"] {
            assert!(is_secret(key), "{key}");
        }
        for key in ["password_file", "username", "access_key_id"] {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn keys_with_dots_are_quoted() {
        assert_eq!(quoted("docker.io"), "\"docker.io\"");
        assert_eq!(quoted("max_age"), "max_age");
    }
}
