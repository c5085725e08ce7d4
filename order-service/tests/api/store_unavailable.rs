//! A store that fails: the outcome of a step is unknown, and the order must still be consistent in the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use testing::postgres;

use crate::fakes::StubBehaviour;
use crate::flaky_store::{CAUSE, Fault, FlakyStore};
use crate::support::{
    ANN, HOUR, LAPTOP, PEN, Timeouts, UNKNOWN_USER, World, eventually, id, order, response_of, spawn, with_timeout,
};

async fn world() -> (World, Arc<FlakyStore>) {
    let store = Arc::new(FlakyStore::default());
    (World::over(store.clone(), Timeouts { call: HOUR, order: HOUR }).await, store)
}

/// Aborts and releases abandoned intents, as the reconciler does once they are old enough.
async fn reconcile_abandoned(world: &World) {
    with_timeout("the running tasks", world.placement.finish(HOUR)).await;
    let store = world.placement.store();
    store.claim(Duration::ZERO, Duration::ZERO, 1).await.expect("the store has recovered");
    while world.placement.reconcile(64).await.expect("the store has recovered") > 0 {}
}

#[tokio::test]
async fn returns_503_without_the_cause_when_the_store_is_unavailable() {
    let (world, store) = world().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
    let path = format!("/orders/{}", id(&placed));
    for step in ["begin", "by_id", "page", "step", "ping"] {
        store.fail(step, Fault::NotDone);
    }
    for request in [
        world.client.request("GET", "/orders"),
        world.client.request("GET", "/api/orders?userId=1&status=pending&limit=1"),
        world.client.request("GET", &path),
        world.client.request("PATCH", &path).json(&json!({"status": "cancelled"})),
        world.post_order(&order(ANN, &[(LAPTOP, 1)])),
        world.post_with_key("k", &order(ANN, &[(LAPTOP, 1)])),
        world.client.request("GET", "/readyz"),
    ] {
        let response = request.send().await;
        assert!(!response.to_string().contains(CAUSE), "{response}");
        response.expect_problem(503, "store-unavailable");
    }
    let unready = world.client.get("/readyz").await.expect_problem(503, "store-unavailable");
    assert_eq!(unready["reasons"], json!(["the store does not answer"]));
    world.client.get("/livez").await.expect(200);
    assert_eq!(world.products.reserve.calls().len(), 1, "no peer is called before the intent is recorded");
    store.recover();
    assert_eq!(world.orders().await, [placed]);
    eventually("readiness", async || world.client.get("/readyz").await.status == 200).await;
}

/// In the end either the order exists with its reservation, or neither does. An attempt with a 4xx never becomes an
/// order.
#[tokio::test]
async fn places_an_order_completely_or_not_at_all_whichever_step_fails() {
    for steps in [&["begin"][..], &["settle"], &["abort"], &["settle", "abort"], &["settle", "abort", "by_id"]] {
        for fault in [Fault::NotDone, Fault::ResponseLost] {
            for user in [ANN, UNKNOWN_USER] {
                println!("{steps:?} {fault:?} for user {user}");
                let (world, store) = world().await;
                for step in steps {
                    store.fail(step, fault);
                }
                let response = world.post_with_key("k", &order(user, &[(LAPTOP, 5)])).send().await;
                store.recover();
                reconcile_abandoned(&world).await;
                world.wait_until_settled().await;

                let orders = world.orders().await;
                let taken: Vec<String> = world
                    .products
                    .reservations()
                    .into_iter()
                    .filter(|(_, r)| r.status == "taken")
                    .map(|(id, _)| id)
                    .collect();
                assert_eq!(orders.iter().map(id).collect::<Vec<_>>(), taken);
                assert_eq!(world.products.stock(LAPTOP), 50 - 5 * i64::try_from(orders.len()).unwrap());
                match response.status.as_u16() {
                    201 => assert_eq!(orders, [response.json()]),
                    // Only a settlement whose response was lost, and that could not be checked, may be an order.
                    503 if !orders.is_empty() => drop(response.expect_problem(503, "timed-out")),
                    503 => drop(response.expect_problem(503, "store-unavailable")),
                    _ => drop(response.expect_problem(400, "user-not-found")),
                }
                assert!(user == ANN || orders.is_empty(), "{orders:?}");
            }
        }
    }
}

