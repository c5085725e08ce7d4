//! Random concurrent orders and cancellations with random faults: no unit is sold twice, and none is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::Value;
use testing::Received;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, PHONE, Timeouts, UNKNOWN_PRODUCT, UNKNOWN_USER, World, id, order, response_of,
};

/// Units of each product: few, so that orders contend for them.
const STOCK: i64 = 12;

/// One action of a round.
#[derive(Clone, Debug)]
enum Action {
    /// Places an order, perhaps with one of a few keys.
    Place { user: i64, lines: Vec<(i64, i64)>, key: Option<u8> },
    /// Places an order and disconnects.
    PlaceAndDisconnect { lines: Vec<(i64, i64)> },
    /// Requests a status step of the order at this index of the list.
    Step(usize, &'static str),
    /// Aborts attempts that are still running, as a reconciler would that acts too early.
    AbortTooEarly,
}

/// Concurrent actions, and the behaviour of the peers meanwhile.
#[derive(Clone, Debug)]
struct Round {
    read: StubBehaviour,
    reserve: StubBehaviour,
    release: StubBehaviour,
    actions: Vec<Action>,
}

fn behaviour() -> impl Strategy<Value = StubBehaviour> {
    const FAULTS: [StubBehaviour; 5] = [
        StubBehaviour::Hanging,
        StubBehaviour::ServerError,
        StubBehaviour::Garbage,
        StubBehaviour::LostRequest,
        StubBehaviour::LostResponse,
    ];
    prop_oneof![3 => Just(StubBehaviour::Normal), 2 => prop::sample::select(&FAULTS[..])]
}

fn lines() -> impl Strategy<Value = Vec<(i64, i64)>> {
    let product = prop_oneof![6 => Just(LAPTOP), 6 => Just(PHONE), 1 => Just(UNKNOWN_PRODUCT)];
    prop::collection::btree_map(product, 1..=5_i64, 1..=2).prop_map(|lines| lines.into_iter().collect())
}

fn action() -> impl Strategy<Value = Action> {
    let user = prop_oneof![4 => Just(ANN), 4 => Just(BOB), 1 => Just(UNKNOWN_USER)];
    let key = prop::option::of(0..3_u8);
    let step = prop::sample::select(&["cancelled", "cancelled", "confirmed", "shipped"][..]);
    prop_oneof![
        8 => (user, lines(), key).prop_map(|(user, lines, key)| Action::Place { user, lines, key }),
        1 => lines().prop_map(|lines| Action::PlaceAndDisconnect { lines }),
        4 => (0..12_usize, step).prop_map(|(at, status)| Action::Step(at, status)),
        1 => Just(Action::AbortTooEarly),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let actions = prop::collection::vec(action(), 1..10);
    let behaviours = (behaviour(), behaviour(), behaviour());
    (behaviours, actions).prop_map(|((read, reserve, release), actions)| Round { read, reserve, release, actions })
}

/// A call to a hanging peer times out, and the peer handles it later.
const TIMEOUTS: Timeouts = Timeouts { call: Duration::from_millis(30), order: HOUR };

proptest! {
    #![proptest_config(Config { cases: 32, failure_persistence: None, ..Config::default() })]

    #[test]
    fn sells_no_unit_twice_and_loses_none(rounds in prop::collection::vec(round(), 1..6)) {
        runtime().block_on(async { run(rounds, World::with(TIMEOUTS).await).await });
    }
}

proptest! {
    #![proptest_config(Config { cases: 8, failure_persistence: None, ..Config::default() })]

    #[test]
    fn sells_no_unit_twice_and_loses_none_over_postgres(rounds in prop::collection::vec(round(), 1..6)) {
        runtime().block_on(async {
            if let Some(world) = World::over_postgres(TIMEOUTS).await {
                run(rounds, world).await;
            }
        });
    }
}

fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn run(rounds: Vec<Round>, world: World) {
    world.products.set_product(LAPTOP, "Laptop", 99_999, STOCK);
    world.products.set_product(PHONE, "Phone", 59_900, STOCK);
    let mut log = ClientLog::default();
    for Round { read, reserve, release, actions } in rounds {
        let ids: Vec<String> = world.orders().await.iter().map(|order| id(order).to_owned()).collect();
        world.users.read.set(read);
        world.products.reserve.set(reserve);
        world.products.release.set(release);
        let running: Vec<_> = actions.into_iter().map(|action| start(&world, action, &ids)).collect();
        for action in running {
            log.record(action).await;
        }
    }
    for endpoint in [&world.users.read, &world.products.reserve, &world.products.release] {
        endpoint.set(StubBehaviour::Normal);
    }
    world.settle_with_another_replica().await;
    check(&world, &log).await;
}

/// The responses that clients have received.
#[derive(Default)]
struct ClientLog {
    /// The ids of the orders in 201 responses.
    placed: BTreeSet<String>,
    /// The ids of the orders in 201 responses, by key.
    by_key: BTreeMap<u8, BTreeSet<String>>,
    /// The ids of the orders that were reported as cancelled.
    cancelled: BTreeSet<String>,
    /// The number of clients that have disconnected; each may have an order that it does not know.
    disconnected: usize,
}

/// An action that is running.
enum Running {
    Placing(JoinHandle<Received>, Option<u8>),
    Stepping(JoinHandle<Received>),
    Disconnecting(JoinHandle<()>),
    Other(JoinHandle<()>),
}

fn start(world: &World, action: Action, ids: &[String]) -> Running {
    let world = world.clone();
    match action {
        Action::Place { user, lines, key } => {
            let wanted = order(user, &lines);
            let request =
                key.map_or_else(|| world.post_order(&wanted), |key| world.post_with_key(&key.to_string(), &wanted));
            Running::Placing(crate::support::spawn(request), key)
        }
        Action::PlaceAndDisconnect { lines } => Running::Disconnecting(tokio::spawn(async move {
            let request = crate::support::spawn(world.post_order(&order(ANN, &lines)));
            tokio::task::yield_now().await;
            request.abort();
        })),
        Action::Step(at, status) => match ids.get(at).cloned() {
            Some(id) => Running::Stepping(tokio::spawn(async move { world.step(&id, status).await })),
            None => Running::Other(tokio::spawn(async {})),
        },
        Action::AbortTooEarly => Running::Other(tokio::spawn(async move {
            let claim = world.placement.store().claim(Duration::ZERO, Duration::ZERO, 1000).await;
            for id in claim.expect("the store answers") {
                let _ = world.placement.release(id).await; // it may fail, like any other
            }
        })),
    }
}

impl ClientLog {
    async fn record(&mut self, action: Running) {
        match action {
            Running::Placing(request, key) => {
                let response = response_of(request).await;
                if response.status == 201 {
                    let json = response.json();
                    self.placed.insert(id(&json).to_owned());
                    self.by_key.entry(key.unwrap_or(u8::MAX)).or_default().insert(id(&json).to_owned());
                } else {
                    assert!([400, 409, 422, 503].contains(&response.status.as_u16()), "{response}");
                }
            }
            Running::Stepping(request) => {
                let response = response_of(request).await;
                if response.status != 200 {
                    drop(response.expect_problem(409, "illegal-status-step"));
                } else if response.json()["status"] == "cancelled" {
                    self.cancelled.insert(id(&response.json()).to_owned());
                }
            }
            Running::Other(task) => task.await.expect("no panic"),
            Running::Disconnecting(task) => {
                task.await.expect("no panic");
                self.disconnected += 1;
            }
        }
    }
}

/// Checks the invariants of the order protocol.
async fn check(world: &World, log: &ClientLog) {
    let orders = world.orders().await;
    let all: BTreeSet<&str> = orders.iter().map(id).collect();
    let open: BTreeMap<&str, Vec<(i64, i64)>> =
        orders.iter().filter(|order| order["status"] != "cancelled").map(|order| (id(order), units(order))).collect();
    let reservations = world.products.reservations();
    let taken: BTreeMap<&str, Vec<(i64, i64)>> = reservations
        .iter()
        .filter(|(_, reservation)| reservation.status == "taken")
        .map(|(id, reservation)| (id.as_str(), reservation.units.clone()))
        .collect();

    for product in [LAPTOP, PHONE] {
        let sold: i64 = taken.values().flatten().filter(|(id, _)| *id == product).map(|(_, quantity)| quantity).sum();
        let stock = world.products.stock(product);
        assert!(
            stock >= 0 && stock + sold == STOCK,
            "I1: product {product} has {stock} units left and {sold} reserved"
        );
    }
    assert_eq!(open, taken, "I2 and I3: open orders and reservations match");
    for (key, ids) in log.by_key.iter().filter(|(key, _)| **key != u8::MAX) {
        assert_eq!(ids.len(), 1, "I4: key {key} has the orders {ids:?}");
    }
    assert!(log.placed.iter().all(|id| all.contains(id.as_str())), "I5: placed {:?}, found {all:?}", log.placed);
    let unknown = all.iter().filter(|id| !log.placed.contains(**id)).count();
    assert!(unknown <= log.disconnected, "I6: no client knows {unknown} orders; {} disconnected", log.disconnected);
    assert!(log.cancelled.iter().all(|id| !open.contains_key(id.as_str())), "a cancelled order stays cancelled");
}

fn units(order: &Value) -> Vec<(i64, i64)> {
    let line =
        |line: &Value| (line["productId"].as_i64().expect("an id"), line["quantity"].as_i64().expect("a number"));
    order["products"].as_array().expect("lines").iter().map(line).collect()
}
