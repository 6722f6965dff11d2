//! The section `[traces]`.

use std::path::PathBuf;

use url::Url;

/// The longest name of the service. The name is in every export.
const MAX_NAME: usize = 256;

/// The traces' section of the configuration.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The OpenTelemetry collector that gets the traces, by OTLP over HTTP: `http://collector:4318`.
    /// `/v1/traces` is appended. Without it no request is traced.
    pub endpoint: Option<String>,
    /// The part of the requests, pulls and reads that are traced if no trace context came with them:
    /// 0 to 1. It is also the most of the requests with a trace context that are traced because their
    /// sender says so.
    pub ratio: f64,
    /// Whether requests are traced as often as their senders say. Everybody who reaches the server can
    /// then have all of their requests traced.
    pub trust_clients: bool,
    /// A file with headers for the collector, one `Name: value` in each line, for example the
    /// collector's token. It is read for each export.
    pub headers_file: Option<PathBuf>,
    /// The name of this service in the traces.
    pub service_name: String,
    /// The most spans that wait for the collector. Further ones are dropped and counted.
    pub queue: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            ratio: 0.05,
            trust_clients: false,
            headers_file: None,
            service_name: "starlift".to_owned(),
            queue: 2048,
        }
    }
}

/// The reason why traces cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("traces.ratio is {0}, not a number from 0 to 1")]
    Ratio(f64),
    #[error("traces.queue is 0")]
    NoQueue,
    #[error("traces.service_name has no or more than {MAX_NAME} letters")]
    Name,
    #[error("traces.endpoint is {0:?}, not of the form http://HOST:PORT or https://HOST:PORT")]
    Endpoint(String),
    #[error("traces.headers_file")]
    Headers(#[from] super::headers::HeadersError),
    #[error("no client for the collector")]
    Client(#[from] reqwest::Error),
}

impl Config {
    /// Checks the values, and returns the address for exports if there is a collector.
    pub(super) fn checked(&self) -> Result<Option<Url>, TracesError> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(TracesError::Ratio(self.ratio));
        }
        if self.queue == 0 {
            return Err(TracesError::NoQueue);
        }
        if !(1..=MAX_NAME).contains(&self.service_name.len()) {
            return Err(TracesError::Name);
        }
        self.endpoint.as_deref().map(address).transpose()
    }
}

/// Appends the path of traces (OTLP 1.0, "OTLP/HTTP Request").
fn address(endpoint: &str) -> Result<Url, TracesError> {
    let malformed = || TracesError::Endpoint(endpoint.to_owned());
    let mut address: Url = endpoint.parse().map_err(|_malformed| malformed())?;
    let is_plain = address.query().is_none() && address.fragment().is_none();
    if !matches!(address.scheme(), "http" | "https") || !is_plain {
        return Err(malformed());
    }
    let path = format!("{}/v1/traces", address.path().trim_end_matches('/'));
    address.set_path(&path);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(endpoint: &str, ratio: f64) -> Result<Option<Url>, TracesError> {
        Config {
            endpoint: Some(endpoint.to_owned()),
            ratio,
            ..Config::default()
        }
        .checked()
    }

    #[test]
    fn the_path_of_traces_is_appended() {
        for (endpoint, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            (
                "https://c.example/otlp/",
                "https://c.example/otlp/v1/traces",
            ),
        ] {
            let address = with(endpoint, 1.0).unwrap().unwrap();
            assert_eq!(address.as_str(), expected);
        }
        assert!(Config::default().checked().unwrap().is_none());
    }

    #[test]
    fn impossible_values_are_errors() {
        for (endpoint, ratio) in [
            ("grpc://collector:4317", 0.5),
            ("collector:4318", 0.5),
            ("http://collector:4318/?x=1", 0.5),
            ("http://collector:4318", 1.5),
            ("http://collector:4318", -0.1),
            ("http://collector:4318", f64::NAN),
        ] {
            assert!(with(endpoint, ratio).is_err(), "{endpoint} {ratio}");
        }
        let no_queue = Config {
            queue: 0,
            ..Config::default()
        };
        assert!(no_queue.checked().is_err());
    }
}
