//! Two replicas of each service over PostgreSQL, behind HAProxy as `deploy/haproxy.cfg` has it, replaced one by one.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{Balancer, Launch, ORDERS, PRODUCTS, Service, Signal, USERS, eventually, order};
use testing::postgres::{Durability, Server};

use crate::SOON;
use crate::clients::Clients;

/// More than can be ordered in the time.
const STOCK: i64 = 1_000_000;
/// Products that are ordered: on a single one all orders would wait for each other.
const PRODUCTS_SOLD: i64 = 4;

#[tokio::test]
async fn behind_a_load_balancer_every_replica_is_replaced_under_load_and_no_request_fails() {
    let Some(postgres) = Server::start(Durability::Full) else { return };
    let databases = Databases::create(&postgres).await;
    let Some(mut balancer) = Balancer::prepare() else { return };
    let mut replicas = start_two_of_each(&databases, &balancer).await;
    balancer.start(&replicas).await;
    balancer.request(USERS, "POST", "/users").json(&json!({"name": "Eve"})).send().await.expect(201);
    for n in 1..=PRODUCTS_SOLD {
        let lamp = json!({"name": format!("Lamp {n}"), "price": 19.99, "stock": STOCK});
        balancer.request(PRODUCTS, "POST", "/products").json(&lamp).send().await.expect(201);
    }

    let clients = clients_of(&balancer);
    for (n, replica) in replicas.iter_mut().enumerate() {
        clients.served(100).await;
        replica.signal(Signal::Terminate).await;
        assert!(replica.ends_within(SOON).await.success());
        balancer.sees(replica.name(), [n % 2 != 0, n % 2 == 0]).await;
        replica.restart().await;
        balancer.sees(replica.name(), [true, true]).await;
    }
    clients.served(100).await;
    let (served, placed) = clients.stop().await;
    println!("behind a balancer: six restarts under {served} requests, {} of them orders; none failed", placed.len());
    assert!(placed.len() >= 200, "orders are placed all the while, not only {}", placed.len());

    let promised: BTreeSet<_> = placed.iter().map(|answer| answer.json()["id"].to_string()).collect();
    assert_eq!(promised.len(), placed.len(), "each key had an order of its own");
    let kept = all_orders(&balancer).await;
    assert_eq!(kept.len(), placed.len(), "each is there once, and no other");
    assert_eq!(kept.iter().map(|order| order["id"].to_string()).collect::<BTreeSet<_>>(), promised);
    let initial = (1..=PRODUCTS_SOLD).map(|product| (product, STOCK)).collect();
    let violations = async || {
        let (orders, products) = (databases.connect(ORDERS).await, databases.connect(PRODUCTS).await);
        let books =
            DatabaseSnapshot::read_from(&mut orders.expect("it answers"), &mut products.expect("it answers")).await;
        books.expect("the databases answer").violations(&initial)
    };
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
}

/// In the balancer's order, the two replicas of a service beside each other, over one database.
async fn start_two_of_each(databases: &Databases, balancer: &Balancer) -> Vec<Service> {
    let mut replicas = Vec::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let launch = databases.under(Launch::of(service));
        let launch = launch.env("USER_SERVICE_URL", balancer.url(USERS));
        let launch = launch.env("PRODUCT_SERVICE_URL", balancer.url(PRODUCTS)).env("RUST_LOG", "warn");
        for _ in 0..2 {
            replicas.push(Service::start(launch.clone()).await.unwrap_or_else(|reason| panic!("{reason}")));
        }
    }
    replicas
}

/// Who read, list and order without a pause, each order with a key of its own.
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
        let url = format!("{}{path}", balancer.url(service));
        clients.add(move |caller, _| caller.request("GET", url.clone()));
    }
    for client in 0..4 {
        let url = format!("{}/orders", balancer.url(ORDERS));
        clients.add(move |caller, number| {
            let wanted = order(1, 1 + (client + number as i64) % PRODUCTS_SOLD, 1);
            let key = format!("{client}-{number}");
            caller.request("POST", url.clone()).header("idempotency-key", &key).json(&wanted)
        });
    }
    clients
}

/// Page by page.
async fn all_orders(balancer: &Balancer) -> Vec<Value> {
    let mut orders: Vec<Value> = Vec::new();
    loop {
        let after = orders
            .last()
            .map_or(String::new(), |order| format!("&after={}", order["id"].as_str().expect("an id is a text")));
        let page = balancer.request(ORDERS, "GET", &format!("/orders?limit=1000{after}")).send().await.expect(200);
        let Value::Array(mut page) = page.json() else { panic!("{page}") };
        if page.is_empty() {
            return orders;
        }
        orders.append(&mut page);
    }
}
