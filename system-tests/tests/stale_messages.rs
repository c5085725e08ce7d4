//! Messages that arrive too late: a take after its release, and the end of a placement that was given up meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Executor, PgConnection, query_scalar};
use system_tests::durable::Durable;
use system_tests::invariants::{DatabaseSnapshot, settled};
use system_tests::{Fault, Launch, ORDERS, PRODUCTS, Proxy, Service, eventually, order, seed};

/// The initial units of the product.
const UNITS: i64 = 100;

/// Counts the takes that wait for the lock of the test.
const WAITING: &str =
    "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%from products%'";

async fn start(prepare: impl Fn(Launch) -> Launch) -> Option<(Durable, i64)> {
    let durable = Durable::start(seed(), prepare).await?;
    durable.system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    let lamp = durable.system.add_product("Lamp", 19.99, UNITS).await;
    Some((durable, lamp))
}

async fn assert_invariants(durable: &Durable, product: i64) {
    assert!(settled(durable).await.is_some(), "I8: an order is not settled");
    let snapshot = DatabaseSnapshot::read(durable).await.expect("the databases answer");
    let violations = snapshot.violations(&BTreeMap::from([(product, UNITS)]));
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

async fn waiting(database: &mut PgConnection) -> i64 {
    query_scalar(WAITING).fetch_one(database).await.expect("the database answers")
}

/// The database blocks the take at its first read of the products until its order is given up, released and deleted.
#[tokio::test]
async fn takes_nothing_when_a_take_arrives_after_its_release() {
    // Enough time for the take to reach the lock on any machine.
    let patient = |launch: Launch| launch.env("DATABASE_STATEMENT_SECONDS", 60).env("ORDER_TIMEOUT_SECONDS", 3);
    let Some((durable, lamp)) = start(patient).await else { return };
    let mut products = durable.database(PRODUCTS).await.expect("the database answers");
    products.execute("begin; lock table products").await.expect("the lock is free");
    durable.system.orders.post("/orders", order(1, lamp, 3)).await.expect(503);
    assert!(settled(&durable).await.is_some(), "the release needs no product, and the row is deleted");
    assert!(waiting(&mut products).await > 0, "the take still waits");
    products.execute("commit").await.expect("the transaction is open");
    let products = tokio::sync::Mutex::new(products);
    assert_eq!(eventually(0, async || waiting(&mut *products.lock().await).await).await, 0);
    assert_invariants(&durable, lamp).await;
}

/// A replica with a time limit of a millisecond gives up and releases every intent, and loses the responses to its releases. So the
/// rows stay, and the placements that still run on the other replica find them.
#[tokio::test]
async fn does_not_settle_an_order_that_was_given_up_and_released() {
    // The first replica does not reconcile.
    let patient = |launch: Launch| {
        let launch = launch.env("PEER_TIMEOUT_SECONDS", 5).env("ORDER_TIMEOUT_SECONDS", 10);
        launch.env("RECONCILE_SECONDS", 3600)
    };
    let Some((durable, lamp)) = start(patient).await else { return };
    let loses_responses = Proxy::start(durable.system.products.address(), seed()).await;
    loses_responses.set(Fault::LoseAnswers(1.0));
    let hasty = durable.launch(ORDERS).env("ORDER_TIMEOUT_SECONDS", 0.001).env("RECONCILE_SECONDS", 0.1);
    let hasty =
        hasty.env("USER_SERVICE_URL", durable.system.users.url()).env("PRODUCT_SERVICE_URL", loses_responses.url());
    let _hasty = Service::start(hasty).await.unwrap_or_else(|reason| panic!("{reason}"));

    // In each direction: the sum is about two seconds more than the hasty replica waits before it gives up an intent, and
    // about two seconds less than the time limit of a call.
    let delay = Fault::Delay { base: Duration::from_millis(1500), jitter: Duration::from_millis(150) };
    durable.links.orders_to_users.set(delay);
    let responses = join_all((0..20).map(|_| durable.system.orders.post("/orders", order(1, lamp, 1)))).await;
    loses_responses.heal();
    assert_invariants(&durable, lamp).await;
    let overtaken = responses.iter().filter(|response| response.status == 503).count();
    assert!(overtaken > 10, "only {overtaken} placements were overtaken: {responses:#?}");
}
