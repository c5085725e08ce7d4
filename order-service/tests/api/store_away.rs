//! A store that does not answer: what became of the step is unknown, and must come out right all the same. (The store
//! that can fail can also have its callers meet, for those tests elsewhere that are about who is quicker.)

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use order_service::order::State;
use order_service::store::{BeginOutcome, Filter, Intent, MemoryStore, OrderStore, StoreError};
use serde_json::{Value, json};
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Money, OrderId};
use testing::postgres;
use tokio::sync::Barrier;

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, HOUR, LAPTOP, Limits, NOBODY, PEN, World, answer, begin, eventually, id, order, with_timeout,
};

const CAUSE: &str = "no route to 10.0.0.7";

/// How a step of the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing was done.
    Away,
    /// It was done, and the answer lost.
    AnswerLost,
}

/// The store in memory, with steps that fail as long as a test wants it.
#[derive(Default)]
pub(crate) struct Flaky {
    store: MemoryStore,
    faults: Mutex<HashMap<&'static str, Fault>>,
    failures: AtomicUsize,
    /// Where callers meet, and how many are still to come there.
    crowd: Mutex<Option<(Arc<Barrier>, usize)>>,
}

impl Flaky {
    /// From now on, this step fails like this.
    pub(crate) fn fails(&self, step: &'static str, fault: Fault) {
        self.faults.lock().expect("no test panics here").insert(step, fault);
    }

    /// From now on, no step fails.
    pub(crate) fn is_well(&self) {
        self.faults.lock().expect("no test panics here").clear();
    }

    /// The next so many who want an order to take a step wait for one another: all of them have seen it as it was.
    pub(crate) fn gathers(&self, crowd: usize) {
        *self.crowd.lock().expect("no test panics here") = Some((Arc::new(Barrier::new(crowd)), crowd));
    }

    async fn meet(&self) {
        let barrier = {
            let mut crowd = self.crowd.lock().expect("no test panics here");
            let place = crowd.as_mut().filter(|(_, to_come)| *to_come > 0);
            place.map(|(barrier, to_come)| {
                *to_come -= 1;
                Arc::clone(barrier)
            })
        };
        if let Some(barrier) = barrier {
            barrier.wait().await;
        }
    }

    /// How many steps have failed so far.
    pub(crate) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    async fn step<T>(
        &self,
        step: &'static str,
        done: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.faults.lock().expect("no test panics here").get(step).copied();
        if fault.is_none() {
            return done.await;
        }
        if fault == Some(Fault::AnswerLost) {
            done.await?;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        Err(StoreError(CAUSE.to_owned()))
    }
}

#[async_trait]
impl OrderStore for Flaky {
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError> {
        self.step("begin", self.store.begin(intent)).await
    }

