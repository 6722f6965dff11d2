//! The telemetry of the process: log, traces, metrics, and a watchdog.

pub mod limit;
pub mod log;
pub mod metrics;
pub mod traces;
mod watchdog;

pub use log::LogFormat;
pub use metrics::metrics;
pub use watchdog::Watchdog;

/// The reason why log and traces cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Traces(#[from] traces::TracesError),
}

/// Starts the log, and traces if they have a collector. Spans are exported once the exporter runs.
///
/// # Errors
/// If a value of the configuration is impossible, or logging was started before.
pub fn start(
    log: &log::Config,
    traces: &traces::Config,
) -> Result<Option<traces::Exporter>, StartError> {
    match traces::layer(traces)? {
        Some((layer, exporter)) => {
            log::start_with(log, layer)?;
            traces::switch_on();
            Ok(Some(exporter))
        }
        None => {
            log::start(log)?;
            Ok(None)
        }
    }
}
