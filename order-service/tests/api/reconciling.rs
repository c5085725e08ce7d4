//! The reconciler: it finishes what a crash or an outage has left unfinished.

use std::sync::Arc;
use std::time::Duration;

use chassis::http::extract::Header;
use jiff::Timestamp;
use order_service::idempotency::{Fingerprint, Key};
use order_service::reconciler;
use order_service::store::{BeginOutcome, Intent};
use serde_json::{Value, json};
use shared::{Id, OrderId};
use uuid::Uuid;

use crate::fakes::{FAULTS, StubBehaviour};
use crate::flaky_store::{Fault, FlakyStore};
use crate::support::{
    ANN, HOUR, LAPTOP, PEN, Pinned, SHORT_TIMEOUT, Timeouts, World, client, eventually, expect_in_progress, id, order,
    response_of, spawn, with_timeout,
};

/// The batch size of the reconciler in these tests.
const BATCH: usize = 64;

/// Leaves an intent of this age, as a process would that died before or after it reserved the stock.
async fn abandon_intent(world: &World, age: Duration, key: Option<&str>, reserved: bool) -> String {
    let body = order(ANN, &[(LAPTOP, 5)]);
    let key = key.map(|key| (Key::parse(key).expect("a key"), Fingerprint::of(body.to_string().as_bytes())));
    let id = OrderId(Uuid::now_v7());
    let intent = Intent { id, user_id: Id::new(ANN).expect("an id"), key, created_at: Timestamp::now() - age };
    assert_eq!(world.placement.store().begin(intent).await, Ok(BeginOutcome::Started));
    if reserved {
        let (status, _) = world.products.put_reservation(&id.to_string(), &json!({"lines": body["products"]}));
        assert_eq!(status, 201);
    }
    id.to_string()
}

