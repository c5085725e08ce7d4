//! The primary of PostgreSQL is killed under load, and its synchronous standby takes over.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use serde_json::json;
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{System, eventually};
use testing::postgres::{Durability, Server};

use crate::clients::Clients;

/// Fewer than the clients order, so that the last units are fought for.
const STOCK: i64 = 300;
/// The promise of docs/operations.md. Less than a second is usual.
const RECOVERY: Duration = Duration::from_secs(10);

/// The link to the folder of the server in use. A DNS name or a virtual address has this role in production.
struct Switch(std::path::PathBuf);

impl Switch {
    fn to(&self, folder: &Path) {
        let new = self.0.with_extension("new");
        symlink(folder, &new).and_then(|()| fs::rename(&new, &self.0)).expect("a writable folder");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn loses_no_order_when_the_primary_is_killed_and_the_standby_is_promoted() {
    let Some(mut primary) = Server::start(Durability::Full) else { return };
    let databases = Databases::create(&primary).await;
    let standby = primary.start_standby();
    let switch = Switch(env::temp_dir().join(format!("primary-{}", process::id())));
    switch.to(primary.folder());
    let databases = databases.behind(primary.folder(), &switch.0);
    let system =
        System::start_as(|launch| databases.configure(launch)).await.unwrap_or_else(|reason| panic!("{reason}"));
    system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    system.add_product("Lamp", 19.99, STOCK).await;

    let clients = Clients::start(&system, "failover");
    let placed = || clients.confirmed().len();
    assert!(eventually(true, async || placed() > 50).await, "orders are placed before the failover");

    primary.kill();
    standby.promote();
    let before = placed(); // the services still look for the dead server
    switch.to(standby.folder());
    let promoted = Instant::now();
    while placed() == before && promoted.elapsed() < RECOVERY {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recovered = promoted.elapsed();
    println!("failover: orders again {recovered:.1?} after the promotion, {before} orders before it");
    assert!(placed() > before, "no order is placed after the failover");
    let tried = clients.attempts();
    while (placed() as i64) < STOCK && clients.attempts() < tried + 1000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let confirmed = clients.stop().await;
    for order in confirmed.values() {
        let path = format!("/orders/{}", order["id"].as_str().expect("an id"));
        assert_eq!(system.orders.get(&path).await.expect(200).json(), *order, "a confirmed order is kept");
    }
    let snapshot = async || DatabaseSnapshot::read_from(&databases).await.expect("the databases answer");
    let violations = async || snapshot().await.violations(&[(1, STOCK)].into());
    assert_eq!(eventually(vec![], violations).await, Vec::<String>::new());
    let mut by_key = BTreeMap::new();
    for row in snapshot().await.orders {
        *by_key.entry(row.key.expect("each order has a key")).or_insert(0) += 1;
    }
    assert!(by_key.values().all(|orders| *orders == 1), "no order is doubled: {by_key:?}");
    assert!(confirmed.keys().all(|key| by_key.contains_key(key)));
    for service in [&system.users, &system.products, &system.orders] {
        service.get("/readyz").await.expect(200); // the process that was started at the beginning
    }
}
