//! A crash at every step: of two requests at the same time, at the first or the second to come by, the process aborts
//! there. It is started again, its clients ask again with their keys until they know, and everybody has what he was told.
//!
//! `TEST_SEED=n` begins with another seed than 42, `CRASH_AT=part` keeps to the points whose names have this part.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use system_tests::durable::Durable;
use system_tests::invariants::{DatabaseSnapshot, settled};
use system_tests::{DEADLINE, Fault, Launch, Links, ORDERS, PRODUCTS, Received, Sending, Service, System};
use system_tests::{eventually, seed};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

/// Seeds for each point.
const SEEDS: u64 = 5;
/// Systems that run at the same time. Each mostly waits: for a process to start, for what was left to be given up.
const SYSTEMS: usize = 8;
/// Between two tries of a client.
const PAUSE: Duration = Duration::from_millis(20);
/// Seconds that an order has.
const ORDER_TIMEOUT: &str = "0.5";
/// How order-service asks its peers for two orders in one call: each step waits for another order, for up to 2 s when it is
/// the first of its kind, and else 0.3 s.
const TOGETHER: &str = "wait for company";
/// SIGABRT, as Linux and everybody else numbers it.
const ABORTED: Option<i32> = Some(6);
/// There is neither such a user nor such a product.
const NONE: i64 = 999_999_999;

/// During what the process dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    /// Two orders are placed.
    Place,
    /// Two orders are refused, or fail.
    Fail,
    /// Two orders are cancelled.
    Cancel,
    /// The reconciler finishes two orders that nobody else will.
    Reconcile,
}

/// Every crash point, with the story in which somebody comes by. A release is part of three.
const POINTS: [(&str, &str, Story); 32] = [
    (ORDERS, "place: before the intent", Story::Place),
    (ORDERS, "place: after the intent", Story::Place),
    (ORDERS, "place: user answered", Story::Place),
    (ORDERS, "place: take answered", Story::Place),
    (PRODUCTS, "take: before", Story::Place),
    (PRODUCTS, "take: done", Story::Place),
    (PRODUCTS, "take each: before", Story::Place),
    (PRODUCTS, "take each: done", Story::Place),
    (ORDERS, "place: before settling", Story::Place),
    (ORDERS, "place: after settling", Story::Place),
    (ORDERS, "give up: before", Story::Fail),
    (ORDERS, "give up: after", Story::Fail),
    (ORDERS, "release: before", Story::Fail),
    (PRODUCTS, "give back: before", Story::Fail),
    (PRODUCTS, "give back: done", Story::Fail),
    (PRODUCTS, "give back each: before", Story::Fail),
    (PRODUCTS, "give back each: done", Story::Fail),
    (ORDERS, "release: acknowledged", Story::Fail),
    (ORDERS, "release: finished", Story::Fail),
    (ORDERS, "cancel: before", Story::Cancel),
    (ORDERS, "cancel: after", Story::Cancel),
    (ORDERS, "release: before", Story::Cancel),
    (PRODUCTS, "give back: before", Story::Cancel),
    (PRODUCTS, "give back: done", Story::Cancel),
    (PRODUCTS, "give back each: before", Story::Cancel),
    (PRODUCTS, "give back each: done", Story::Cancel),
    (ORDERS, "release: acknowledged", Story::Cancel),
    (ORDERS, "release: finished", Story::Cancel),
    (ORDERS, "reconcile: claimed", Story::Reconcile),
    (PRODUCTS, "give back each: done", Story::Reconcile),
    (ORDERS, "release: acknowledged", Story::Reconcile),
    (ORDERS, "reconcile: released", Story::Reconcile),
];

