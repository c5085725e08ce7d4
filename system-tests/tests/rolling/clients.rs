//! The load under which services are replaced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use system_tests::load::Caller;
use system_tests::{Received, Sending, eventually};
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(20);

/// Clients who send at a steady pace until they are told to stop. None sends a request twice.
pub(crate) struct Clients {
    running: JoinSet<()>,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
}

/// What came of their requests.
#[derive(Default)]
pub(crate) struct Seen {
    served: AtomicUsize,
    placed: Mutex<Vec<Received>>,
    failed: Mutex<Vec<String>>,
}

impl Clients {
    pub(crate) fn none() -> Self {
        Self { running: JoinSet::new(), stop: Arc::default(), seen: Arc::default() }
    }

    /// One more, with a connection of its own. It asks for each request anew, with its number.
    pub(crate) fn add(&mut self, request: impl Fn(&Caller, usize) -> Sending + Send + 'static) {
        let (stop, seen) = (Arc::clone(&self.stop), Arc::clone(&self.seen));
        self.running.spawn(async move {
            let caller = Caller::default();
            let mut pace = time::interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                pace.tick().await;
                seen.note(request(&caller, number).try_send().await);
            }
        });
    }

    /// Until so many more were served.
    pub(crate) async fn served(&self, more: usize) {
        let wanted = self.seen.served.load(Ordering::Relaxed) + more;
        let enough = async || self.seen.served.load(Ordering::Relaxed) >= wanted || self.running.is_empty();
        assert!(eventually(true, enough).await, "the clients are served: {:#?}", self.seen.failed);
    }

    /// Stops them, and sees to it that no request failed. How many were served, and the answers to the orders that were
    /// placed.
    pub(crate) async fn stop(self) -> (usize, Vec<Received>) {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_all().await;
        let Seen { served, placed, failed } = &*self.seen;
        let failed = failed.lock().expect("nobody panics with it");
        assert!(failed.is_empty(), "{} of {served:?} requests failed: {failed:#?}", failed.len());
        (served.load(Ordering::Relaxed), placed.lock().expect("nobody panics with it").clone())
    }
}

impl Seen {
    fn note(&self, answer: Result<Received, String>) {
        match answer {
            Ok(received) if is_served(&received) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                if received.status == 201 {
                    self.placed.lock().expect("nobody panics with it").push(received);
                }
            }
            Ok(received) => self.failed.lock().expect("nobody panics with it").push(received.to_string()),
            Err(reason) => self.failed.lock().expect("nobody panics with it").push(reason),
        }
    }
}

/// There is no more stock than a product-service starts with, so a refusal for want of it is an answer too.
fn is_served(received: &Received) -> bool {
    received.status < 300 || received.status == 409 && received.text.contains("insufficient-stock")
}
