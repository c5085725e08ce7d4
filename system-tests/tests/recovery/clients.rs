//! Clients that order while PostgreSQL fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use system_tests::{Request, System, order};
use tokio::task::JoinSet;

const CLIENTS: usize = 4;

/// Clients that order one unit after the other. A client that gets no answer, or a 503, repeats the request with the same key.
#[derive(Default)]
pub(crate) struct Clients {
    running: JoinSet<()>,
    results: Arc<Results>,
}

#[derive(Default)]
struct Results {
    stop: AtomicBool,
    attempts: AtomicUsize,
    /// The orders that were confirmed, by idempotency key.
    confirmed: Mutex<BTreeMap<String, Value>>,
}

impl Clients {
    /// Starts clients that order product 1. The name makes their keys unique.
    pub(crate) fn start(system: &System, name: &'static str) -> Self {
        let mut clients = Self::default();
        for client in 0..CLIENTS {
            let (send, results) = (system.orders.requests(), Arc::clone(&clients.results));
            clients.running.spawn(async move { results.order(send, format!("{name}-{client}")).await });
        }
        clients
    }

    /// Returns the number of requests so far.
    pub(crate) fn attempts(&self) -> usize {
        self.results.attempts.load(Ordering::Relaxed)
    }

    /// Returns the orders that were confirmed so far, by idempotency key.
    pub(crate) fn confirmed(&self) -> BTreeMap<String, Value> {
        self.results.confirmed.lock().expect("no holder panics").clone()
    }

    /// Stops the clients, and returns the orders that were confirmed, by idempotency key.
    pub(crate) async fn stop(self) -> BTreeMap<String, Value> {
        self.results.stop.store(true, Ordering::Relaxed);
        let confirmed = Arc::clone(&self.results);
        self.running.join_all().await;
        confirmed.confirmed.lock().expect("no holder panics").clone()
    }
}

impl Results {
    async fn order(&self, send: impl Fn(&str, &str) -> Request, name: String) {
        for number in 0.. {
            let key = format!("{name}-{number}");
            loop {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                self.attempts.fetch_add(1, Ordering::Relaxed);
                let request = send("POST", "/orders").header("idempotency-key", &key).json(&order(1, 1, 1));
                match request.try_send().await {
                    Ok(answer) if answer.status == 201 => {
                        self.confirmed.lock().expect("no holder panics").insert(key, answer.json());
                        break;
                    }
                    Ok(answer) if answer.text.contains("insufficient-stock") => break,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }
}
