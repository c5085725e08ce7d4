//! The primary of PostgreSQL is killed under load, and its synchronous standby takes over.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use serde_json::{Value, json};
use system_tests::durable::Databases;
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{ORDERS, PRODUCTS, System, eventually, order};
use testing::postgres::{Durability, Server};

/// Fewer than the clients order, so that the last units are fought for.
const STOCK: i64 = 300;
const CLIENTS: usize = 4;
/// The promise is ten seconds. On a busy machine the processes may get no processor for a while.
const RECOVERY: Duration = Duration::from_secs(30);

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

/// The orders that were confirmed, by idempotency key.
type Confirmed = Arc<Mutex<BTreeMap<String, Value>>>;

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

    let (confirmed, stop, attempts) =
        (Confirmed::default(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..CLIENTS).map(|client| {
        let (send, confirmed) = (system.orders.requests(), Arc::clone(&confirmed));
        let (stop, attempts) = (Arc::clone(&stop), Arc::clone(&attempts));
        tokio::spawn(async move {
            for number in 0.. {
                // As a client does that gets no answer or a 503: it repeats the request with the same key.
                let key = format!("{client}-{number}");
                loop {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    attempts.fetch_add(1, Ordering::Relaxed);
                    let request = send("POST", "/orders").header("idempotency-key", &key).json(&order(1, 1, 1));
                    match request.try_send().await {
                        Ok(answer) if answer.status == 201 => {
                            confirmed.lock().expect("no holder panics").insert(key, answer.json());
                            break;
                        }
                        Ok(answer) if answer.text.contains("insufficient-stock") => break,
                        _ => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let placed = || confirmed.lock().expect("no holder panics").len();
    assert!(eventually(true, async || placed() > 50).await, "orders are placed before the failover");

    primary.kill();
    let before = placed();
    standby.promote();
    switch.to(standby.folder());
    let promoted = Instant::now();
    while placed() == before && promoted.elapsed() < RECOVERY {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recovered = promoted.elapsed();
    println!("failover: orders again {recovered:.1?} after the promotion, {before} orders before it");
    assert!(placed() > before, "no order is placed after the failover");
    let tried = attempts.load(Ordering::Relaxed);
    assert!(
        eventually(true, async || placed() as i64 == STOCK || attempts.load(Ordering::Relaxed) > tried + 1000).await
    );
    stop.store(true, Ordering::Relaxed);
    futures_util::future::join_all(clients).await;

    let confirmed = confirmed.lock().expect("no holder panics").clone();
    for order in confirmed.values() {
        let path = format!("/orders/{}", order["id"].as_str().expect("an id"));
        assert_eq!(system.orders.get(&path).await.expect(200).json(), *order, "a confirmed order is kept");
    }
    let snapshot = async || {
        let (orders, products) = (databases.connect(ORDERS).await, databases.connect(PRODUCTS).await);
        let mut connections = (orders.expect("it answers"), products.expect("it answers"));
        DatabaseSnapshot::read_from(&mut connections.0, &mut connections.1).await.expect("the databases answer")
    };
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