/// One crash.
#[derive(Clone, Copy)]
struct Case {
    service: &'static str,
    point: &'static str,
    story: Story,
    /// Who dies: the first to come by, or the second.
    nth: u64,
    seed: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_step_a_process_dies_at_all_is_well_after_its_restart() {
    let part = env::var("CRASH_AT").unwrap_or_default();
    let points: Vec<_> = POINTS.iter().filter(|(_, point, _)| point.contains(&part)).collect();
    assert!(!points.is_empty(), "no crash point is called {part}");
    let cases = points
        .into_iter()
        .flat_map(|&(service, point, story)| [1, 2].map(|nth| Case { service, point, story, nth, seed: 0 }))
        .filter(|case| case.nth == 1 || !case.point.contains("each")) // there may be no second batch
        .flat_map(|case| (seed()..seed() + SEEDS).map(move |seed| Case { seed, ..case }));
    let cases = RefCell::new(cases);
    let systems = (0..SYSTEMS).map(|_| run(|| cases.borrow_mut().next()));
    let failures: Vec<_> = join_all(systems).await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A crash point that is forgotten here would never be passed.
#[test]
fn every_crash_point_has_its_story() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut there = BTreeSet::new();
    for service in [ORDERS, PRODUCTS] {
        for text in texts(&workspace.join(service).join("src")) {
            let named = text.split("crash_point!(\"").skip(1).filter_map(|rest| rest.split('"').next());
            there.extend(named.map(|point| (service, point.to_owned())));
        }
    }
    let told: BTreeSet<_> = POINTS.iter().map(|(service, point, _)| (*service, (*point).to_owned())).collect();
    assert_eq!(there, told);
}

/// What the files of this folder say, and of those in it.
fn texts(folder: &Path) -> Vec<String> {
    let paths = fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path());
    let read = |path: PathBuf| if path.is_dir() { texts(&path) } else { vec![fs::read_to_string(path).expect("text")] };
    paths.flat_map(read).collect()
}

/// Runs one case after the other in one system, up to the first that fails.
async fn run(next: impl Fn() -> Option<Case>) -> Result<(), String> {
    let prepare = |launch: Launch| {
        let launch = launch.with_fault_injection().env("RUST_LOG", "off");
        launch.env("ORDER_TIMEOUT_SECONDS", ORDER_TIMEOUT).env("RECONCILE_SECONDS", 0.1)
    };
    let Some(mut durable) = Durable::start(seed(), prepare).await else { return Ok(()) };
    durable.system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    let mut placed = BTreeSet::new();
    while let Some(case) = next() {
        let began = Instant::now();
        let told = case.happens(&mut durable).await.map_err(|what| {
            while next().is_some() {} // the others need not go on
            format!("{case}: {what}")
        })?;
        placed.extend(told.iter().flat_map(ClientLog::placed));
        println!("{case}: {:.1?}", began.elapsed());
    }
    for path in placed {
        let found = durable.system.orders.get(&path).await;
        ensure(found.status == 200, || format!("I5: {path} was placed: {found}"))?;
    }
    durable.system.stop().await;
    Ok(())
}

impl Case {
    /// The crash, and all that must hold after it. What the clients were told.
    async fn happens(&self, durable: &mut Durable) -> Result<Vec<ClientLog>, String> {
        let mut dice = StdRng::seed_from_u64(self.seed);
        let wish = Scenario::of(self, &durable.system, &mut dice).await;
        let manner = self.manner(&mut dice);
        let clients = match self.story {
            Story::Place | Story::Fail => {
                self.disturb(&durable.links, &wish, &mut dice);
                self.arm(&mut durable.system, manner).await;
                let mut clients = wish.clients(&durable.system);
                if dice.random() {
                    clients.extend(wish.clients(&durable.system)); // everybody asks twice, at the same time
                }
                clients
            }
            Story::Cancel => {
                all(Scenario { cancels: false, ..wish.clone() }.clients(&durable.system)).await?;
                self.disturb(&durable.links, &wish, &mut dice);
                self.arm(&mut durable.system, manner).await;
                wish.clients(&durable.system)
            }
            Story::Reconcile => self.leave_behind(durable, &wish, manner).await?,
        };
        let service = self.of(&mut durable.system);
        let ended = time::timeout(DEADLINE, service.ended()).await.map_err(|_| "nobody comes by this crash point")?;
        ensure(ended.signal() == ABORTED, || format!("it did not abort: {ended}"))?;
        heal(&durable.links);
        service.restart().await;

        let mut told = all(clients).await?;
        for told in &mut told {
            wish.check(told)?;
            told.ask_again(&durable.system).await?;
        }
        settled(durable).await.ok_or("I8: an order is half done still")?;
        let books = DatabaseSnapshot::read(durable).await.map_err(|error| error.to_string())?;
        let violations = books.violations(&wish.stock);
        ensure(violations.is_empty(), || violations.join("\n  "))?;
        wish.keys.iter().try_for_each(|key| one_order(key, &told, &books))?;
        Ok(told)
    }

