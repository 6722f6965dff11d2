//! The environment as a layer: `STARLIFT_SERVE_WAIT=4s` is `wait` in `[serve]`.
//!
//! The first word names the table, and `__` goes one table deeper: `STARLIFT_UPSTREAM_LOCAL__URL`
//! is `url` in `[upstream.local]`. A value is read as text, as TOML or as a comma-separated list:
//! the first form that the key accepts.

use toml::{Table, Value};

use super::{Error, Layer, Origin, TABLES};

const PREFIX: &str = "STARLIFT_";

/// Names the configuration file. It is not a key of that file.
const CONFIG_FILE: &str = "STARLIFT_CONFIG";

/// The variables that all programs read, and the Starlift key of each. Capital letters win, as in
/// containerd and Docker.
const PROXIES: [([&str; 2], &str); 3] = [
    (["HTTP_PROXY", "http_proxy"], "http_proxy"),
    (["HTTPS_PROXY", "https_proxy"], "https_proxy"),
    (["NO_PROXY", "no_proxy"], "no_proxy"),
];

/// The proxies that the environment names. A value that Starlift cannot use is left out, because
/// other programs read these variables too.
pub(super) fn proxies(environment: &[(String, String)]) -> Vec<Layer> {
    let value = |wanted: &str| {
        environment
            .iter()
            .find(|(name, value)| name == wanted && !value.is_empty())
    };
    let found = PROXIES.iter().filter_map(|(names, key)| {
        let (name, value) = names.iter().find_map(|name| value(name))?;
        let path = ["pull".to_owned(), (*key).to_owned()];
        Some(Layer::single(
            Origin::Environment(name.clone()),
            &path,
            Value::String(value.clone()),
        ))
    });
    found.filter(|layer| layer.check().is_ok()).collect()
}

/// One layer for each of Starlift's variables.
pub(super) fn layers(
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Layer>, Error> {
    let mut variables: Vec<_> = environment
        .into_iter()
        .filter(|(name, value)| is_configuration(name, value))
        .collect();
    variables.sort();
    variables
        .into_iter()
        .map(|(name, value)| layer(name, &value))
        .collect()
}

fn is_configuration(name: &str, value: &str) -> bool {
    name.starts_with(PREFIX) && name != CONFIG_FILE && !is_service_link(name, value)
}

/// Kubernetes announces every service of a namespace to its pods in environment variables. A
/// service named `starlift` makes them look like configuration (kubernetes.io, "Environment
/// variables" of services).
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url =
        value.starts_with("tcp://") || value.starts_with("udp://") || value.starts_with("sctp://");
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || name.contains("_PORT_")
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| name.contains(protocol))
}

fn layer(name: String, value: &str) -> Result<Layer, Error> {
    let path = path_of(&name);
    let origin = Origin::Environment(name);
    let mut first_error = None;
    for candidate in candidates(value) {
        let layer = Layer::single(origin.clone(), &path, candidate);
        match layer.check() {
            Ok(()) => return Ok(layer),
            Err(error) => first_error.get_or_insert(error),
        };
    }
    Err(first_error.unwrap_or(Error::Value {
        origin,
        key: path.join("."),
        reason: "has no value".to_owned(),
    }))
}

fn path_of(name: &str) -> Vec<String> {
    let name = name
        .strip_prefix(PREFIX)
        .unwrap_or(name)
        .to_ascii_lowercase();
    match name.split_once('_') {
        Some((table, rest)) if TABLES.contains(&table) => {
            let keys = rest.trim_start_matches('_').split("__");
            std::iter::once(table)
                .chain(keys)
                .map(str::to_owned)
                .collect()
        }
        _ => name.split("__").map(str::to_owned).collect(),
    }
}

fn candidates(value: &str) -> Vec<Value> {
    let mut candidates = vec![Value::String(value.to_owned())];
    if let Some(parsed) = format!("value = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
    {
        candidates.push(parsed);
    }
    candidates.push(Value::Array(
        value
            .split(',')
            .map(|item| Value::String(item.trim().to_owned()))
            .collect(),
    ));
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_the_table_and_two_underscores_go_deeper() {
        assert_eq!(path_of("STARLIFT_STORE_LOCATION"), ["store", "location"]);
        assert_eq!(path_of("STARLIFT_STORE__LOCATION"), ["store", "location"]);
        assert_eq!(
            path_of("STARLIFT_STORE_RETENTION__MAX_AGE"),
            ["store", "retention", "max_age"]
        );
        assert_eq!(
            path_of("STARLIFT_UPSTREAM_LOCAL__URL"),
            ["upstream", "local", "url"]
        );
        assert_eq!(
            path_of("STARLIFT_PULL_ALLOW_PRIVATE"),
            ["pull", "allow_private"]
        );
    }

    #[test]
    fn service_variables_of_kubernetes_are_ignored() {
        for (name, value) in [
            ("STARLIFT_SERVICE_HOST", "10.0.0.1"),
            ("STARLIFT_SERVICE_PORT_HTTP", "80"),
            ("STARLIFT_PORT", "tcp://10.0.0.1:80"),
            ("STARLIFT_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("STARLIFT_CONFIG", "/etc/x"),
            ("PATH", "/bin"),
        ] {
            assert!(!is_configuration(name, value), "{name}");
        }
        assert!(is_configuration("STARLIFT_STORE_LOCATION", "x"));
    }
}
