//! The three services over PostgreSQL: confirmed orders survive the end of every process.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use system_tests::durable::Durable;
use system_tests::invariants::{DatabaseSnapshot, settled};
use system_tests::{Response, Service, eventually, order, seed};
use tokio::task::block_in_place;

/// The time to recover after the database is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// Starts the system with user 1 and with this stock of product 1. Returns `None` without PostgreSQL.
async fn start(stock: i64) -> Option<Durable> {
    let durable = Durable::start(seed(), |launch| launch).await?;
    durable.system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    durable.system.add_product("Lamp", 19.99, stock).await;
    Some(durable)
}

async fn with_key(orders: &Service, key: &str, body: &Value) -> Response {
    orders.request("POST", "/orders").header("idempotency-key", key).json(body).send().await
}

#[tokio::test]
async fn keeps_confirmed_orders_when_every_process_is_killed() {
    let Some(Durable { mut postgres, mut system, links: _links, .. }) = start(50).await else { return };
    let body = order(1, 1, 5);
    let placed = with_key(&system.orders, "a", &body).await.expect(201);
    postgres.kill();
    for service in [&mut system.users, &mut system.products, &mut system.orders] {
        service.kill().await;
    }
    postgres.restart();
    for service in [&mut system.users, &mut system.products, &mut system.orders] {
        service.restart().await;
    }
    assert_eq!(system.orders.get(placed.header("location")).await.expect(200).json(), placed.json());
    let again = with_key(&system.orders, "a", &body).await.expect(201);
    assert_eq!((again.json(), again.header("idempotent-replayed")), (placed.json(), "true"));
    assert_eq!(system.stock(1).await, 45, "it was sold once");
    assert_eq!(system.users.get("/users/1").await.expect(200).json()["name"], "Eve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_a_missing_database_and_recovers_without_a_restart() {
    let Some(mut durable) = start(50).await else { return };
    let system = &durable.system;
    let placed = system.orders.post("/orders", order(1, 1, 1)).await.expect(201);
    let calls = [
        (&system.users, "/users/1".to_owned()),
        (&system.products, "/products/1".to_owned()),
        (&system.orders, placed.header("location").to_owned()),
    ];
    durable.postgres.kill();
    for (service, path) in &calls {
        service.get(path).await.expect_problem(503, "store-unavailable"); // which has a Retry-After
        eventually(503, async || service.get("/readyz").await.status).await;
        service.get("/readyz").await.expect_problem(503, "store-unavailable");
        service.get("/livez").await.expect(200);
    }
    assert_eq!(system.orders.post("/orders", order(1, 1, 1)).await.expect(503).header("retry-after"), "1");

    block_in_place(|| durable.postgres.restart()); // the links between the services run in this process
    let back = Instant::now();
    for (service, path) in &calls {
        let status = eventually(200, async || service.get(path).await.status).await;
        assert!(status == 200 && back.elapsed() < RECOVERY, "{path}: {status} after {:?}", back.elapsed());
        assert_eq!(eventually(200, async || service.get("/readyz").await.status).await, 200);
    }
    system.orders.post("/orders", order(1, 1, 1)).await.expect(201);
    assert_eq!(eventually(48, || system.stock(1)).await, 48);
}

#[tokio::test]
async fn places_one_order_per_key_across_two_replicas() {
    let Some(durable) = start(5).await else { return };
    let (one, two) = (&durable.system, &durable.replicas().await);
    let attempts = (0..10).flat_map(|_| [&one.orders, &two.orders]);
    let answers = futures_util::future::join_all(attempts.map(|orders| {
        let body = order(1, 1, 1);
        async move { with_key(orders, "one", &body).await }
    }));
    let answers = answers.await;
    let placed: Vec<_> = answers.iter().filter(|answer| answer.status == 201).map(Response::json).collect();
    assert!(answers.iter().all(|answer| matches!(answer.status, 201 | 409)), "{answers:#?}");
    assert!(!placed.is_empty() && placed.iter().all(|order| *order == placed[0]), "one key, one order: {placed:#?}");

    let rivals = (0..10).flat_map(|_| [&one.orders, &two.orders]).map(|orders| orders.post("/orders", order(1, 1, 1)));
    let sold = futures_util::future::join_all(rivals).await.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(sold, 4, "the units that were left");
    assert!(settled(&durable).await.is_some(), "nothing is left half done");
    assert_eq!(DatabaseSnapshot::read(&durable).await.unwrap().violations(&[(1, 5)].into()), [] as [String; 0]);
    assert_eq!((one.stock(1).await, two.stock(1).await), (0, 0));

    let named = json!({"username": "eve"});
    let (first, second) = tokio::join!(one.users.post("/users", named.clone()), two.users.post("/users", named));
    let mut statuses = [first.status, second.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409], "a name is one user's");
}
