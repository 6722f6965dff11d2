//! `docs/CONFIGURATION.md` is generated from the documentation of the configuration's structs in
//! the source.
//!
//! `UPDATE_DOCS=1` rewrites it.

use std::fmt::Write as _;
use std::path::Path;

use starlift::config::Config;
use toml::Table;

use super::sources::top;

const REFERENCE: &str = "docs/CONFIGURATION.md";
/// The text above the marker is written by hand.
const MARKER: &str =
    "<!-- From here on generated from the source: UPDATE_DOCS=1 cargo test reference -->\n";

/// Name of the table in the file, source file, struct.
const PARTS: [(&str, &str, &str); 15] = [
    ("serve", "src/serve/config.rs", "Config"),
    ("serve.access", "src/serve/access/config.rs", "AccessConfig"),
    (
        "serve.access.rule",
        "src/serve/access/policy.rs",
        "AccessRule",
    ),
    (
        "serve.access.issuer",
        "src/serve/access/oidc/config.rs",
        "IssuerConfig",
    ),
    (
        "serve.budgets.identity",
        "src/serve/budgets/config.rs",
        "BudgetConfig",
    ),
    (
        "serve.notifications",
        "src/serve/ahead_config.rs",
        "NotificationConfig",
    ),
    ("serve.warm", "src/serve/ahead_config.rs", "WarmConfig"),
    ("store", "src/store/config.rs", "Config"),
    ("convert", "src/convert/config.rs", "Config"),
    ("agent", "src/agent/config.rs", "Config"),
    ("agent.image", "src/agent/config.rs", "ImageRule"),
    ("pull", "src/registry/config.rs", "Config"),
    ("upstream.NAME", "src/registry/config.rs", "UpstreamConfig"),
    ("log", "src/telemetry/log.rs", "Config"),
    ("traces", "src/telemetry/traces/config.rs", "Config"),
];

struct Field {
    name: String,
    kind: String,
    text: String,
}

#[test]
fn the_reference_matches_the_source() {
    let root = top();
    let path = root.join(REFERENCE);
    let old = std::fs::read_to_string(&path).unwrap();
    let (head, generated) = old
        .split_once(MARKER)
        .expect("the marker is in the reference");
    let fresh = generate(root);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{MARKER}{fresh}")).unwrap();
    } else {
        assert_eq!(generated, fresh, "UPDATE_DOCS=1 cargo test reference");
    }
}

fn generate(root: &Path) -> String {
    let nothing = tempfile::NamedTempFile::new().unwrap();
    let loaded = Config::load(Some(nothing.path()), [], Vec::new()).unwrap();
    let defaults: Table = loaded.to_toml().parse().unwrap();
    let mut text = String::new();
    for (table, file, name) in PARTS {
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        section(&mut text, table, &source, name, &defaults);
    }
    text
}

fn section(text: &mut String, table: &str, source: &str, name: &str, defaults: &Table) {
    let fields = fields(source, name);
    assert!(!fields.is_empty(), "{name} of [{table}] has fields");
    let (tables, values): (Vec<_>, Vec<_>) = fields
        .iter()
        .partition(|field| !inner_fields(source, field).is_empty());
    write!(
        text,
        "\n## `[{table}]`\n\n| key | default | |\n|---|---|---|\n"
    )
    .unwrap();
    for Field {
        name,
        text: meaning,
        ..
    } in values
    {
        // These tables have sections of their own.
        if matches!(name.as_str(), "upstream" | "access" | "budgets" | "warm") {
            continue;
        }
        assert!(!meaning.is_empty(), "{name} of [{table}] is documented");
        let default = default(defaults, table, name)
            .map_or("not set".to_owned(), |value| format!("`{value}`"));
        writeln!(
            text,
            "| `{name}` | {default} | {} |",
            meaning.replace('|', "\\|")
        )
        .unwrap();
    }
    for field in tables {
        let inner = format!("{table}.{}", field.name);
        section(text, &inner, source, plain(&field.kind), defaults);
    }
}

fn inner_fields(source: &str, field: &Field) -> Vec<Field> {
    fields(source, plain(&field.kind))
}

fn plain(kind: &str) -> &str {
    kind.strip_prefix("Option<")
        .and_then(|kind| kind.strip_suffix('>'))
        .unwrap_or(kind)
}

fn default(defaults: &Table, table: &str, key: &str) -> Option<String> {
    let table = table
        .split('.')
        .try_fold(defaults, |table, part| table.get(part)?.as_table())?;
    table.get(key).map(ToString::to_string)
}

/// Returns the public fields of a struct with their documentation. Empty if the source has no such
/// struct.
fn fields(source: &str, name: &str) -> Vec<Field> {
    let Some((_, body)) = source.split_once(&format!("pub struct {name} {{\n")) else {
        return Vec::new();
    };
    let mut text = String::new();
    let mut fields = Vec::new();
    for line in body.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(sentence) = line.strip_prefix("///") {
            text.push_str(sentence);
        } else if let Some((name, kind)) = line
            .strip_prefix("pub ")
            .and_then(|field| field.split_once(": "))
        {
            let kind = kind.trim_end_matches(',').to_owned();
            fields.push(Field {
                name: name.to_owned(),
                kind,
                text: std::mem::take(&mut text).trim().to_owned(),
            });
        }
    }
    fields
}
