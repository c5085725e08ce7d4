//! The services of one release are killed under load, and the other release finishes their orders.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{System, eventually};
use testing::postgres::{Durability, Server};

use crate::clients::Clients;

/// More than the clients order.
const STOCK: i64 = 1_000_000;

#[tokio::test]
async fn finishes_the_orders_of_a_killed_release() {
    let Some(previous) = env::var_os("PREVIOUS_BINARIES").map(PathBuf::from) else {
        let _ = writeln!(io::stderr(), "SKIPPED: the test of a killed release: PREVIOUS_BINARIES names no folder");
        return;
    };
    let Some(postgres) = Server::start(Durability::Full) else { return };
    let databases = Databases::create(&postgres).await;
    let system = System::start_as(|launch| databases.configure(launch).binaries(&previous)).await;
    let mut system = system.unwrap_or_else(|reason| panic!("{reason}"));
    system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    system.add_product("Lamp", 19.99, STOCK).await;
    let current = system_tests::build().expect("the services compile");

    // The previous release does not read the intents of this one, so this one is last.
    let clients = Clients::start(&system, "release");
    for next in [current, &previous, current] {
        let before = clients.confirmed().len();
        let enough = async || clients.confirmed().len() > before + 30;
        assert!(eventually(true, enough).await, "orders are placed");
        for service in [&mut system.orders, &mut system.products, &mut system.users] {
            service.kill().await;
            service.restart_from(next).await;
        }
    }
    let confirmed = clients.stop().await;

    let snapshot = async || DatabaseSnapshot::read_from(&databases).await.expect("the databases answer");
    let violations = async || snapshot().await.violations(&[(1, STOCK)].into());
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
    let stored = snapshot().await;
    let ids: Vec<_> = stored.orders.iter().map(|order| order.id.to_string()).collect();
    for order in confirmed.values() {
        assert!(ids.iter().any(|id| order["id"] == **id), "{order} is kept");
    }
    println!("killed releases: {} orders confirmed, {} stored", confirmed.len(), ids.len());
}
