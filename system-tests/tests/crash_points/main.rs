//! Crashes at every step. Two requests run at the same time, and the process aborts when the first or the second of them
//! reaches the crash point. It is restarted, the clients repeat their requests until they know the outcome, and all
//! invariants hold.
//!
//! `TEST_SEED=n` replaces the first seed, 42. `CRASH_AT=part` selects the crash points whose names contain this part.
//! `THOROUGH=1` runs more seeds.

mod scenario;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sqlx::Executor;
use system_tests::durable::Durable;
use system_tests::invariants::{DatabaseSnapshot, settled};
use system_tests::{DEADLINE, Fault, Launch, Links, ORDERS, PRODUCTS, Service, System, eventually, is_thorough, seed};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use crate::scenario::{ClientLog, Scenario, ensure};

/// Seeds for each crash point: a few by default, more with `THOROUGH=1`.
const SEEDS: u64 = 2;
const THOROUGH_SEEDS: u64 = 5;
/// Systems that run at the same time. Each mostly waits: for a process to start, or for an order to be abandoned.
const SYSTEMS: usize = 8;
/// The time limit of an order, in seconds.
const ORDER_TIMEOUT: &str = "0.5";
/// The same where batches are shared: each of the steps of an order then pauses before its batch is collected.
const SHARED_ORDER_TIMEOUT: &str = "3";
/// The number of SIGABRT on Linux.
const ABORTED: Option<i32> = Some(6);

/// What the two clients do when the process crashes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    /// Two orders are placed.
    Place,
    /// Two orders are rejected, or fail.
    Fail,
    /// Two orders are cancelled.
    Cancel,
    /// The reconciler finishes two orders that their clients abandoned.
    Reconcile,
}

/// Every crash point, with the plan that reaches it. Three plans release stock.
const POINTS: [(&str, &str, Plan); 32] = [
    (ORDERS, "place: before the intent", Plan::Place),
    (ORDERS, "place: after the intent", Plan::Place),
    (ORDERS, "place: user answered", Plan::Place),
    (ORDERS, "place: reservation answered", Plan::Place),
    (PRODUCTS, "reserve: before", Plan::Place),
    (PRODUCTS, "reserve: done", Plan::Place),
    (PRODUCTS, "reserve many: before", Plan::Place),
    (PRODUCTS, "reserve many: done", Plan::Place),
    (ORDERS, "place: before settling", Plan::Place),
    (ORDERS, "place: after settling", Plan::Place),
    (ORDERS, "abort: before", Plan::Fail),
    (ORDERS, "abort: after", Plan::Fail),
    (ORDERS, "release: before", Plan::Fail),
    (PRODUCTS, "release reservation: before", Plan::Fail),
    (PRODUCTS, "release reservation: done", Plan::Fail),
    (PRODUCTS, "release reservations: before", Plan::Fail),
    (PRODUCTS, "release reservations: done", Plan::Fail),
    (ORDERS, "release: acknowledged", Plan::Fail),
    (ORDERS, "release: finished", Plan::Fail),
    (ORDERS, "cancel: before", Plan::Cancel),
    (ORDERS, "cancel: after", Plan::Cancel),
    (ORDERS, "release: before", Plan::Cancel),
    (PRODUCTS, "release reservation: before", Plan::Cancel),
    (PRODUCTS, "release reservation: done", Plan::Cancel),
    (PRODUCTS, "release reservations: before", Plan::Cancel),
    (PRODUCTS, "release reservations: done", Plan::Cancel),
    (ORDERS, "release: acknowledged", Plan::Cancel),
    (ORDERS, "release: finished", Plan::Cancel),
    (ORDERS, "reconcile: claimed", Plan::Reconcile),
    (PRODUCTS, "release reservations: done", Plan::Reconcile),
    (ORDERS, "release: acknowledged", Plan::Reconcile),
    (ORDERS, "reconcile: released", Plan::Reconcile),
];

/// One crash.
#[derive(Clone, Copy)]
struct Case {
    service: &'static str,
    point: &'static str,
    plan: Plan,
    /// The crash happens at this pass of the point: the first or the second.
    nth: u64,
    seed: u64,
}

/// How order-service groups the two orders into calls and statements.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Batching {
    /// As the timing decides.
    Natural,
    /// Both in one: each batch waits before it is collected.
    Shared,
    /// Each in its own.
    Single,
}

