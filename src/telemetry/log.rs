//! Sets up tracing: one line per event on standard error, as text or as JSON.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The log's section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
    /// The filter, in `RUST_LOG`'s syntax: `info,starlift=debug`.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

/// The text is not a log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log format: text or json")]
pub struct ParseLogFormatError(String);

impl FromStr for LogFormat {
    type Err = ParseLogFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(ParseLogFormatError(other.to_owned())),
        }
    }
}

/// The reason why tracing cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("malformed log filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("tracing already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The messages of an error and of its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Precedes every filter, which may override it. Containers can cause `fuser`'s lines at any rate.
/// If a reader was killed, its answer cannot be delivered, and `fuser` logs that as an error. Spans of
/// traces are not for the log.
const QUIET: &str = "fuser=error,fuser::reply=off,otel=off";

/// Starts logging.
///
/// # Errors
/// If the filter is malformed, or logging was started before.
pub fn start(config: &Config) -> Result<(), LogError> {
    let subscriber = tracing_subscriber::registry().with(filter(config)?);
    subscriber.with(lines(config.format)).try_init()?;
    Ok(())
}

/// Starts logging, and `traces` beside it. The filter is for log lines only.
///
/// # Errors
/// As [`start`].
pub(super) fn start_with(
    config: &Config,
    traces: Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>,
) -> Result<(), LogError> {
    let filter = filter(config)?;
    let subscriber = tracing_subscriber::registry().with(traces);
    subscriber
        .with(lines(config.format).with_filter(filter))
        .try_init()?;
    Ok(())
}

fn filter(config: &Config) -> Result<EnvFilter, LogError> {
    Ok(format!("{QUIET},{}", config.filter).parse()?)
}

/// The layer that writes lines.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(true);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_an_error() {
        assert!(matches!(
            start(&Config {
                filter: "starlift=loud".to_owned(),
                ..Config::default()
            }),
            Err(LogError::Filter(_))
        ));
    }

    #[test]
    fn log_formats_are_parsed() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert!("yaml".parse::<LogFormat>().is_err());
    }
}
