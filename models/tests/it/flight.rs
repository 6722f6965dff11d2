//! `src/flight.rs`: whatever becomes of a computation and of those who wait for it, its key is free afterwards and nobody
//! waits for ever.

use std::collections::HashMap;

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::{BoxFuture, Shared};

use crate::ORDERS;

const KEY: u8 = 1;

type Running = Shared<BoxFuture<'static, Option<u32>>>;

#[derive(Clone, Default)]
struct Flight {
    running: Arc<Mutex<HashMap<u8, Running>>>,
    /// How many computations run: more than one for a key is a fault.
    computing: Arc<Mutex<u32>>,
}

/// How a computation ends.
#[derive(Clone, Copy)]
enum End {
    Value(u32),
    /// By a panic, or because the runtime drops its task.
    Lost,
}

/// Takes the key off the table when the computation ends.
struct Landing {
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        *self.flight.computing.lock().unwrap() -= 1;
        self.flight.running.lock().unwrap().remove(&KEY);
    }
}

impl Flight {
    fn join(&self, end: End) -> Running {
        let mut running = self.running.lock().unwrap();
        if let Some(shared) = running.get(&KEY) {
            return shared.clone();
        }
        let (done, outcome) = oneshot::channel();
        let shared = outcome.map(Result::ok).boxed().shared();
        running.insert(KEY, shared.clone());
        *self.computing.lock().unwrap() += 1;
        let landing = Landing {
            flight: self.clone(),
        };
        drop(running);
        let _detached = spawn(async move {
            assert_eq!(
                *landing.flight.computing.lock().unwrap(),
                1,
                "two computations of one key"
            );
            yield_now().await;
            let End::Value(value) = end else { return };
            drop(landing);
            let _unheard = done.send(value);
        });
        shared
    }
}

fn caller(flight: &Flight, end: End) -> JoinHandle<Option<u32>> {
    let flight = flight.clone();
    spawn(async move { flight.join(end).await })
}

#[test]
fn whoever_leaves_or_fails_leaves_no_key_behind() {
    shuttle::check_random(
        || {
            block_on(async {
                let flight = Flight::default();
                let callers = [
                    caller(&flight, End::Value(1)),
                    caller(&flight, End::Lost),
                    caller(&flight, End::Value(3)),
                ];
                // This one goes away at once; its computation, if it began one, goes on.
                drop(flight.join(End::Value(4)));
                for caller in callers {
                    let outcome = caller.await.unwrap();
                    assert!(matches!(outcome, None | Some(1 | 3 | 4)), "{outcome:?}");
                }
                while !flight.running.lock().unwrap().is_empty() {
                    yield_now().await;
                }
                assert_eq!(
                    flight.join(End::Value(5)).await,
                    Some(5),
                    "the next caller starts anew"
                );
            });
        },
        ORDERS,
    );
}
