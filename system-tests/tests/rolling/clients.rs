//! The load under which services are replaced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::load::Client;
use system_tests::{Request, Response, eventually};
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

/// The time between two requests of a client.
const INTERVAL: Duration = Duration::from_millis(20);
const LOCKED: &str = "no holder of the lock panics";

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
                let answer = results.note(request(&caller, number).try_send().await);
                results.placed().extend(answer.filter(|answer| answer.status == 201));
            }
        });
    }

    /// Adds a client that places an order, reads it, and repeats an earlier request with its key. It cancels each third order.
    pub(crate) fn add_customer(
        &mut self,
        orders: String,
        name: String,
        body: impl Fn(usize) -> Value + Send + Sync + 'static,
    ) {
        let (stop, results) = (Arc::clone(&self.stop), Arc::clone(&self.results));
        self.running.spawn(async move {
            let (caller, mut ids) = (Client::default(), Vec::new());
            let place = async |number: usize| {
                let request =
                    caller.request("POST", orders.clone()).header("idempotency-key", &format!("{name}-{number}"));
                results.note(request.json(&body(number)).try_send().await).filter(|answer| answer.status == 201)
            };
            while !stop.load(Ordering::Relaxed) {
                time::sleep(INTERVAL).await;
                let Some(placed) = place(ids.len()).await else { return };
                let id = placed.json()["id"].as_str().unwrap_or_default().to_owned();
                results.placed().push(placed);
                let order = format!("{orders}/{id}");
                if ids.len() % 3 == 0 {
                    let cancelled = json!({"status": "cancelled"});
                    results.note(caller.request("PATCH", order.clone()).json(&cancelled).try_send().await);
                }
                results.note(caller.request("GET", order).try_send().await);
                ids.push(id);
                let earlier = rand::random_range(0..ids.len());
                let Some(repeated) = place(earlier).await else { return };
                if repeated.json()["id"] != *ids[earlier] {
                    results
                        .failed
                        .lock()
                        .expect(LOCKED)
                        .push(format!("{name}-{earlier} was {}: {repeated}", ids[earlier]));
                }
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
        let (served, failed) = (&self.results.served, self.results.failed.lock().expect(LOCKED));
        assert!(failed.is_empty(), "{} of {served:?} requests failed: {failed:#?}", failed.len());
        (served.load(Ordering::Relaxed), self.results.placed().clone())
    }
}

impl Results {
    /// Counts the request. Returns the response if it succeeded.
    fn note(&self, answer: Result<Response, String>) -> Option<Response> {
        let failure = match answer {
            Ok(received) if is_served(&received) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                return Some(received);
            }
            Ok(received) => received.to_string(),
            Err(reason) => reason,
        };
        self.failed.lock().expect(LOCKED).push(failure);
        None
    }

    fn placed(&self) -> MutexGuard<'_, Vec<Response>> {
        self.placed.lock().expect(LOCKED)
    }
}

/// Returns whether the request succeeded. The seed stock is limited, so a 409 for missing stock counts as well.
fn is_served(received: &Response) -> bool {
    received.status < 300 || received.status == 409 && received.text.contains("insufficient-stock")
}
