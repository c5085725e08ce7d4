//! Services are replaced while clients send requests, and no request fails.

mod balanced;
mod clients;
mod gateway;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, USERS, eventually, order};

use crate::clients::Clients;

/// Much longer than a shutdown takes.
const SOON: Duration = Duration::from_secs(20);

/// A minimal load balancer: it checks `/readyz` and sends to a ready replica.
#[tokio::test]
async fn fails_no_request_when_a_replica_drains_behind_readiness_checks() {
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
    let is_draining =
        async || going.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 503);
    assert!(eventually(true, is_draining).await);
    ready.store(1, Ordering::Relaxed);
    assert!(going.ends_within(SOON).await.success());
    clients.served(100).await;

    let (served, _) = clients.stop().await;
    println!("drain: {served} requests at 100 per second, none failed");
}

/// The new process has the same socket and accepts before the old one ends.
#[tokio::test]
async fn fails_no_request_in_five_rolling_restarts_of_all_three() {
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
    assert!(placed >= 200, "orders are placed throughout, not only {placed}");
}