#[tokio::test]
async fn returns_the_order_when_the_response_to_settle_is_lost() {
    let (world, store) = world().await;
    store.fail("settle", Fault::ResponseLost);
    let placed = world.post_order(&order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
    assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    with_timeout("the running tasks", world.placement.finish(HOUR)).await;
    assert_eq!((world.orders().await, world.products.stock(LAPTOP)), (vec![placed.json()], 45));
}

#[tokio::test]
async fn frees_the_key_when_the_store_fails() {
    let (world, store) = world().await;
    store.fail("settle", Fault::NotDone);
    let wanted = order(ANN, &[(LAPTOP, 5)]);
    world.post_with_key("k", &wanted).send().await.expect_problem(503, "store-unavailable");
    store.recover();
    world.wait_until_settled().await;
    world.expect_nothing_sold().await;
    world.post_with_key("k", &wanted).send().await.expect(201);
}

#[tokio::test]
async fn cancels_an_order_completely_or_not_at_all_whichever_step_fails() {
    for step in ["step", "finish_release"] {
        for fault in [Fault::NotDone, Fault::ResponseLost] {
            println!("{step} {fault:?}");
            let (world, store) = world().await;
            let placed = world.place(order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
            store.fail(step, fault);
            let response = world.step(id(&placed), "cancelled").await;
            match (step, fault) {
                ("step", Fault::NotDone) => drop(response.expect_problem(503, "store-unavailable")),
                ("step", Fault::ResponseLost) => drop(response.expect_problem(503, "timed-out")),
                _ => drop(response.expect(200)),
            }
            with_timeout("the running tasks", world.placement.finish(HOUR)).await;
            store.recover();
            while world.placement.reconcile(64).await.unwrap() > 0 {}
            world.wait_until_settled().await;
            let cancelled = world.read(id(&placed)).await["status"] == "cancelled";
            assert_eq!(cancelled, (step, fault) != ("step", Fault::NotDone));
            eventually("the units", async || (world.products.stock(LAPTOP) == 50) == cancelled).await;
            let again = world.step(id(&placed), "cancelled").await;
            assert_eq!(again.status, 200, "{again}");
        }
    }
}

/// The retry of the store finds the row already aborted.
#[tokio::test]
async fn releases_immediately_when_the_response_to_abort_is_lost() {
    let Some(database) = postgres::database().await else { return };
    let (database, wire) = postgres::behind_a_faulty_connection(&database).await;
    let world = World::over_database(&database, Timeouts { call: HOUR, order: HOUR }).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let rejected = spawn(world.post_order(&order(UNKNOWN_USER, &[(LAPTOP, 5)])));
    world.products.reserve.wait_for_calls(1).await;
    wire.lose_an_answer();
    world.products.reserve.set(StubBehaviour::Normal);
    response_of(rejected).await.expect_problem(400, "user-not-found");
    assert!(wire.has_lost_it());
    with_timeout("the release", world.placement.finish(HOUR)).await;
    world.expect_nothing_sold().await;
}

#[tokio::test]
async fn hides_an_order_that_could_not_be_aborted_yet() {
    let (world, store) = world().await;
    store.fail("abort", Fault::NotDone);
    world.client.post("/orders", order(UNKNOWN_USER, &[(LAPTOP, 5)])).await.expect_problem(503, "store-unavailable");
    assert_eq!(world.orders().await, [] as [Value; 0]);
    assert!(world.products.release.calls().is_empty(), "it could still become an order");
    store.recover();
    reconcile_abandoned(&world).await;
    world.expect_nothing_sold().await;
}
