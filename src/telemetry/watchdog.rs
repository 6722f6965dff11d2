//! A thread that notices when the runtime is late, and says so where the runtime cannot.
//!
//! ```text
//! a task of the runtime ─ beat, each second ─▶ watchdog thread ─▶ metrics, one log line, systemd (WATCHDOG=1)
//!                                          └▶ liveness thread ─▶ 200, or 503 when the beat is far too late
//! ```
//! Who probes liveness over the server's own port learns nothing while the runtime hangs, and something else once its
//! queue is full: this listener and its thread are apart from all that.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::metrics::metrics;

/// How often the runtime shows that it runs.
const BEAT: Duration = Duration::from_secs(1);
/// What is worth a line in the log: a busy machine delays a task by less.
const NOTICED: Duration = Duration::from_secs(5);
/// What no work of ours may cause, and a restart may mend.
const DEAD: Duration = Duration::from_secs(20);
/// How long a client of the liveness listener may take for its request and our answer. Clients are served one by one.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most bytes of a request that are read.
const MAX_REQUEST: usize = 4096;

/// How often it is looked, and what counts as late.
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

/// Watches a runtime for as long as it is kept.
#[derive(Debug)]
pub struct Watchdog {
    /// Its threads end some time after this does.
    _pulse: Arc<Pulse>,
    liveness: Option<SocketAddr>,
}

/// When the runtime last showed that it runs.
#[derive(Debug)]
struct Pulse {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
    pace: Pace,
}

impl Watchdog {
    /// Watches `runtime`; who asks on `liveness` is told whether it runs.
    ///
    /// # Errors
    /// When the address cannot be listened on, or threads cannot be started.
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

    /// Where liveness is told.
    pub fn liveness(&self) -> Option<SocketAddr> {
        self.liveness
    }
}

impl Pulse {
    fn beat(&self) {
        self.last
            .store(milliseconds(self.since.elapsed()), Ordering::Relaxed);
    }

    /// How much later than it should be the next beat is.
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
        // Once for each time.
        if late >= pace.noticed && !is_noticed {
            metrics().runtime_stalls.inc();
            tracing::warn!(?late, "the runtime is late: something holds its threads");
        }
        is_noticed = late >= pace.noticed;
        if systemd.is_some() && late < pace.dead {
            let _unheard = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        // systemd recommends half of its interval at the most.
        thread::sleep(systemd.map_or(pace.beat, |interval| pace.beat.min(interval / 2)));
    }
}

fn answer(listener: &TcpListener, pulse: &Weak<Pulse>) {
    while let Ok((client, _)) = accepted(listener) {
        let Some(pulse) = pulse.upgrade() else { return };
        // A client that goes away or takes its time gets nothing.
        let _unheard = tell(client, pulse.lateness(), pulse.pace.dead);
    }
}

/// The next client. What goes wrong with one is not the listener's end.
fn accepted(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(_) => thread::sleep(PATIENCE),
            accepted => return accepted,
        }
    }
}

fn tell(mut client: TcpStream, late: Duration, dead: Duration) -> io::Result<()> {
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
        while !asked(address).starts_with(&wanted) {
            thread::sleep(QUICK.beat);
        }
    }

    #[test]
    fn a_runtime_that_is_held_is_told_dead_and_alive_again_by_a_thread_of_its_own() {
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
    fn a_client_that_says_nothing_holds_the_listener_for_a_moment_only() {
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
