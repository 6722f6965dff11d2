//! Waits for a state that another task or process brings about. Nothing else in the tests polls.

use std::time::{Duration, Instant};

/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Long enough for every step on a busy machine: only a test that fails waits for it.
const LIMIT: Duration = Duration::from_secs(120);

/// Blocks until `holds` returns true. Fails the test if that takes too long.
pub(crate) fn eventually(state: &str, mut holds: impl FnMut() -> bool) {
    let held = within(LIMIT, PAUSE, || holds().then_some(()));
    assert!(held.is_some(), "not within {LIMIT:?}: {state}");
}

/// Blocks until `look`, called once in every `pause`, returns a value. Returns `None` if it returns
/// none within `limit`.
pub(crate) fn within<T>(
    limit: Duration,
    pause: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        let found = look();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(pause);
    }
}

/// Waits until `holds` returns true. Fails the test if that takes too long.
pub(crate) async fn eventually_async(state: &str, mut holds: impl AsyncFnMut() -> bool) {
    eventually_some(state, async || holds().await.then_some(())).await;
}

/// Waits until `look` returns a value, and returns it. Fails the test if that takes too long.
pub(crate) async fn eventually_some<T>(state: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, looking)
        .await
        .unwrap_or_else(|_elapsed| panic!("not within {LIMIT:?}: {state}"))
}
