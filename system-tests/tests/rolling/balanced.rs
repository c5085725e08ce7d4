//! Two replicas of each service over PostgreSQL behind HAProxy with `deploy/haproxy.cfg`, replaced one by one.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{Balancer, Launch, ORDERS, PRODUCTS, Service, Signal, USERS, eventually, order};
use testing::postgres::{Durability, Server};

use crate::SOON;
use crate::clients::Clients;

/// More than the test can order.
const STOCK: i64 = 1_000_000;
/// The products that are ordered: with a single one, all orders would wait for its row.
const PRODUCTS_SOLD: i64 = 4;

#[tokio::test]
async fn fails_no_request_when_every_replica_behind_a_load_balancer_is_replaced() {
    let Some((_postgres, databases, mut balancer)) = prepare().await else { return };
    let mut replicas = start_two_of_each(&databases, &balancer, None).await;
    balancer.start(&replicas).await;
    add_rows(&balancer).await;
    let clients = clients_of(&balancer);
    for n in 0..replicas.len() {
        replace(&mut replicas, n, None, &clients, &balancer).await;
    }
    expect_no_failure(clients, &databases, &balancer).await;
}

/// Replaces all replicas of the previous release by those of this one, and then back again.
#[tokio::test]
async fn fails_no_request_while_a_release_is_upgraded_and_rolled_back() {
    let Some(previous) = env::var_os("PREVIOUS_BINARIES").map(PathBuf::from) else {
        let _ = writeln!(io::stderr(), "SKIPPED: the test of an upgrade: PREVIOUS_BINARIES names no folder");
        return;
    };
    let Some((_postgres, databases, mut balancer)) = prepare().await else { return };
    let mut replicas = start_two_of_each(&databases, &balancer, Some(&previous)).await;
    let current = env::var_os("SERVICE_BINARIES").map(PathBuf::from).expect("the folder of this release");
    balancer.start(&replicas).await;
    add_rows(&balancer).await;
    let clients = clients_of(&balancer);
    // The callers first, then the called ones; and the other way round.
    for (order, binaries) in
        [([4, 5, 2, 3, 0, 1], &current), ([4, 5, 2, 3, 0, 1], &previous), ([0, 1, 2, 3, 4, 5], &current)]
    {
        for n in order {
            replace(&mut replicas, n, Some(binaries), &clients, &balancer).await;
        }
    }
    expect_no_failure(clients, &databases, &balancer).await;
}

/// Returns the databases and the balancer, or `None` without PostgreSQL or HAProxy.
async fn prepare() -> Option<(Server, Databases, Balancer)> {
    let postgres = Server::start(Durability::Full)?;
    let databases = Databases::create(&postgres).await;
    Some((postgres, databases, Balancer::prepare()?))
}

async fn add_rows(balancer: &Balancer) {
    balancer.request(USERS, "POST", "/users").json(&json!({"name": "Eve"})).send().await.expect(201);
    for n in 1..=PRODUCTS_SOLD {
        let lamp = json!({"name": format!("Lamp {n}"), "price": 19.99, "stock": STOCK});
        balancer.request(PRODUCTS, "POST", "/products").json(&lamp).send().await.expect(201);
    }
}

/// Ends one replica under load, and starts it again, from these binaries if they are given.
async fn replace(
    replicas: &mut [Service],
    n: usize,
    binaries: Option<&PathBuf>,
    clients: &Clients,
    balancer: &Balancer,
) {
    let replica = &mut replicas[n];
    clients.served(100).await;
    replica.signal(Signal::Terminate).await;
    assert!(replica.ends_within(SOON).await.success());
    balancer.wait_for_replicas(replica.name(), [!n.is_multiple_of(2), n.is_multiple_of(2)]).await;
    match binaries {
        Some(binaries) => replica.restart_from(binaries).await,
        None => replica.restart().await,
    }
    balancer.wait_for_replicas(replica.name(), [true, true]).await;
}