    /// Two orders that wait for their release, or have waited for too long to be placed, and a reconciler that is to die.
    async fn leave_behind(
        &self,
        durable: &mut Durable,
        wish: &Scenario,
        manner: &str,
    ) -> Result<Vec<JoinHandle<ClientLog>>, String> {
        let mut waiting = None;
        if wish.cancels {
            all(Scenario { cancels: false, ..wish.clone() }.clients(&durable.system)).await?;
            durable.links.orders_to_products.set(Fault::Refuse);
            all(wish.clients(&durable.system)).await?;
        } else {
            durable.links.orders_to_users.set(Fault::BlackHole);
            durable.system.orders.kill().await;
            durable.system.orders.restart_with(&[("ORDER_TIMEOUT_SECONDS", "60")]).await; // it does not give up itself
            waiting = Some(wish.clients(&durable.system));
            let both = eventually(true, async || {
                let books = DatabaseSnapshot::read(durable).await.expect("the database answers");
                let keys = books.by_key();
                wish.keys.iter().all(|key| keys.get(&**key).is_some_and(|rows| rows[0].state == "placing"))
            });
            ensure(both.await, || "two intents were not seen at once".to_owned())?;
        }
        durable.system.orders.kill().await;
        // A minute later; and claimed, or on a busy machine it dies before it is known to have started.
        let later = "update orders set created_at = created_at - interval '1 minute', claimed_until = 'infinity'";
        let mut orders = durable.database(ORDERS).await.map_err(|error| error.to_string())?;
        sqlx::query(later).execute(&mut orders).await.map_err(|error| error.to_string())?;
        heal(&durable.links);
        self.start_armed(&mut durable.system, manner).await;
        // Now both can be claimed, in the same moment.
        let free = "update orders set claimed_until = '-infinity' where claimed_until = 'infinity'";
        sqlx::query(free).execute(&mut orders).await.map_err(|error| error.to_string())?;
        Ok(waiting.unwrap_or_else(|| wish.clients(&durable.system)))
    }

    /// What else is wrong meanwhile.
    fn disturb(&self, links: &Links, wish: &Scenario, dice: &mut StdRng) {
        let late = Fault::Delay { base: Duration::ZERO, jitter: Duration::from_millis(20) };
        links.orders_to_products.set([Fault::None, late, Fault::LoseAnswers(0.3)][dice.random_range(0..3)]);
        links.orders_to_users.set(if wish.users_away {
            Fault::Refuse
        } else {
            [Fault::None, late][dice.random_range(0..2)]
        });
    }

    /// Another life for the service, in which it will die at the crash point; and one for order-service, in which it asks its
    /// peers in this manner.
    async fn arm(&self, system: &mut System, manner: &str) {
        system.orders.kill().await;
        self.start_armed(system, manner).await;
    }

