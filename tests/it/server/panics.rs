//! A panic in a handler: the client gets an error, the log has the panic, the server continues.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use starlift::store::{self, Store};
use tracing_subscriber::fmt::MakeWriter;

use super::Stage;
use crate::support::bucket::{Bucket, Fate};

/// The log output of this thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_panic_is_a_500_and_a_line_in_the_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let is_broken = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_broken);
    let bucket = Bucket::new().broken(move |_| {
        assert!(!switch.load(Ordering::SeqCst), "broken store");
        Fate::Pass
    });
    let store = Store::over(Arc::new(bucket), &store::Config::default());
    let stage = Stage::over(store, |config| config.max_requests = 1).await;
    let image = stage.push_app();
    is_broken.store(true, Ordering::SeqCst);
    let path = format!("/v2/local/app/manifests/{}", image.digest());
    let answer = stage.get(&path).await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "UNKNOWN"));
    assert!(
        !String::from_utf8_lossy(&answer.body).contains("broken store"),
        "the message of the panic is not sent"
    );
    let request_id = answer.header("x-request-id");
    let logged = String::from_utf8(log.0.lock().clone()).unwrap();
    let is_logged =
        |line: &&str| line.contains("a handler panicked") && line.contains("broken store");
    let line = logged
        .lines()
        .find(is_logged)
        .unwrap_or_else(|| panic!("{logged}"));
    assert!(line.contains(request_id), "{line}");
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(
        stage.get(&path).await.body,
        image.bytes,
        "the next request is answered, so the only place is free"
    );
}