/// Stops the clients, and checks that no request failed and that each order is stored once.
async fn expect_no_failure(clients: Clients, databases: &Databases, balancer: &Balancer) {
    clients.served(100).await;
    let (served, placed) = clients.stop().await;
    println!("behind a balancer: restarts under {served} requests, {} of them orders; none failed", placed.len());
    assert!(placed.len() >= 200, "orders are placed throughout, not only {}", placed.len());

    let placed_ids: BTreeSet<_> = placed.iter().map(|answer| answer.json()["id"].to_string()).collect();
    assert_eq!(placed_ids.len(), placed.len(), "each key had its own order");
    let stored = all_orders(balancer).await;
    assert_eq!(stored.len(), placed.len(), "each order is stored once, and no other");
    assert_eq!(stored.iter().map(|order| order["id"].to_string()).collect::<BTreeSet<_>>(), placed_ids);
    let initial = (1..=PRODUCTS_SOLD).map(|product| (product, STOCK)).collect();
    let violations = async || {
        let (orders, products) = (databases.connect(ORDERS).await, databases.connect(PRODUCTS).await);
        let snapshot =
            DatabaseSnapshot::read_from(&mut orders.expect("it answers"), &mut products.expect("it answers")).await;
        snapshot.expect("the databases answer").violations(&initial)
    };
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
}

/// Starts two replicas of each service over one database, in the order of the balancer.
async fn start_two_of_each(databases: &Databases, balancer: &Balancer, binaries: Option<&PathBuf>) -> Vec<Service> {
    let mut replicas = Vec::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let launch = databases.configure(Launch::of(service));
        let launch = launch.env("USER_SERVICE_URL", balancer.url(USERS));
        let launch = launch.env("PRODUCT_SERVICE_URL", balancer.url(PRODUCTS)).env("RUST_LOG", "warn");
        let launch = binaries.into_iter().fold(launch, |launch, folder| launch.binaries(folder));
        for _ in 0..2 {
            replicas.push(Service::start(launch.clone()).await.unwrap_or_else(|reason| panic!("{reason}")));
        }
    }
    replicas
}

/// Starts clients that read, list and order. Each order has its own key.
///
/// They use the gateway, except for the list of users that product-service passes on: there the gateway leads to user-service.
fn clients_of(balancer: &Balancer) -> Clients {
    let mut clients = Clients::none();
    let reads = [
        (USERS, "/users/1"),
        (PRODUCTS, "/products/1"),
        (PRODUCTS, "/products"),
        (PRODUCTS, "/users"),
        (ORDERS, "/orders"),
    ];
    for (service, path) in reads {
        let through_products = (service, path) == (PRODUCTS, "/users");
        let base = if through_products { balancer.url(service) } else { balancer.gateway() };
        let url = format!("{base}{path}");
        clients.add(move |caller, _| caller.request("GET", url.clone()));
    }
    for client in 0..4 {
        let url = format!("{}/orders", balancer.gateway());
        clients.add(move |caller, number| {
            let body = order(1, 1 + (client + number as i64) % PRODUCTS_SOLD, 1);
            let key = format!("{client}-{number}");
            caller.request("POST", url.clone()).header("idempotency-key", &key).json(&body)
        });
    }
    clients
}

/// Returns all orders, page by page.
async fn all_orders(balancer: &Balancer) -> Vec<Value> {
    let mut orders: Vec<Value> = Vec::new();
    loop {
        let after = orders
            .last()
            .map_or(String::new(), |order| format!("&after={}", order["id"].as_str().expect("an id is a string")));
        let page = balancer.request(ORDERS, "GET", &format!("/orders?limit=1000{after}")).send().await.expect(200);
        let Value::Array(mut page) = page.json() else { panic!("{page}") };
        if page.is_empty() {
            return orders;
        }
        orders.append(&mut page);
    }
}
