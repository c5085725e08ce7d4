//! What a crash or an outage left half done is finished: by nobody's request, and by whichever replica is there.

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
use crate::store_away::{Fault, Flaky};
use crate::support::{
    ANN, HOUR, LAPTOP, Limits, PEN, Pinned, SOON, World, answer, begin, client, eventually, expect_in_progress, id,
    order, with_timeout,
};

/// Rows that a test lets be finished at one go.
const MANY: usize = 64;

/// Leaves an intent behind, as one that died after its take, or before it, would: begun so long ago, under this key.
async fn leave_behind(world: &World, age: Duration, key: Option<&str>, took: bool) -> String {
    let body = order(ANN, &[(LAPTOP, 5)]);
    let key = key.map(|key| (Key::parse(key).expect("a key"), Fingerprint::of(body.to_string().as_bytes())));
    let id = OrderId(Uuid::now_v7());
    let intent = Intent { id, user_id: Id::new(ANN).expect("an id"), key, created_at: Timestamp::now() - age };
    assert_eq!(world.placement.store().begin(intent).await, Ok(BeginOutcome::Started));
    if took {
        let (status, _) = world.shop.take(&id.to_string(), &json!({"lines": body["products"]}));
        assert_eq!(status, 201);
    }
    id.to_string()
}

#[tokio::test]
async fn an_intent_left_behind_is_given_up_whole() {
    let world = World::new().await;
    let (took, asked) = ("took", "asked");
    let died_after_the_take = leave_behind(&world, 3 * HOUR, Some(took), true).await;
    let died_before_the_take = leave_behind(&world, 3 * HOUR, Some(asked), false).await;
    assert_eq!(world.shop.stock(LAPTOP), 45);
    for key in [took, asked] {
        expect_in_progress(&world.keyed(key, &order(ANN, &[(LAPTOP, 5)])).send().await);
    }

    assert_eq!(world.placement.reconcile(MANY).await, Ok(2));
    for order in [&died_after_the_take, &died_before_the_take] {
        assert_eq!(world.shop.status(order), "released");
        world.client.get(&format!("/orders/{order}")).await.expect_problem(404, "not-found");
    }
    world.nothing_happened().await;
    assert_eq!(world.placement.reconcile(MANY).await, Ok(0), "the rows are gone");
    for key in [took, asked] {
        let placed = world.keyed(key, &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
        assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    }
}

/// The age that counts is the time of an order and a second. Within ten seconds of the last fault it must be over, the
/// reconciler's look and the release included.
#[tokio::test]
async fn an_intent_that_is_young_enough_is_left_in_peace() {
    let world = World::with(Limits { call: HOUR, order: HOUR }).await;
    let young = leave_behind(&world, HOUR - Duration::from_secs(60), Some("young"), true).await;
    let old = leave_behind(&world, HOUR + Duration::from_secs(1), Some("old"), true).await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let running = begin(world.keyed("running", &order(ANN, &[(PEN, 1)])));
    world.shop.takes.called(1).await;
    assert_eq!(world.placement.reconcile(MANY).await, Ok(1));
    assert_eq!((world.shop.status(&young), world.shop.status(&old)), ("taken", "released"));
    expect_in_progress(&world.keyed("young", &order(ANN, &[(LAPTOP, 5)])).send().await);
    world.shop.takes.is(StubBehaviour::Well);
    answer(running).await.expect(201);
}

/// Orders that wait for the end of their release, each made in another way.
async fn unfinished(world: &World) -> Vec<String> {
    let cancelled = world.place(order(ANN, &[(LAPTOP, 2)])).await;
    let confirmed = world.place(order(ANN, &[(LAPTOP, 3)])).await;
    world.step(id(&confirmed), "confirmed").await.expect(200);
    for order in [&cancelled, &confirmed] {
        let answer = world.step(id(order), "cancelled").await.expect(200);
        assert_eq!(answer.json()["status"], "cancelled");
        assert_eq!(world.read(id(order)).await["status"], "cancelled", "at once, whatever product-service does");
    }
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect_problem(409, "insufficient-stock");
    vec![id(&cancelled).to_owned(), id(&confirmed).to_owned(), world.last_taken()]
}

#[tokio::test]
async fn a_release_that_failed_is_done_when_product_service_is_back() {
    for fault in FAULTS {
        println!("{fault:?}");
        let world = World::with(Limits { call: HOUR, order: Duration::from_secs(5) }).await;
        world.shop.releases.is(fault);
        let waiting = unfinished(&world).await;
        with_timeout("the releases to fail", world.placement.finish(HOUR)).await;
        if fault != StubBehaviour::LosingAnswers {
            assert!(waiting.iter().all(|id| world.shop.status(id) != "released"));
        }

        world.shop.releases.is(StubBehaviour::Well);
        let another = world.replica(Limits { call: HOUR, order: HOUR }); // which has not seen it fail
        assert_eq!(another.reconcile(MANY).await, Ok(3), "until the release is acknowledged the row stays");
        assert!(waiting.iter().all(|id| world.shop.status(id) == "released"));
        world.at_rest().await;
        assert_eq!(world.shop.stocks(), world.stocks, "given back once");
        let orders = world.orders().await;
        assert_eq!(orders.len(), 2);
        assert!(orders.iter().all(|order| order["status"] == "cancelled"), "{orders:?}");
    }
}

#[tokio::test]
async fn a_release_that_hangs_ends_and_is_done_later() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    world.shop.releases.is(StubBehaviour::Hanging);
    let hasty = world.replica(Limits { call: SOON, order: HOUR });
    let cancel = json!({"status": "cancelled"});
    client(hasty.clone()).patch(&format!("/orders/{}", id(&placed)), cancel).await.expect(200);
    with_timeout("the release to be given up", hasty.finish(HOUR)).await;
    assert_eq!(world.shop.status(id(&placed)), "taken");
    world.shop.releases.is(StubBehaviour::Well); // now the first one comes as well, late
    assert_eq!(world.placement.reconcile(MANY).await, Ok(1));
    world.at_rest().await;
    assert_eq!(world.shop.stocks(), world.stocks, "given back once");
}

