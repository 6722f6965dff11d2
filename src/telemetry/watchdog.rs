//! A thread that detects when the runtime is late, and reports it when the runtime cannot.
//!
//! ```text
//! a task of the runtime ─ beat, each second ─┬▶ watchdog thread
//!                                            │  └▶ metrics, one log line, systemd (WATCHDOG=1)
//!                                            └▶ liveness thread ─▶ 200, or 503 if far too late
//! ```
//! A liveness probe over the server's own port gets no answer while the runtime hangs, and a wrong
//! one once its queue is full. This listener and its thread do not depend on the runtime.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::metrics::metrics;

/// The interval in which the runtime shows that it runs.
const BEAT: Duration = Duration::from_secs(1);
/// The delay that is logged. A busy machine delays a task by less.
const NOTICED: Duration = Duration::from_secs(5);
/// The delay after which a restart is the best remedy. No regular work causes it.
const DEAD: Duration = Duration::from_secs(20);
/// How long a client of the liveness listener may take for its request and the answer. Clients are
/// served one by one.
const PATIENCE: Duration = Duration::from_millis(500);
/// The most bytes of a request that are read.
const MAX_REQUEST: usize = 4096;

/// The interval of the checks, and the delays that count as late and as dead.
#[derive(Debug, Clone, Copy)]
struct Pace {
    beat: Duration,
    noticed: Duration,
    dead: Duration,
}

const PACE: Pace = Pace {
    beat: BEAT,
    noticed: NOTICED,
    dead: DEAD,
};

/// Watches a runtime until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    /// Dropping this ends the threads after some time.
    _pulse: Arc<Pulse>,
    liveness: Option<SocketAddr>,
}

/// The last sign of life of the runtime.
#[derive(Debug)]
struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
    pace: Pace,
}

impl Watchdog {
    /// Watches `runtime` and serves its liveness on `liveness`.
    ///
    /// # Errors
    /// If the address cannot be listened on, or threads cannot be started.
    pub fn start(runtime: &Handle, liveness: Option<SocketAddr>) -> io::Result<Self> {
        Self::with(runtime, liveness, PACE)
    }

    fn with(runtime: &Handle, liveness: Option<SocketAddr>, pace: Pace) -> io::Result<Self> {
        let pulse = Arc::new(Pulse {
            since: Instant::now(),
            last: AtomicU64::new(0),
            pace,
        });
        let listener = liveness.map(TcpListener::bind).transpose()?;
        let liveness = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        runtime.spawn(beat(Arc::downgrade(&pulse)));
        let watched = Arc::downgrade(&pulse);
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&watched))?;
        if let Some(listener) = listener {
            let asked = Arc::downgrade(&pulse);
            thread::Builder::new()
                .name("liveness".to_owned())
                .spawn(move || answer(&listener, &asked))?;
        }
        Ok(Self {
            _pulse: pulse,
            liveness,
        })
    }

    /// The address of the liveness listener.
    pub fn liveness(&self) -> Option<SocketAddr> {
        self.liveness
    }
}

impl Pulse {
    fn beat(&self) {
        self.last
            .store(milliseconds(self.since.elapsed()), Ordering::Relaxed);
    }

    /// The delay of the next beat.
    fn lateness(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(last + self.pace.beat)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn beat(pulse: Weak<Pulse>) {
    while let Some(pace) = pulse.upgrade().map(|pulse| {
        pulse.beat();
        pulse.pace
    }) {
        tokio::time::sleep(pace.beat).await;
    }
}

fn watch(pulse: &Weak<Pulse>) {
    let systemd = sd_notify::watchdog_enabled();
    let mut is_noticed = false;
    while let Some(pulse) = pulse.upgrade() {
        let (late, pace) = (pulse.lateness(), pulse.pace);
        drop(pulse);
        metrics().runtime_late.set(late.as_secs_f64());
        // Logged and counted once per stall.
        if late >= pace.noticed && !is_noticed {
            metrics().runtime_stalls.inc();
            tracing::warn!(?late, "the runtime is late: something holds its threads");
        }
        is_noticed = late >= pace.noticed;
        if systemd.is_some() && late < pace.dead {
            let _unheard = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        // systemd recommends at most half of its interval.
        thread::sleep(systemd.map_or(pace.beat, |interval| pace.beat.min(interval / 2)));
    }
}

fn answer(listener: &TcpListener, pulse: &Weak<Pulse>) {
    while let Ok((client, _)) = accepted(listener) {
        let Some(pulse) = pulse.upgrade() else { return };
        // A client that leaves or is too slow gets no answer.
        let _unheard = send_liveness(client, pulse.lateness(), pulse.pace.dead);
    }
}

/// Returns the next client. A failure of one client does not end the listener.
fn accepted(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(_) => thread::sleep(PATIENCE),
            accepted => return accepted,
        }
    }
}

fn send_liveness(mut client: TcpStream, late: Duration, dead: Duration) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut piece = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        let left = until.saturating_duration_since(Instant::now());
        client.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match client.read(&mut piece)? {
            0 => return Ok(()),
            read => request.extend_from_slice(piece.get(..read).unwrap_or_default()),
        }
        if Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    let (status, body) = if late < dead {
        ("200 OK", "ok\n".to_owned())
    } else {
        (
            "503 Service Unavailable",
            format!("the runtime is {} s late\n", late.as_secs()),
        )
    };
    client.set_write_timeout(Some(PATIENCE))?;
    let head = "content-type: text/plain\r\ncache-control: no-store\r\nconnection: close\r\n";
    write!(
        client,
        "HTTP/1.1 {status}\r\n{head}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::eventually::eventually;

    const QUICK: Pace = Pace {
        beat: Duration::from_millis(10),
        noticed: Duration::from_millis(50),
        dead: Duration::from_millis(200),
    };

    fn asked(address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).unwrap();
        client
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    fn until(status: &str, address: SocketAddr) {
        let wanted = format!("HTTP/1.1 {status} ");
        eventually(&wanted, || asked(address).starts_with(&wanted));
    }

    #[test]
    fn the_liveness_listener_reports_a_blocked_runtime_and_its_recovery() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let watchdog = Watchdog::with(runtime.handle(), Some(nowhere), QUICK).unwrap();
        let address = watchdog.liveness().unwrap();
        until("200", address);
        let stalls = metrics().runtime_stalls.get();
        let (release, held) = mpsc::channel::<()>();
        runtime.spawn(async move { held.recv().is_err() });
        until("503", address);
        assert!(metrics().runtime_stalls.get() > stalls);
        drop(release);
        until("200", address);
        runtime.shutdown_background();
    }

    #[test]
    fn a_silent_client_holds_the_listener_only_for_a_moment() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let watchdog = Watchdog::start(
            runtime.handle(),
            Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        )
        .unwrap();
        let address = watchdog.liveness().unwrap();
        let silent = TcpStream::connect(address).unwrap();
        assert!(asked(address).starts_with("HTTP/1.1 200 "));
        drop(silent);
        runtime.shutdown_background();
    }
}