    async fn settle(&self, id: OrderId, lines: Vec<OrderLine>, total: Money) -> Result<Option<Arc<Order>>, StoreError> {
        self.step("settle", self.store.settle(id, lines, total)).await
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        self.step("abort", self.store.abort(id)).await
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Arc<Order>>, StoreError> {
        self.meet().await;
        self.step("step", self.store.step(id, from, to)).await
    }

    async fn released(&self, id: OrderId) -> Result<(), StoreError> {
        self.step("released", self.store.released(id)).await
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Arc<Order>>, StoreError> {
        self.step("by_id", self.store.by_id(id)).await
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Arc<Order>>, StoreError> {
        self.step("page", self.store.page(page, filter)).await
    }

    async fn claim(
        &self,
        now: Timestamp,
        abandoned: Timestamp,
        lease: Duration,
        most: usize,
    ) -> Result<Vec<OrderId>, StoreError> {
        self.step("claim", self.store.claim(now, abandoned, lease, most)).await
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        self.step("unsettled", self.store.unsettled()).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.step("ping", self.store.ping()).await
    }
}

async fn world() -> (World, Arc<Flaky>) {
    let store = Arc::new(Flaky::default());
    (World::over(store.clone(), Limits { call: HOUR, order: HOUR }).await, store)
}

/// Gives up what `world` has left behind, as the reconciler would when it is old enough.
async fn give_up_the_old(world: &World) {
    with_timeout("the end of what runs", world.placement.finish(HOUR)).await;
    let store = world.placement.store();
    store.claim(Timestamp::now(), Timestamp::now(), Duration::ZERO, 1).await.expect("it is well again");
    while world.placement.reconcile(64).await.expect("it is well again") > 0 {}
}

#[tokio::test]
async fn every_call_says_that_the_store_is_away_and_not_why() {
    let (world, store) = world().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
    let path = format!("/orders/{}", id(&placed));
    for step in ["begin", "by_id", "page", "step", "ping"] {
        store.fails(step, Fault::Away);
    }
    for request in [
        world.client.request("GET", "/orders"),
        world.client.request("GET", "/api/orders?userId=1&status=pending&limit=1"),
        world.client.request("GET", &path),
        world.client.request("PATCH", &path).json(&json!({"status": "cancelled"})),
        world.posting(&order(ANN, &[(LAPTOP, 1)])),
        world.keyed("k", &order(ANN, &[(LAPTOP, 1)])),
        world.client.request("GET", "/readyz"),
    ] {
        let answer = request.send().await;
        assert!(!answer.to_string().contains(CAUSE), "{answer}");
        answer.expect_problem(503, "store-unavailable");
    }
    let unready = world.client.get("/readyz").await.expect_problem(503, "store-unavailable");
    assert_eq!(unready["reasons"], json!(["the store does not answer"]));
    world.client.get("/livez").await.expect(200);
    assert_eq!(world.shop.takes.calls().len(), 1, "before the intent is written nobody is asked");
    store.is_well();
    assert_eq!(world.orders().await, [placed]);
    world.client.get("/readyz").await.expect(200);
}

/// Whichever step fails, however: in the end an order is there with its stock, or neither is, and no attempt that was
/// answered with a 4xx is an order.
#[tokio::test]
async fn whichever_step_fails_no_order_is_half_placed() {
    for steps in [&["begin"][..], &["settle"], &["abort"], &["settle", "abort"], &["settle", "abort", "by_id"]] {
        for fault in [Fault::Away, Fault::AnswerLost] {
            for user in [ANN, NOBODY] {
                println!("{steps:?} {fault:?} for user {user}");
                let (world, store) = world().await;
                for step in steps {
                    store.fails(step, fault);
                }
                let answer = world.keyed("k", &order(user, &[(LAPTOP, 5)])).send().await;
                store.is_well();
                give_up_the_old(&world).await;
                world.at_rest().await;

                let orders = world.orders().await;
                let taken: Vec<String> = world
                    .shop
                    .reservations()
                    .into_iter()
                    .filter(|(_, r)| r.status == "taken")
                    .map(|(id, _)| id)
                    .collect();
                assert_eq!(orders.iter().map(id).collect::<Vec<_>>(), taken);
                assert_eq!(world.shop.stock(LAPTOP), 50 - 5 * i64::try_from(orders.len()).unwrap());
                match answer.status.as_u16() {
                    201 => assert_eq!(orders, [answer.json()]),
                    503 => drop(answer.expect_problem(503, "store-unavailable")),
                    _ => drop(answer.expect_problem(400, "user-not-found")),
                }
                assert!(user == ANN || orders.is_empty(), "{orders:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_order_whose_settling_was_not_heard_of_is_found_and_answered() {
    let (world, store) = world().await;
    store.fails("settle", Fault::AnswerLost);
    let placed = world.posting(&order(ANN, &[(LAPTOP, 5)])).send().await.expect(201);
    assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    with_timeout("the end of what runs", world.placement.finish(HOUR)).await;
    assert_eq!((world.orders().await, world.shop.stock(LAPTOP)), (vec![placed.json()], 45));
}

#[tokio::test]
async fn a_failed_attempt_at_the_store_leaves_its_key_free() {
    let (world, store) = world().await;
    store.fails("settle", Fault::Away);
    let wanted = order(ANN, &[(LAPTOP, 5)]);
    world.keyed("k", &wanted).send().await.expect_problem(503, "store-unavailable");
    store.is_well();
    world.at_rest().await;
    world.nothing_happened().await;
    world.keyed("k", &wanted).send().await.expect(201);
}

/// The units follow a cancellation whatever fails between.
#[tokio::test]
async fn whichever_step_fails_a_cancellation_is_finished_or_was_none() {
    for step in ["step", "released"] {
        for fault in [Fault::Away, Fault::AnswerLost] {
            println!("{step} {fault:?}");
            let (world, store) = world().await;
            let placed = world.place(order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
            store.fails(step, fault);
            let answer = world.step(id(&placed), "cancelled").await;
            assert_eq!(answer.status, if step == "step" { 503 } else { 200 }, "{answer}");
            with_timeout("the end of what runs", world.placement.finish(HOUR)).await;
            store.is_well();
            while world.placement.reconcile(64).await.unwrap() > 0 {}
            world.at_rest().await;
            let cancelled = world.read(id(&placed)).await["status"] == "cancelled";
            assert_eq!(cancelled, (step, fault) != ("step", Fault::Away));
            eventually("the units", async || (world.shop.stock(LAPTOP) == 50) == cancelled).await;
            let again = world.step(id(&placed), "cancelled").await;
            assert_eq!(again.status, if cancelled { 409 } else { 200 }, "{again}");
        }
    }
}

/// The store finds it given up already, by the try whose answer was lost.
#[tokio::test]
async fn what_is_given_up_is_released_at_once_though_the_stores_answer_was_lost() {
    let Some(database) = postgres::database().await else { return };
    let (database, wire) = postgres::behind_a_faulty_connection(&database).await;
    let world = World::over_database(&database, Limits { call: HOUR, order: HOUR }).await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let refused = begin(world.posting(&order(NOBODY, &[(LAPTOP, 5)])));
    world.shop.takes.called(1).await;
    wire.lose_an_answer();
    world.shop.takes.is(StubBehaviour::Well);
    answer(refused).await.expect_problem(400, "user-not-found");
    assert!(wire.has_lost_it());
    with_timeout("the release", world.placement.finish(HOUR)).await;
    world.nothing_happened().await;
}

#[tokio::test]
async fn nothing_is_shown_of_what_could_not_be_given_up_yet() {
    let (world, store) = world().await;
    store.fails("abort", Fault::Away);
    world.client.post("/orders", order(NOBODY, &[(LAPTOP, 5)])).await.expect_problem(503, "store-unavailable");
    assert_eq!(world.orders().await, [] as [Value; 0]);
    assert!(world.shop.releases.calls().is_empty(), "it could still become an order, as far as anybody knows");
    store.is_well();
    give_up_the_old(&world).await;
    world.nothing_happened().await;
}
