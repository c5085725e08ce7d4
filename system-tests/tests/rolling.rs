//! A service is replaced, and its clients notice nothing.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use system_tests::load::Caller;
use system_tests::{Launch, ORDERS, PRODUCTS, Received, Service, Signal, USERS, eventually, order};
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};

/// Much longer than an end takes.
const SOON: Duration = Duration::from_secs(20);
/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(20);

/// Clients who send at a steady pace until they are told to stop. None sends a request twice.
struct Clients {
    running: JoinSet<()>,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    placed: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl Clients {
    fn none() -> Self {
        let (stop, served, placed, failed) = Default::default();
        Self { running: JoinSet::new(), stop, served, placed, failed }
    }

    /// One more, with a connection of its own. `url` is asked anew before each request.
    fn add(&mut self, method: &'static str, json: Option<Value>, url: impl Fn() -> String + Send + 'static) {
        let (stop, served, failed) = (Arc::clone(&self.stop), Arc::clone(&self.served), Arc::clone(&self.failed));
        let placed = Arc::clone(&self.placed);
        self.running.spawn(async move {
            let caller = Caller::default();
            let mut pace = time::interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let request = caller.request(method, url());
                let request = if let Some(json) = &json { request.json(json) } else { request };
                let reason = match request.try_send().await {
                    Ok(received) if is_served(&received) => {
                        served.fetch_add(1, Ordering::Relaxed);
                        placed.fetch_add(usize::from(received.status == 201), Ordering::Relaxed);
                        continue;
                    }
                    Ok(received) => received.to_string(),
                    Err(reason) => reason,
                };
                failed.lock().expect("nobody panics with it").push(reason);
            }
        });
    }

    /// Until so many more were served.
    async fn served(&self, more: usize) {
        let wanted = self.served.load(Ordering::Relaxed) + more;
        let enough = async || self.served.load(Ordering::Relaxed) >= wanted || self.running.is_empty();
        assert!(eventually(true, enough).await, "the clients are served: {:#?}", self.failed);
    }

    /// Stops them. How many requests were served, and what became of the others.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_all().await;
        (self.served.load(Ordering::Relaxed), std::mem::take(&mut *self.failed.lock().expect("nobody panics with it")))
    }
}

/// There is no more stock than a product-service starts with, so a refusal for want of it is an answer too.
fn is_served(received: &Received) -> bool {
    received.status < 300 || received.status == 409 && received.text.contains("insufficient-stock")
}

/// A load balancer of two replicas, as small as can be: it asks for `/readyz`, and sends to one that is ready.
#[tokio::test]
async fn who_asks_for_readiness_sees_no_failure_when_a_replica_goes() {
    let replica = async || Service::start(Launch::of(USERS)).await.expect("user-service starts");
    let (mut going, staying) = (replica().await, replica().await);
    let urls = [going.url(), staying.url()];
    let ready = Arc::new(AtomicUsize::new(0));
    let mut clients = Clients::none();
    for _ in 0..2 {
        let (urls, ready) = (urls.clone(), Arc::clone(&ready));
        clients.add("GET", None, move || format!("{}/users/1", urls[ready.load(Ordering::Relaxed)]));
    }
    clients.served(100).await;

    going.signal(Signal::Terminate).await;
    let turned_away =
        async || going.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 503);
    assert!(eventually(true, turned_away).await);
    ready.store(1, Ordering::Relaxed);
    assert!(going.ends_within(SOON).await.success());
    clients.served(100).await;

    let (served, failed) = clients.stop().await;
    println!("drain: {served} requests at 100 a second, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The next process has the same socket, and accepts before the last one goes.
#[tokio::test]
async fn five_rolling_restarts_of_all_three_fail_no_request() {
    let socket = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let [users, products, orders] = [socket(), socket(), socket()];
    let url = |socket: &TcpListener| format!("http://{}", socket.local_addr().expect("it is bound"));
    let urls = [url(&users), url(&products), url(&orders)];
    let known = [("USER_SERVICE_URL", &urls[0]), ("PRODUCT_SERVICE_URL", &urls[1])];
    let launches = [(USERS, users), (PRODUCTS, products), (ORDERS, orders)].map(|(service, socket)| {
        let launch = Launch::of(service).socket(socket).env("RUST_LOG", "warn").env("DRAIN_SECONDS", 1);
        known.iter().fold(launch, |launch, (variable, url)| launch.env(variable, url))
    });
    let start =
        async |launch: &Launch| Service::start(launch.clone()).await.unwrap_or_else(|reason| panic!("{reason}"));
    let mut running = [start(&launches[0]).await, start(&launches[1]).await, start(&launches[2]).await];

    let mut clients = Clients::none();
    for (base, path) in [(0, "/users/1"), (1, "/products/1"), (1, "/users"), (2, "/orders")] {
        let url = format!("{}{path}", urls[base]);
        clients.add("GET", None, move || url.clone());
    }
    for _ in 0..2 {
        let url = format!("{}/orders", urls[2]);
        clients.add("POST", Some(order(1, 2, 1)), move || url.clone());
    }

    for _round in 0..5 {
        for (launch, service) in launches.iter().zip(&mut running) {
            clients.served(50).await;
            let next = start(launch).await;
            service.signal(Signal::Terminate).await;
            assert!(service.ends_within(SOON).await.success());
            *service = next;
        }
    }
    clients.served(50).await;
    let placed = clients.placed.load(Ordering::Relaxed);
    let (served, failed) = clients.stop().await;
    println!("rolling restarts: fifteen under {served} requests, {placed} of them orders; {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(placed >= 200, "orders are placed all the while, not only {placed}");
}
