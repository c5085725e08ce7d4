//! Any orders and cancellations at once, with any faults: no unit is sold twice, and none is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::Value;
use testing::Received;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;

use crate::fakes::StubBehaviour;
use crate::support::{ANN, BOB, HOUR, LAPTOP, Limits, NOBODY, NOTHING, PHONE, World, answer, id, order};

/// Units of each product: few, so that orders contend for them.
const STOCK: i64 = 12;

/// What somebody does.
#[derive(Clone, Debug)]
enum Act {
    /// Places an order, perhaps under one of a few keys.
    Place { user: i64, lines: Vec<(i64, i64)>, key: Option<u8> },
    /// The same, and hangs up when product-service has been asked.
    PlaceAndGo { lines: Vec<(i64, i64)> },
    /// Asks for a step of the order that is this far into the list.
    Step(usize, &'static str),
    /// Takes requests that are still running for dead, and gives them up.
    GiveUpTooEarly,
}

/// What is done at once, and how the peers are meanwhile.
#[derive(Clone, Debug)]
struct Wave {
    people: StubBehaviour,
    takes: StubBehaviour,
    releases: StubBehaviour,
    acts: Vec<Act>,
}

fn mood() -> impl Strategy<Value = StubBehaviour> {
    const FAULTS: [StubBehaviour; 5] = [
        StubBehaviour::Hanging,
        StubBehaviour::Broken,
        StubBehaviour::Garbage,
        StubBehaviour::LosingCalls,
        StubBehaviour::LosingAnswers,
    ];
    prop_oneof![3 => Just(StubBehaviour::Well), 2 => prop::sample::select(&FAULTS[..])]
}

fn lines() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let product = prop_oneof![6 => Just(LAPTOP), 6 => Just(PHONE), 1 => Just(NOTHING)];
    prop::collection::btree_map(product, 1..=5_i64, 1..=2).prop_map(|lines| lines.into_iter().collect())
}

fn act() -> impl Strategy<Value = Act> {
    let user = prop_oneof![4 => Just(ANN), 4 => Just(BOB), 1 => Just(NOBODY)];
    let key = prop::option::of(0..3_u8);
    let step = prop::sample::select(&["cancelled", "cancelled", "confirmed", "shipped"][..]);
    prop_oneof![
        8 => (user, lines(), key).prop_map(|(user, lines, key)| Act::Place { user, lines, key }),
        1 => lines().prop_map(|lines| Act::PlaceAndGo { lines }),
        4 => (0..12_usize, step).prop_map(|(at, status)| Act::Step(at, status)),
        1 => Just(Act::GiveUpTooEarly),
    ]
}

fn wave() -> impl Strategy<Value = Wave> {
    let acts = prop::collection::vec(act(), 1..10);
    (mood(), mood(), mood(), acts).prop_map(|(people, takes, releases, acts)| Wave { people, takes, releases, acts })
}

/// A hanging peer costs a request this much time, and what it was told comes late.
const LIMITS: Limits = Limits { call: Duration::from_millis(30), order: HOUR };

proptest! {
    #![proptest_config(Config { cases: 32, failure_persistence: None, ..Config::default() })]

    #[test]
    fn no_unit_is_sold_twice_and_none_is_lost(waves in prop::collection::vec(wave(), 1..6)) {
        runtime().block_on(async { live_through(waves, World::with(LIMITS).await).await });
    }
}

proptest! {
    #![proptest_config(Config { cases: 8, failure_persistence: None, ..Config::default() })]

    #[test]
    fn no_unit_is_sold_twice_and_none_is_lost_over_postgres(waves in prop::collection::vec(wave(), 1..6)) {
        runtime().block_on(async {
            if let Some(world) = World::over_postgres(LIMITS).await {
                live_through(waves, world).await;
            }
        });
    }
}

fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn live_through(waves: Vec<Wave>, world: World) {
    world.shop.offer(LAPTOP, "Laptop", 99_999, STOCK);
    world.shop.offer(PHONE, "Phone", 59_900, STOCK);
    let mut told = ClientLog::default();
    for Wave { people, takes, releases, acts } in waves {
        let ids: Vec<String> = world.orders().await.iter().map(|order| id(order).to_owned()).collect();
        world.people.reads.is(people);
        world.shop.takes.is(takes);
        world.shop.releases.is(releases);
        let acting: Vec<_> = acts.into_iter().map(|act| begin(&world, act, &ids)).collect();
        for act in acting {
            told.note(act).await;
        }
    }
    for door in [&world.people.reads, &world.shop.takes, &world.shop.releases] {
        door.is(StubBehaviour::Well);
    }
    world.at_rest_with_help().await;
    check(&world, &told).await;
}

