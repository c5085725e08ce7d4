//! The load under which services are replaced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use system_tests::load::Client;
use system_tests::{Request, Response, eventually};
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

/// The time between two requests of a client.
const INTERVAL: Duration = Duration::from_millis(20);

/// Clients that send at a constant rate until they are stopped. None repeats a request.
pub(crate) struct Clients {
    running: JoinSet<()>,
    stop: Arc<AtomicBool>,
    results: Arc<Results>,
}

/// The results of their requests.
#[derive(Default)]
pub(crate) struct Results {
    served: AtomicUsize,
    placed: Mutex<Vec<Response>>,
    failed: Mutex<Vec<String>>,
}

impl Clients {
    pub(crate) fn none() -> Self {
        Self { running: JoinSet::new(), stop: Arc::default(), results: Arc::default() }
    }

    /// Adds a client with its own connection. `request` makes each request from its number.
    pub(crate) fn add(&mut self, request: impl Fn(&Client, usize) -> Request + Send + 'static) {
        let (stop, results) = (Arc::clone(&self.stop), Arc::clone(&self.results));
        self.running.spawn(async move {
            let caller = Client::default();
            let mut interval = time::interval(INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                interval.tick().await;
                results.note(request(&caller, number).try_send().await);
            }
        });
    }

    /// Waits until this many more requests are served.
    pub(crate) async fn served(&self, more: usize) {
        let wanted = self.results.served.load(Ordering::Relaxed) + more;
        let enough = async || self.results.served.load(Ordering::Relaxed) >= wanted || self.running.is_empty();
        assert!(eventually(true, enough).await, "the clients are served: {:#?}", self.results.failed);
    }

    /// Stops the clients and checks that no request failed. Returns the number of served requests, and the responses of
    /// placed orders.
    pub(crate) async fn stop(self) -> (usize, Vec<Response>) {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_all().await;
        let Results { served, placed, failed } = &*self.results;
        let failed = failed.lock().expect("no holder of the lock panics");
        assert!(failed.is_empty(), "{} of {served:?} requests failed: {failed:#?}", failed.len());
        (served.load(Ordering::Relaxed), placed.lock().expect("no holder of the lock panics").clone())
    }
}

impl Results {
    fn note(&self, answer: Result<Response, String>) {
        match answer {
            Ok(received) if is_served(&received) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                if received.status == 201 {
                    self.placed.lock().expect("no holder of the lock panics").push(received);
                }
            }
            Ok(received) => self.failed.lock().expect("no holder of the lock panics").push(received.to_string()),
            Err(reason) => self.failed.lock().expect("no holder of the lock panics").push(reason),
        }
    }
}

/// Returns whether the request succeeded. The seed stock is limited, so a 409 for missing stock counts as well.
fn is_served(received: &Response) -> bool {
    received.status < 300 || received.status == 409 && received.text.contains("insufficient-stock")
}