#[tokio::test]
async fn aborts_and_releases_an_abandoned_intent() {
    let world = World::new().await;
    let keys = ["reserved", "not-reserved"];
    let reserved = abandon_intent(&world, 3 * HOUR, Some(keys[0]), true).await;
    let not_reserved = abandon_intent(&world, 3 * HOUR, Some(keys[1]), false).await;
    assert_eq!(world.products.stock(LAPTOP), 45);
    for key in keys {
        expect_in_progress(&world.post_with_key(key, &order(ANN, &[(LAPTOP, 5)])).send().await);
    }

    assert_eq!(world.placement.reconcile(BATCH).await, Ok(2));
    for order in [&reserved, &not_reserved] {
        assert_eq!(world.products.status(order), "released");
        world.client.get(&format!("/orders/{order}")).await.expect_problem(404, "not-found");
    }
    world.expect_nothing_sold().await;
    assert_eq!(world.placement.reconcile(BATCH).await, Ok(0), "the rows are gone");
    for key in keys {
        let placed = world.post_with_key(key, &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
        assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    }
}

/// An intent is abandoned after the order timeout plus one second.
#[tokio::test]
async fn leaves_a_recent_intent_alone() {
    let world = World::with(Timeouts { call: HOUR, order: HOUR }).await;
    let young = abandon_intent(&world, HOUR - Duration::from_secs(60), Some("young"), true).await;
    let old = abandon_intent(&world, HOUR + Duration::from_secs(1), Some("old"), true).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let running = spawn(world.post_with_key("running", &order(ANN, &[(PEN, 1)])));
    world.products.reserve.wait_for_calls(1).await;
    assert_eq!(world.placement.reconcile(BATCH).await, Ok(1));
    assert_eq!((world.products.status(&young), world.products.status(&old)), ("taken", "released"));
    expect_in_progress(&world.post_with_key("young", &order(ANN, &[(LAPTOP, 5)])).send().await);
    world.products.reserve.set(StubBehaviour::Normal);
    response_of(running).await.expect(201);
}

/// Creates three orders that wait for their release: two cancelled ones and a rejected one. Returns their ids.
async fn unfinished(world: &World) -> Vec<String> {
    let cancelled = world.place(order(ANN, &[(LAPTOP, 2)])).await;
    let confirmed = world.place(order(ANN, &[(LAPTOP, 3)])).await;
    world.step(id(&confirmed), "confirmed").await.expect(200);
    for order in [&cancelled, &confirmed] {
        let response = world.step(id(order), "cancelled").await.expect(200);
        assert_eq!(response.json()["status"], "cancelled");
        assert_eq!(world.read(id(order)).await["status"], "cancelled", "immediately, whatever product-service does");
    }
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect_problem(409, "insufficient-stock");
    vec![id(&cancelled).to_owned(), id(&confirmed).to_owned(), world.last_reserved_id()]
}

#[tokio::test]
async fn retries_a_failed_release_once_product_service_recovers() {
    for fault in FAULTS {
        println!("{fault:?}");
        let world = World::with(Timeouts { call: HOUR, order: Duration::from_secs(5) }).await;
        world.products.release.set(fault);
        let waiting = unfinished(&world).await;
        with_timeout("the releases to fail", world.placement.finish(HOUR)).await;
        if fault != StubBehaviour::LostResponse {
            assert!(waiting.iter().all(|id| world.products.status(id) != "released"));
        }

        world.products.release.set(StubBehaviour::Normal);
        let another = world.replica(Timeouts { call: HOUR, order: HOUR }); // its client does not throttle product-service
        assert_eq!(another.reconcile(BATCH).await, Ok(3), "the row stays until the release is acknowledged");
        assert!(waiting.iter().all(|id| world.products.status(id) == "released"));
        world.wait_until_settled().await;
        assert_eq!(world.products.stocks(), world.stocks, "released once");
        let orders = world.orders().await;
        assert_eq!(orders.len(), 2);
        assert!(orders.iter().all(|order| order["status"] == "cancelled"), "{orders:?}");
    }
}

#[tokio::test]
async fn retries_a_release_that_timed_out() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    world.products.release.set(StubBehaviour::Hanging);
    let impatient = world.replica(Timeouts { call: SHORT_TIMEOUT, order: HOUR });
    let cancel = json!({"status": "cancelled"});
    client(impatient.clone()).patch(&format!("/orders/{}", id(&placed)), cancel).await.expect(200);
    with_timeout("the release to time out", impatient.finish(HOUR)).await;
    assert_eq!(world.products.status(id(&placed)), "taken");
    world.products.release.set(StubBehaviour::Normal); // the first request is handled now, late
    assert_eq!(world.placement.reconcile(BATCH).await, Ok(1));
    world.wait_until_settled().await;
    assert_eq!(world.products.stocks(), world.stocks, "released once");
}

#[tokio::test]
async fn runs_without_any_request() {
    let world = World::with(Timeouts { call: HOUR, order: Duration::from_secs(5) }).await;
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), Duration::from_millis(10)));
    let abandoned = abandon_intent(&world, HOUR, Some("k"), true).await;
    eventually("the release", async || world.products.status(&abandoned) == "released").await;
    world.expect_nothing_sold().await;
    world.post_with_key("k", &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
    assert!(!reconciling.is_finished());
}

#[tokio::test]
async fn continues_without_a_pause_after_a_full_batch() {
    let world = World::new().await;
    let intents = 135;
    for _ in 0..intents {
        abandon_intent(&world, 3 * HOUR, None, false).await;
    }
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), HOUR));
    eventually("all releases", async || world.products.reservations().len() == intents).await;
    world.expect_nothing_sold().await;
    assert!(!reconciling.is_finished());
}

#[tokio::test]
async fn survives_an_outage_of_the_store() {
    let store = Arc::new(FlakyStore::default());
    let world = World::over(store.clone(), Timeouts { call: HOUR, order: HOUR }).await;
    let abandoned = abandon_intent(&world, 3 * HOUR, None, true).await;
    store.fail("claim", Fault::NotDone);
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), Duration::from_millis(10)));
    eventually("some failed runs", async || store.failures() >= 3).await;
    assert_eq!(world.products.status(&abandoned), "taken");
    store.recover();
    eventually("the release", async || world.products.status(&abandoned) == "released").await;
    world.expect_nothing_sold().await;
    assert!(!reconciling.is_finished());
}

