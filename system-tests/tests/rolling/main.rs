//! A service is replaced, and its clients notice nothing.

mod balanced;
mod clients;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, USERS, eventually, order};

use crate::clients::Clients;

/// Much longer than an end takes.
const SOON: Duration = Duration::from_secs(20);

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
        clients.add(move |caller, _| caller.request("GET", format!("{}/users/1", urls[ready.load(Ordering::Relaxed)])));
    }
    clients.served(100).await;

    going.signal(Signal::Terminate).await;
    let turned_away =
        async || going.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 503);
    assert!(eventually(true, turned_away).await);
    ready.store(1, Ordering::Relaxed);
    assert!(going.ends_within(SOON).await.success());
    clients.served(100).await;

    let (served, _) = clients.stop().await;
    println!("drain: {served} requests at 100 a second, none failed");
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
        clients.add(move |caller, _| caller.request("GET", url.clone()));
    }
    for _ in 0..2 {
        let url = format!("{}/orders", urls[2]);
        clients.add(move |caller, _| caller.request("POST", url.clone()).json(&order(1, 2, 1)));
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
    let (served, placed) = clients.stop().await;
    let placed = placed.len();
    println!("rolling restarts: fifteen under {served} requests, {placed} of them orders; none failed");
    assert!(placed >= 200, "orders are placed all the while, not only {placed}");
}