    async fn start_armed(&self, system: &mut System, manner: &str) {
        let crash_at = ("CRASH_AT", &*self.crash_at());
        // Who waits for company, and has none, needs this long for each step, of which there are three.
        let timeout = ("ORDER_TIMEOUT_SECONDS", if manner == TOGETHER { "7" } else { ORDER_TIMEOUT });
        // Beside the one that the tests are to see, if there is one.
        let manner = env::var("MISTAKE").map_or_else(|_| manner.to_owned(), |mistake| format!("{mistake},{manner}"));
        if self.service == PRODUCTS {
            system.products.kill().await;
            system.products.restart_with(&[crash_at]).await;
            system.orders.restart_with(&[("MISTAKE", &manner), timeout]).await;
        } else {
            system.orders.restart_with(&[crash_at, ("MISTAKE", &manner), timeout]).await;
        }
    }

    /// How order-service asks its peers, so that somebody comes by the crash point: for each order alone, for two in one call,
    /// or as it happens.
    fn manner(&self, dice: &mut StdRng) -> &'static str {
        match self.service {
            PRODUCTS if self.point.contains("each") => TOGETHER,
            PRODUCTS => "one by one",
            _ => ["", TOGETHER][dice.random_range(0..2)],
        }
    }

    fn crash_at(&self) -> String {
        format!("{}:{}", self.point, self.nth)
    }

    fn of<'a>(&self, system: &'a mut System) -> &'a mut Service {
        if self.service == ORDERS { &mut system.orders } else { &mut system.products }
    }
}

/// What two clients want, each with a key of its own.
#[derive(Clone)]
struct Scenario {
    keys: [String; 2],
    body: Value,
    /// What they must be told in the end, if that is certain.
    status: Option<u16>,
    /// Whether they cancel it then.
    cancels: bool,
    /// Whether user-service cannot be reached.
    users_away: bool,
    /// The units of each product before.
    stock: BTreeMap<i64, i64>,
}

impl Scenario {
    async fn of(case: &Case, system: &System, dice: &mut StdRng) -> Self {
        let quantity = dice.random_range(1..=3);
        // Enough for one of the two, unless both must come far to meet the crash point.
        let scarce = case.story == Story::Place && !case.point.ends_with("settling") && dice.random();
        let units = if scarce { quantity } else { 100 };
        let lamp = system.add_product("Lamp", 19.99, units).await;
        let desk = system.add_product("Desk", 5.0, 100).await;
        let line = |product: i64, quantity: i64| json!({"productId": product, "quantity": quantity});
        let one = |user: i64, line: Value| json!({"userId": user, "products": [line]});
        let fails = if case.story == Story::Fail { dice.random_range(0..5) } else { 5 };
        let (body, status) = match fails {
            0 => (one(NONE, line(lamp, quantity)), Some(400)),
            1 => (one(1, line(lamp, units + 1)), Some(409)),
            2 => (one(1, line(NONE, 1)), Some(400)),
            3 => (one(1, json!({"productId": lamp, "quantity": quantity, "price": 1})), Some(409)),
            _ => (json!({"userId": 1, "products": [line(desk, 1), line(lamp, quantity)]}), (!scarce).then_some(201)),
        };
        let cancels = match case.story {
            Story::Cancel => true,
            _ => status != Some(400) && dice.random(),
        };
        let keys = ["a", "b"].map(|client| format!("{case}/{client}").replace(' ', "-"));
        let stock = BTreeMap::from([(lamp, units), (desk, 100)]);
        Self { keys, body, status, cancels, users_away: fails == 4, stock }
    }

    /// The clients, who ask until they know.
    fn clients(&self, system: &System) -> Vec<JoinHandle<ClientLog>> {
        let client = |key: &String| client(system.orders.caller(), key.clone(), self.body.clone(), self.cancels);
        self.keys.iter().map(client).map(tokio::spawn).collect()
    }