#[tokio::test]
async fn leaves_orders_claimed_by_another_replica_alone() {
    let world = World::new().await;
    for _ in 0..3 {
        abandon_intent(&world, 3 * HOUR, None, true).await;
    }
    world.products.release.set(StubBehaviour::Hanging);
    let first = tokio::spawn({
        let placement = world.placement.clone();
        async move { placement.reconcile(2).await }
    });
    world.products.release.wait_for_calls(2).await;
    let replica = world.replica(Timeouts { call: HOUR, order: HOUR });
    let claimed = replica.store().claim(HOUR, HOUR, BATCH).await.unwrap();
    let [left] = claimed[..] else { panic!("{claimed:?}") };
    let second = tokio::spawn(async move { (replica.release(left).await.is_ok(), replica.reconcile(BATCH).await) });
    world.products.release.wait_for_calls(3).await;
    world.products.release.set(StubBehaviour::Normal);
    assert_eq!(with_timeout("the first replica", first).await.unwrap(), Ok(2));
    assert_eq!(with_timeout("the second replica", second).await.unwrap(), (true, Ok(0)));
    world.expect_nothing_sold().await;
}

#[tokio::test]
async fn claims_an_order_again_after_a_failed_release() {
    let world = World::with(Timeouts { call: HOUR, order: Duration::from_secs(5) }).await;
    world.products.release.set(StubBehaviour::LostRequest);
    let cancelled = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    world.step(id(&cancelled), "cancelled").await.expect(200);
    with_timeout("the release to fail", world.placement.finish(HOUR)).await;
    assert_eq!(world.placement.reconcile(BATCH).await, Ok(0), "claimed, and the release failed again");
    world.products.release.set(StubBehaviour::Normal);
    let replica = world.replica(Timeouts { call: HOUR, order: HOUR }); // its client does not throttle product-service
    eventually("another claim", async || replica.reconcile(BATCH).await == Ok(1)).await;
    assert_eq!(world.products.status(id(&cancelled)), "released");
}

/// As at the drain. Another replica may have to do the rest, but not an order that this one has claimed.
#[tokio::test]
async fn finishes_its_batch_and_claims_no_more_when_it_is_stopped() {
    let world = World::new().await;
    let claimed = abandon_intent(&world, 3 * HOUR, None, true).await;
    world.products.release.set(StubBehaviour::Hanging);
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), Duration::from_millis(10)));
    world.products.release.wait_for_calls(1).await;
    reconciling.abort();
    assert!(reconciling.await.is_err_and(|error| error.is_cancelled()));
    let late = abandon_intent(&world, 3 * HOUR, None, true).await;
    world.products.release.set(StubBehaviour::Normal);
    with_timeout("its batch", world.placement.finish(HOUR)).await;
    assert_eq!((world.products.status(&claimed), world.products.status(&late)), ("released", "taken"));
}

#[tokio::test]
async fn returns_503_and_sells_nothing_when_a_running_attempt_is_aborted() {
    let world = World::new().await;
    for release_first in [true, false] {
        world.products.reserve.set(StubBehaviour::Hanging);
        let before = world.products.reserve.calls().len();
        let running = spawn(world.post_with_key("k", &order(ANN, &[(LAPTOP, 5)])));
        world.products.reserve.wait_for_calls(before + 1).await;
        let store = world.placement.store();
        let claimed = store.claim(Duration::ZERO, Duration::ZERO, BATCH).await.unwrap();
        assert_eq!(claimed.len(), 1);
        let release = async || world.placement.release(claimed[0]).await.unwrap();
        let resume: [Pinned<'_, ()>; 2] =
            [Box::pin(release()), Box::pin(async { world.products.reserve.set(StubBehaviour::Normal) })];
        if release_first {
            for act in resume {
                act.await;
            }
            response_of(running).await.expect_problem(503, "overloaded");
        } else {
            let [release, resume] = resume;
            resume.await;
            response_of(running).await.expect_problem(503, "overloaded");
            assert_eq!(world.orders().await, [] as [Value; 0]);
            release.await;
        }
        world.expect_nothing_sold().await;
    }
    world.post_with_key("k", &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
}