/// What clients were told.
#[derive(Default)]
struct ClientLog {
    /// The orders that were answered with 201, by their ids.
    placed: BTreeSet<String>,
    /// The orders that were answered under each key.
    under: BTreeMap<u8, BTreeSet<String>>,
    /// The orders that were answered as cancelled.
    cancelled: BTreeSet<String>,
    /// How many have hung up, and perhaps have orders that they do not know of.
    gone: usize,
}

enum Acting {
    Placing(JoinHandle<Received>, Option<u8>),
    Stepping(JoinHandle<Received>),
    Other(JoinHandle<()>),
    Gone(JoinHandle<()>),
}

fn begin(world: &World, act: Act, ids: &[String]) -> Acting {
    let world = world.clone();
    match act {
        Act::Place { user, lines, key } => {
            let wanted = order(user, &lines);
            let request = key.map_or_else(|| world.posting(&wanted), |key| world.keyed(&key.to_string(), &wanted));
            Acting::Placing(crate::support::begin(request), key)
        }
        Act::PlaceAndGo { lines } => Acting::Gone(tokio::spawn(async move {
            let request = crate::support::begin(world.posting(&order(ANN, &lines)));
            tokio::task::yield_now().await;
            request.abort();
        })),
        Act::Step(at, status) => match ids.get(at).cloned() {
            Some(id) => Acting::Stepping(tokio::spawn(async move { world.step(&id, status).await })),
            None => Acting::Other(tokio::spawn(async {})),
        },
        Act::GiveUpTooEarly => Acting::Other(tokio::spawn(async move {
            let claim = world.placement.store().claim(Timestamp::now(), Timestamp::MAX, Duration::ZERO, 1000).await;
            for id in claim.expect("a store that answers") {
                let _ = world.placement.release(id).await; // which may fail, as anybody's
            }
        })),
    }
}

impl ClientLog {
    async fn note(&mut self, act: Acting) {
        match act {
            Acting::Placing(request, key) => {
                let answer = answer(request).await;
                if answer.status == 201 {
                    let json = answer.json();
                    self.placed.insert(id(&json).to_owned());
                    self.under.entry(key.unwrap_or(u8::MAX)).or_default().insert(id(&json).to_owned());
                } else {
                    assert!([400, 409, 422, 503].contains(&answer.status.as_u16()), "{answer}");
                }
            }
            Acting::Stepping(request) => {
                let answer = answer(request).await;
                if answer.status != 200 {
                    drop(answer.expect_problem(409, "illegal-status-step"));
                } else if answer.json()["status"] == "cancelled" {
                    self.cancelled.insert(id(&answer.json()).to_owned());
                }
            }
            Acting::Other(act) => act.await.expect("no panic"),
            Acting::Gone(act) => {
                act.await.expect("no panic");
                self.gone += 1;
            }
        }
    }
}

/// What must hold, by the names it has in the design.
async fn check(world: &World, told: &ClientLog) {
    let orders = world.orders().await;
    let all: BTreeSet<&str> = orders.iter().map(id).collect();
    let alive: BTreeMap<&str, Vec<(i64, i64)>> =
        orders.iter().filter(|order| order["status"] != "cancelled").map(|order| (id(order), units(order))).collect();
    let reservations = world.shop.reservations();
    let taken: BTreeMap<&str, Vec<(i64, i64)>> = reservations
        .iter()
        .filter(|(_, reservation)| reservation.status == "taken")
        .map(|(id, reservation)| (id.as_str(), reservation.units.clone()))
        .collect();

    for product in [LAPTOP, PHONE] {
        let sold: i64 = taken.values().flatten().filter(|(id, _)| *id == product).map(|(_, quantity)| quantity).sum();
        let stock = world.shop.stock(product);
        assert!(stock >= 0 && stock + sold == STOCK, "I1: of {product} {stock} are left and {sold} taken");
    }
    assert_eq!(alive, taken, "I2 and I3: what is sold is what is taken");
    for (key, ids) in told.under.iter().filter(|(key, _)| **key != u8::MAX) {
        assert_eq!(ids.len(), 1, "I4: under key {key} there are {ids:?}");
    }
    assert!(told.placed.iter().all(|id| all.contains(id.as_str())), "I5: of {:?} there are {all:?}", told.placed);
    let untold = all.iter().filter(|id| !told.placed.contains(**id)).count();
    assert!(untold <= told.gone, "I6: {untold} orders are there that nobody was told of, {} have hung up", told.gone);
    assert!(told.cancelled.iter().all(|id| !alive.contains_key(id.as_str())), "what is cancelled stays so");
}

fn units(order: &Value) -> Vec<(i64, i64)> {
    let line =
        |line: &Value| (line["productId"].as_i64().expect("an id"), line["quantity"].as_i64().expect("a number"));
    order["products"].as_array().expect("lines").iter().map(line).collect()
}