    /// Whether they were told what they must be.
    fn check(&self, told: &ClientLog) -> Result<(), String> {
        let last = told.answers.last().ok_or("no answer")?;
        ensure(self.status.is_none_or(|status| last.status == status), || format!("{:?}, not {last}", self.status))?;
        let cancelled = self.cancels && last.status == 201;
        ensure(told.cancelled == cancelled, || format!("it is not cancelled: {last}"))
    }
}

/// What a client was told of what it asked for under its key.
struct ClientLog {
    key: String,
    body: Value,
    answers: Vec<Received>,
    /// Whether it has cancelled the order.
    cancelled: bool,
}

/// Asks for an order, and then perhaps for its cancellation, each until it knows what came of it.
async fn client(orders: impl Fn(&str, &str) -> Sending, key: String, body: Value, cancels: bool) -> ClientLog {
    let deadline = Instant::now() + 3 * DEADLINE;
    let mut told = ClientLog { key, body, answers: Vec::new(), cancelled: false };
    while !told.answers.last().is_some_and(is_definite) && Instant::now() < deadline {
        let place = orders("POST", "/orders").header("idempotency-key", &told.key).json(&told.body);
        told.answers.extend(place.try_send().await);
        time::sleep(PAUSE).await;
    }
    let placed = told.placed().next().filter(|_| cancels);
    while let Some(path) = placed.as_ref().filter(|_| !told.cancelled && Instant::now() < deadline) {
        let cancelled = orders("PATCH", path).json(&json!({"status": "cancelled"})).try_send().await;
        let shown = orders("GET", path).try_send().await;
        told.cancelled = cancelled.is_ok_and(|answer| answer.status == 200)
            || shown.is_ok_and(|order| order.json()["status"] == "cancelled");
        time::sleep(PAUSE).await;
    }
    told
}

/// Whether it says what came of it, and not only that something is still on its way or away.
fn is_definite(answer: &Received) -> bool {
    answer.status < 500 && answer.json()["type"] != "urn:problem-type:request-in-progress"
}

impl ClientLog {
    /// The paths of the orders that it was told of.
    fn placed(&self) -> impl Iterator<Item = String> {
        self.answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.header("location").to_owned())
    }

    /// The same key once more leads to the same order, which is there.
    async fn ask_again(&mut self, system: &System) -> Result<(), String> {
        let again = client(system.orders.caller(), self.key.clone(), self.body.clone(), false).await;
        let again = again.answers.last().ok_or("no answer")?;
        for path in self.placed() {
            let same = again.header("idempotent-replayed") == "true" && again.header("location") == path;
            ensure(same, || format!("I4: {path} was placed, and asked again: {again}"))?;
            let found = system.orders.get(&path).await;
            ensure(found.status == 200, || format!("I5: {path} was placed: {found}"))?;
        }
        self.answers.push(again.clone());
        Ok(())
    }
}

/// One order under a key that somebody was told of, and else none, whatever was asked and refused.
fn one_order(key: &str, told: &[ClientLog], books: &DatabaseSnapshot) -> Result<(), String> {
    let told: Vec<_> = told.iter().filter(|told| told.key == key).collect();
    let placed = told.iter().any(|told| told.placed().next().is_some());
    let state = if told.iter().any(|told| told.cancelled) { "cancelled" } else { "pending" };
    let expected: Vec<_> = placed.then_some(state).into_iter().collect();
    let rows = books.by_key().remove(key).unwrap_or_default();
    let states: Vec<_> = rows.iter().map(|order| &*order.state).collect();
    ensure(states == expected, || format!("I4 or I6: {key}: {states:?}, not {expected:?}"))
}

fn heal(links: &Links) {
    links.orders_to_products.heal();
    links.orders_to_users.heal();
}

async fn all(clients: Vec<JoinHandle<ClientLog>>) -> Result<Vec<ClientLog>, String> {
    join_all(clients).await.into_iter().map(|told| told.map_err(|died| died.to_string())).collect()
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}:{}/seed {}", self.story, self.point, self.nth, self.seed)
    }
}