#[tokio::test(flavor = "multi_thread")]
async fn recovers_from_a_crash_at_every_step() {
    let part = env::var("CRASH_AT").unwrap_or_default();
    let points: Vec<_> = POINTS.iter().filter(|(_, point, _)| point.contains(&part)).collect();
    assert!(!points.is_empty(), "no crash point is called {part}");
    let seeds = if is_thorough() { THOROUGH_SEEDS } else { SEEDS };
    let cases = points
        .into_iter()
        .flat_map(|&(service, point, plan)| [1, 2].map(|nth| Case { service, point, plan, nth, seed: 0 }))
        .filter(|case| case.nth == 1 || !case.is_batched()) // there may be no second batch
        .flat_map(|case| (seed()..seed() + seeds).map(move |seed| Case { seed, ..case }));
    let cases = RefCell::new(cases);
    let systems = (0..SYSTEMS).map(|_| run(|| cases.borrow_mut().next()));
    let failures: Vec<_> = join_all(systems).await.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A crash point that [`POINTS`] lacks would never be reached.
#[test]
fn lists_every_crash_point_of_the_services() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut existing = BTreeSet::new();
    for service in [ORDERS, PRODUCTS] {
        for text in texts(&workspace.join(service).join("src")) {
            let names = text.split("crash_point!(\"").skip(1).filter_map(|rest| rest.split('"').next());
            existing.extend(names.map(|point| (service, point.to_owned())));
        }
    }
    let listed: BTreeSet<_> = POINTS.iter().map(|(service, point, _)| (*service, (*point).to_owned())).collect();
    assert_eq!(existing, listed);
}

/// Returns the texts of the files in this folder and below it.
fn texts(folder: &Path) -> Vec<String> {
    let paths = fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path());
    let read = |path: PathBuf| if path.is_dir() { texts(&path) } else { vec![fs::read_to_string(path).expect("text")] };
    paths.flat_map(read).collect()
}

