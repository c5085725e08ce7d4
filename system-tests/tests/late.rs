//! What comes too late: a take after its release, and the end of a placement that somebody has given up meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Executor, PgConnection, query_scalar};
use system_tests::durable::Durable;
use system_tests::invariants::{DatabaseSnapshot, settled};
use system_tests::{Fault, Launch, ORDERS, PRODUCTS, Proxy, Service, eventually, order, seed};

/// Units at first.
const UNITS: i64 = 100;

/// Statements that wait for the lock of the test.
const WAITING: &str =
    "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%take_each%'";

async fn start(prepare: impl Fn(Launch) -> Launch) -> Option<(Durable, i64)> {
    let durable = Durable::start(seed(), prepare).await?;
    durable.system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    let lamp = durable.system.add_product("Lamp", 19.99, UNITS).await;
    Some((durable, lamp))
}

async fn all_is_well(durable: &Durable, product: i64) {
    assert!(settled(durable).await.is_some(), "I8: something is half done");
    let books = DatabaseSnapshot::read(durable).await.expect("the databases answer");
    let violations = books.violations(&BTreeMap::from([(product, UNITS)]));
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

async fn waiting(database: &mut PgConnection) -> i64 {
    query_scalar(WAITING).fetch_one(database).await.expect("the database answers")
}

/// The take is held up in the database, at its first look at the products, until its order is given up, released and gone.
#[tokio::test]
async fn a_take_after_its_release_takes_nothing() {
    // Time enough for the take to come as far as that, on any machine.
    let patient = |launch: Launch| launch.env("DATABASE_STATEMENT_SECONDS", 60).env("ORDER_TIMEOUT_SECONDS", 3);
    let Some((durable, lamp)) = start(patient).await else { return };
    let mut products = durable.database(PRODUCTS).await.expect("the database answers");
    products.execute("begin; lock table products").await.expect("nobody else has it");
    durable.system.orders.post("/orders", order(1, lamp, 3)).await.expect(503);
    assert!(settled(&durable).await.is_some(), "the release needs no product, and the row is gone");
    assert!(waiting(&mut products).await > 0, "the take is on its way still");
    products.execute("commit").await.expect("it is open");
    let products = tokio::sync::Mutex::new(products);
    assert_eq!(eventually(0, async || waiting(&mut *products.lock().await).await).await, 0);
    all_is_well(&durable, lamp).await;
}

/// A replica with no patience at all gives every intent up and releases it, and never hears that it is released: so the row
/// stays, and the placement that still runs elsewhere finds it.
#[tokio::test]
async fn what_was_given_up_and_released_is_not_settled() {
    // Nor does anybody else look for what is half done.
    let patient = |launch: Launch| {
        let launch = launch.env("PEER_TIMEOUT_SECONDS", 5).env("ORDER_TIMEOUT_SECONDS", 10);
        launch.env("RECONCILE_SECONDS", 3600)
    };
    let Some((durable, lamp)) = start(patient).await else { return };
    let deaf = Proxy::before(durable.system.products.address(), seed()).await;
    deaf.set(Fault::LoseAnswers(1.0));
    let impatient = durable.launch(ORDERS).env("ORDER_TIMEOUT_SECONDS", 0).env("RECONCILE_SECONDS", 0.1);
    let impatient =
        impatient.env("USER_SERVICE_URL", durable.system.users.url()).env("PRODUCT_SERVICE_URL", deaf.url());
    let _impatient = Service::start(impatient).await.unwrap_or_else(|reason| panic!("{reason}"));

    // Each way, and so in sum about two seconds later than an intent is safe from the impatient, and as much sooner than a
    // call is given up.
    let late = Fault::Delay { base: Duration::from_millis(1500), jitter: Duration::from_millis(150) };
    durable.links.orders_to_users.set(late);
    let answers = join_all((0..20).map(|_| durable.system.orders.post("/orders", order(1, lamp, 1)))).await;
    deaf.heal();
    all_is_well(&durable, lamp).await;
    let overtaken = answers.iter().filter(|answer| answer.status == 503).count();
    assert!(overtaken > 10, "next to nobody came too late: {answers:#?}");
}