#[tokio::test]
async fn the_reconciler_does_it_by_itself() {
    let world = World::with(Limits { call: HOUR, order: Duration::from_secs(5) }).await;
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), Duration::from_millis(10)));
    let died = leave_behind(&world, HOUR, Some("k"), true).await;
    eventually("the release", async || world.shop.status(&died) == "released").await;
    world.nothing_happened().await;
    world.keyed("k", &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
    assert!(!reconciling.is_finished());
}

#[tokio::test]
async fn the_reconciler_does_not_wait_while_there_is_more_than_it_does_at_one_go() {
    let world = World::new().await;
    let intents = 135;
    for _ in 0..intents {
        leave_behind(&world, 3 * HOUR, None, false).await;
    }
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), HOUR));
    eventually("all of them", async || world.shop.reservations().len() == intents).await;
    world.nothing_happened().await;
    assert!(!reconciling.is_finished());
}

#[tokio::test]
async fn the_reconciler_outlives_an_outage_of_the_store() {
    let store = Arc::new(Flaky::default());
    let world = World::over(store.clone(), Limits { call: HOUR, order: HOUR }).await;
    let died = leave_behind(&world, 3 * HOUR, None, true).await;
    store.fails("claim", Fault::Away);
    let reconciling = tokio::spawn(reconciler::run(world.placement.clone(), Duration::from_millis(10)));
    eventually("some looks in vain", async || store.failures() >= 3).await;
    assert_eq!(world.shop.status(&died), "taken");
    store.is_well();
    eventually("the release", async || world.shop.status(&died) == "released").await;
    world.nothing_happened().await;
    assert!(!reconciling.is_finished());
}

/// Replicas over one store share the work: what one has claimed, another leaves to it for a while. (For two seconds, of which
/// one has passed when the other claims, however slow this machine is.)
#[tokio::test]
async fn what_one_replica_is_releasing_another_leaves_alone() {
    let world = World::new().await;
    let soon = Timestamp::now() + Duration::from_secs(1);
    for _ in 0..3 {
        leave_behind(&world, 3 * HOUR, None, true).await;
    }
    world.shop.releases.is(StubBehaviour::Hanging);
    let first = tokio::spawn({
        let placement = world.placement.clone();
        async move { placement.reconcile(2).await }
    });
    world.shop.releases.called(2).await;
    let replica = world.replica(Limits { call: HOUR, order: HOUR });
    let claimed = replica.store().claim(soon, Timestamp::MIN, HOUR, MANY).await.unwrap();
    let [left] = claimed[..] else { panic!("{claimed:?}") };
    let second = tokio::spawn(async move { (replica.release(left).await.is_ok(), replica.reconcile(MANY).await) });
    world.shop.releases.called(3).await;
    world.shop.releases.is(StubBehaviour::Well);
    assert_eq!(with_timeout("the first", first).await.unwrap(), Ok(2));
    assert_eq!(with_timeout("the second", second).await.unwrap(), (true, Ok(0)));
    world.nothing_happened().await;
}

/// Within ten seconds of the last fault nothing is unfinished. So a claim whose release failed is over after two: there must
/// be time for another that fails, for product-service does not look well at once.
#[tokio::test]
async fn a_claim_that_came_to_nothing_is_over_soon() {
    let world = World::with(Limits { call: HOUR, order: Duration::from_secs(5) }).await;
    world.shop.releases.is(StubBehaviour::LosingCalls);
    let cancelled = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    world.step(id(&cancelled), "cancelled").await.expect(200);
    with_timeout("the release to fail", world.placement.finish(HOUR)).await;
    assert_eq!(world.placement.reconcile(MANY).await, Ok(0), "claimed, and it failed again");
    let soon = Timestamp::now() + Duration::from_secs(2);
    let claimed = world.placement.store().claim(soon, Timestamp::MIN, Duration::ZERO, MANY).await.unwrap();
    assert_eq!(claimed.iter().map(OrderId::to_string).collect::<Vec<_>>(), [id(&cancelled)]);
}

/// Somebody took a running request for dead. That costs it a 503, and nothing is sold.
#[tokio::test]
async fn acting_too_early_costs_a_request_a_503_and_nothing_else() {
    let world = World::new().await;
    for release_first in [true, false] {
        world.shop.takes.is(StubBehaviour::Hanging);
        let before = world.shop.takes.calls().len();
        let running = begin(world.keyed("k", &order(ANN, &[(LAPTOP, 5)])));
        world.shop.takes.called(before + 1).await;
        let store = world.placement.store();
        let claimed = store.claim(Timestamp::now(), Timestamp::MAX, Duration::ZERO, MANY).await.unwrap();
        assert_eq!(claimed.len(), 1);
        let release = async || world.placement.release(claimed[0]).await.unwrap();
        let let_go: [Pinned<'_, ()>; 2] =
            [Box::pin(release()), Box::pin(async { world.shop.takes.is(StubBehaviour::Well) })];
        if release_first {
            for act in let_go {
                act.await;
            }
            answer(running).await.expect_problem(503, "overloaded");
        } else {
            let [release, let_go] = let_go;
            let_go.await;
            answer(running).await.expect_problem(503, "overloaded");
            assert_eq!(world.orders().await, [] as [Value; 0]);
            release.await;
        }
        world.nothing_happened().await;
    }
    world.keyed("k", &order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
}