/// Runs cases in one system, one after the other, up to the first failure.
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
        let logs = case.run(&mut durable).await.map_err(|reason| {
            while next().is_some() {} // the other systems stop after their current case
            format!("{case}: {reason}")
        })?;
        placed.extend(logs.iter().flat_map(ClientLog::placed));
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
    /// Crashes the process, restarts it and checks everything that must hold. Returns what the clients saw.
    async fn run(&self, durable: &mut Durable) -> Result<Vec<ClientLog>, String> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let scenario = Scenario::new(self, &durable.system, &mut random).await;
        let batching = self.batching(&mut random);
        let clients = match self.plan {
            Plan::Place | Plan::Fail => {
                self.disturb(&durable.links, &scenario, &mut random);
                self.arm(&mut durable.system, batching).await;
                let mut clients = scenario.clients(&durable.system);
                if random.random() {
                    clients.extend(scenario.clients(&durable.system)); // each key is used twice at the same time
                }
                clients
            }
            Plan::Cancel => {
                all(scenario.without_cancelling().clients(&durable.system)).await?;
                self.disturb(&durable.links, &scenario, &mut random);
                self.arm(&mut durable.system, batching).await;
                scenario.clients(&durable.system)
            }
            Plan::Reconcile => self.abandon_two_orders(durable, &scenario, batching).await?,
        };
        let service = self.service(&mut durable.system);
        let ended = time::timeout(DEADLINE, service.ended()).await;
        let ended = ended.map_err(|_| "no request reaches this crash point")?;
        ensure(ended.signal() == ABORTED, || format!("it did not abort: {ended}"))?;
        heal(&durable.links);
        service.restart().await;

        let mut logs = all(clients).await?;
        for log in &mut logs {
            scenario.check(log)?;
            log.repeat(&durable.system).await?;
        }
        settled(durable).await.ok_or("I8: an order is not settled")?;
        let snapshot = DatabaseSnapshot::read(durable).await.map_err(|error| error.to_string())?;
        let violations = snapshot.violations(&scenario.stock);
        ensure(violations.is_empty(), || violations.join("\n  "))?;
        scenario.check_keys(&logs, &snapshot)?;
        Ok(logs)
    }

    /// Leaves two orders behind that wait for their release, or were not placed in time. Then starts a reconciler that will
    /// crash.
    async fn abandon_two_orders(
        &self,
        durable: &mut Durable,
        scenario: &Scenario,
        batching: Batching,
    ) -> Result<Vec<JoinHandle<ClientLog>>, String> {
        let mut waiting = None;
        if scenario.cancels {
            all(scenario.without_cancelling().clients(&durable.system)).await?;
            durable.links.orders_to_products.set(Fault::Refuse);
            all(scenario.clients(&durable.system)).await?;
        } else {
            durable.links.orders_to_users.set(Fault::BlackHole);
            durable.system.orders.kill().await;
            // Long enough that order-service does not give up its orders.
            durable.system.orders.restart_with(&[("ORDER_TIMEOUT_SECONDS", "60")]).await;
            waiting = Some(scenario.clients(&durable.system));
            let both = eventually(true, async || {
                let snapshot = DatabaseSnapshot::read(durable).await.expect("the database answers");
                let keys = snapshot.by_key();
                scenario.keys.iter().all(|key| keys.get(&**key).is_some_and(|rows| rows[0].state == "placing"))
            });
            ensure(both.await, || "the two intents are not stored".to_owned())?;
        }
        durable.system.orders.kill().await;
        // Ages both by a minute. They will be claimed as well, or on a busy machine the process would crash while it starts.
        let mut orders = durable.database(ORDERS).await.map_err(|error| error.to_string())?;
        let age = "alter table releases alter claimed_until set default 'infinity'; update releases set claimed_until = 'infinity';
            update intents set begun_at = begun_at - interval '1 minute'";
        orders.execute(age).await.map_err(|error| error.to_string())?;
        heal(&durable.links);
        self.start_armed(&mut durable.system, batching).await;
        // From now on the reconciler can claim both at the same time.
        let free = "alter table releases alter claimed_until set default '-infinity';
            update releases set claimed_until = '-infinity' where claimed_until = 'infinity'";
        orders.execute(free).await.map_err(|error| error.to_string())?;
        Ok(waiting.unwrap_or_else(|| scenario.clients(&durable.system)))
    }

    /// Adds network faults, chosen at random.
    fn disturb(&self, links: &Links, scenario: &Scenario, random: &mut StdRng) {
        let delay = Fault::Delay { base: Duration::ZERO, jitter: Duration::from_millis(20) };
        links.orders_to_products.set([Fault::None, delay, Fault::LoseAnswers(0.3)][random.random_range(0..3)]);
        links.orders_to_users.set(if scenario.users_unreachable {
            Fault::Refuse
        } else {
            [Fault::None, delay][random.random_range(0..2)]
        });
    }

    /// Restarts the service that will crash, and order-service with the batching of this case.
    async fn arm(&self, system: &mut System, batching: Batching) {
        system.orders.kill().await;
        self.start_armed(system, batching).await;
    }

    async fn start_armed(&self, system: &mut System, batching: Batching) {
        let crash_at = format!("{}:{}", self.point, self.nth);
        let crash_at = ("CRASH_AT", &*crash_at);
        let mut variables = match batching {
            Batching::Natural => vec![],
            // Longer than two orders that are sent at the same time arrive apart, on a busy machine too.
            Batching::Shared => {
                vec![("PAUSE_AT", "batch: before collecting:250"), ("ORDER_TIMEOUT_SECONDS", SHARED_ORDER_TIMEOUT)]
            }
            Batching::Single => vec![("LIMIT_AT", "batch: items:1")],
        };
        if self.service == PRODUCTS {
            system.products.kill().await;
            system.products.restart_with(&[crash_at]).await;
        } else {
            variables.push(crash_at);
        }
        system.orders.restart_with(&variables).await;
    }

    /// Returns whether only a call for several orders reaches the crash point.
    fn is_batched(&self) -> bool {
        ["reserve many: ", "release reservations: "].iter().any(|call| self.point.starts_with(call))
    }

    /// Returns the batching with which an order reaches the crash point.
    fn batching(&self, random: &mut StdRng) -> Batching {
        match self.service {
            PRODUCTS if self.is_batched() => Batching::Shared,
            PRODUCTS => Batching::Single,
            _ => [Batching::Natural, Batching::Shared][random.random_range(0..2)],
        }
    }

    fn service<'a>(&self, system: &'a mut System) -> &'a mut Service {
        if self.service == ORDERS { &mut system.orders } else { &mut system.products }
    }
}

fn heal(links: &Links) {
    links.orders_to_products.heal();
    links.orders_to_users.heal();
}

async fn all(clients: Vec<JoinHandle<ClientLog>>) -> Result<Vec<ClientLog>, String> {
    join_all(clients).await.into_iter().map(|log| log.map_err(|error| error.to_string())).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}:{}/seed {}", self.plan, self.point, self.nth, self.seed)
    }
}
