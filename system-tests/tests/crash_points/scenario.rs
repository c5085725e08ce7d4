//! The two clients of a case: what they order, what they are answered, and which answers are correct.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use system_tests::invariants::DatabaseSnapshot;
use system_tests::{DEADLINE, Request, Response, System};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use crate::{Case, Plan};

/// Between two attempts of a client.
const PAUSE: Duration = Duration::from_millis(20);
/// The id of no user and no product.
const UNKNOWN: i64 = 999_999_999;

/// What the two clients order. Each has its own idempotency key.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) keys: [String; 2],
    body: Value,
    /// The final status, if it is certain.
    status: Option<u16>,
    /// Whether the clients cancel their orders.
    pub(crate) cancels: bool,
    /// Whether order-service cannot reach user-service.
    pub(crate) users_unreachable: bool,
    /// The units of each product before the case.
    pub(crate) stock: BTreeMap<i64, i64>,
}

impl Scenario {
    pub(crate) async fn new(case: &Case, system: &System, random: &mut StdRng) -> Self {
        let quantity = random.random_range(1..=3);
        // Only one order can be filled, except where both orders must get far enough to reach the crash point.
        let scarce = case.plan == Plan::Place && !case.point.ends_with("settling") && random.random();
        let units = if scarce { quantity } else { 100 };
        let lamp = system.add_product("Lamp", 19.99, units).await;
        let desk = system.add_product("Desk", 5.0, 100).await;
        let line = |product: i64, quantity: i64| json!({"productId": product, "quantity": quantity});
        let one = |user: i64, line: Value| json!({"userId": user, "products": [line]});
        let failure = if case.plan == Plan::Fail { random.random_range(0..5) } else { 5 };
        let (body, status) = match failure {
            0 => (one(UNKNOWN, line(lamp, quantity)), Some(400)),
            1 => (one(1, line(lamp, units + 1)), Some(409)),
            2 => (one(1, line(UNKNOWN, 1)), Some(400)),
            3 => (one(1, json!({"productId": lamp, "quantity": quantity, "price": 1})), Some(409)),
            _ => (json!({"userId": 1, "products": [line(desk, 1), line(lamp, quantity)]}), (!scarce).then_some(201)),
        };
        let cancels = match case.plan {
            Plan::Cancel => true,
            _ => status != Some(400) && random.random(),
        };
        let keys = ["a", "b"].map(|client| format!("{case}/{client}").replace(' ', "-"));
        let stock = BTreeMap::from([(lamp, units), (desk, 100)]);
        Self { keys, body, status, cancels, users_unreachable: failure == 4, stock }
    }

    pub(crate) fn without_cancelling(&self) -> Self {
        Self { cancels: false, ..self.clone() }
    }

    /// Starts the clients, which repeat their requests until they know the outcome.
    pub(crate) fn clients(&self, system: &System) -> Vec<JoinHandle<ClientLog>> {
        let client = |key: &String| client(system.orders.requests(), key.clone(), self.body.clone(), self.cancels);
        self.keys.iter().map(client).map(tokio::spawn).collect()
    }

    /// Checks that a client got the answers it must get.
    pub(crate) fn check(&self, log: &ClientLog) -> Result<(), String> {
        let last = log.answers.last().ok_or("no answer")?;
        ensure(self.status.is_none_or(|status| last.status == status), || format!("{:?}, not {last}", self.status))?;
        let cancelled = self.cancels && last.status == 201;
        ensure(log.cancelled == cancelled, || format!("it is not cancelled: {last}"))
    }

    /// Checks that each key has one order if a client saw it placed, and otherwise none.
    pub(crate) fn check_keys(&self, logs: &[ClientLog], snapshot: &DatabaseSnapshot) -> Result<(), String> {
        self.keys.iter().try_for_each(|key| {
            let logs: Vec<_> = logs.iter().filter(|log| log.key == *key).collect();
            let placed = logs.iter().any(|log| log.placed().next().is_some());
            let state = if logs.iter().any(|log| log.cancelled) { "cancelled" } else { "pending" };
            let expected: Vec<_> = placed.then_some(state).into_iter().collect();
            let rows = snapshot.by_key().remove(&**key).unwrap_or_default();
            let states: Vec<_> = rows.iter().map(|order| &*order.state).collect();
            ensure(states == expected, || format!("I4 or I6: {key}: {states:?}, not {expected:?}"))
        })
    }
}

/// What one client sent under its key, and the answers.
pub(crate) struct ClientLog {
    key: String,
    body: Value,
    answers: Vec<Response>,
    /// Whether the client has cancelled its order.
    cancelled: bool,
}

/// Places an order and, if `cancels`, cancels it. Repeats each request until its outcome is known.
async fn client(orders: impl Fn(&str, &str) -> Request, key: String, body: Value, cancels: bool) -> ClientLog {
    let deadline = Instant::now() + 3 * DEADLINE;
    let mut log = ClientLog { key, body, answers: Vec::new(), cancelled: false };
    while !log.answers.last().is_some_and(is_definite) && Instant::now() < deadline {
        let place = orders("POST", "/orders").header("idempotency-key", &log.key).json(&log.body);
        log.answers.extend(place.try_send().await);
        time::sleep(PAUSE).await;
    }
    let placed = log.placed().next().filter(|_| cancels);
    while let Some(path) = placed.as_ref().filter(|_| !log.cancelled && Instant::now() < deadline) {
        let cancelled = orders("PATCH", path).json(&json!({"status": "cancelled"})).try_send().await;
        let shown = orders("GET", path).try_send().await;
        log.cancelled = cancelled.is_ok_and(|answer| answer.status == 200)
            || shown.is_ok_and(|order| order.json()["status"] == "cancelled");
        time::sleep(PAUSE).await;
    }
    log
}

/// Returns whether the answer tells the outcome: it is no failure, and no other attempt is in progress.
fn is_definite(answer: &Response) -> bool {
    answer.status < 500 && answer.json()["type"] != "urn:problem-type:request-in-progress"
}

impl ClientLog {
    /// Returns the paths of the orders that this client saw placed.
    pub(crate) fn placed(&self) -> impl Iterator<Item = String> {
        self.answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.header("location").to_owned())
    }

    /// Repeats the request. The same key must lead to the same order, and the order must exist.
    pub(crate) async fn repeat(&mut self, system: &System) -> Result<(), String> {
        let again = client(system.orders.requests(), self.key.clone(), self.body.clone(), false).await;
        let again = again.answers.last().ok_or("no answer")?;
        for path in self.placed() {
            let same = again.header("idempotent-replayed") == "true" && again.header("location") == path;
            ensure(same, || format!("I4: {path} was placed, and repeated: {again}"))?;
            let found = system.orders.get(&path).await;
            ensure(found.status == 200, || format!("I5: {path} was placed: {found}"))?;
        }
        self.answers.push(again.clone());
        Ok(())
    }
}

pub(crate) fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}
