//! The signals that end this process: an interrupt from the keyboard and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Runs `work` to its end. Fails if a signal ends the command before.
pub(crate) async fn interruptible<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        outcome = work => outcome,
        failure = interruption() => Err(failure),
    }
}

/// Waits for an interrupt or SIGTERM.
pub(crate) async fn interruption() -> Failure {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Failure::new("interrupted"),
        failure = termination() => failure,
    }
}

/// Waits for SIGTERM only. The caller handles an interrupt from the keyboard.
pub(crate) async fn termination() -> Failure {
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => {
            terminated.recv().await;
            Failure::new("terminated")
        }
        Err(error) => Failure::when("signal handler cannot be installed")(error),
    }
}

/// Waits for an interrupt only. The caller handles SIGTERM.
pub(crate) async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without the signal, the work ends by itself or with this process.
        std::future::pending().await
    }
}

/// Cancels `shutdown` at an interrupt or SIGTERM.
pub(crate) async fn cancel_on_signal(shutdown: CancellationToken) {
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => tracing::info!("interrupted: waiting for running responses"),
                _ = terminate.recv() => tracing::info!("terminated: waiting for running responses"),
            }
        }
        // Without a handler, SIGTERM still ends the process, but not gracefully.
        Err(_) => drop(interrupt.await),
    }
    shutdown.cancel();
}
