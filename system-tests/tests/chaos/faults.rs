//! What goes wrong: processes are killed and frozen, and what is between them fails in every way that the proxy knows.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use system_tests::durable::Durable;
use system_tests::{Fault, Links, ORDERS, PRODUCTS, Proxy, Service, Signal, USERS};
use tokio::task;
use tokio::time::{self, Instant};

use crate::say;

/// With fewer a run proves nothing.
const MIN: usize = 60;
const MIN_OF_EACH_KIND: usize = 8;
/// From one fault to the next.
const PAUSES_MS: std::ops::Range<u64> = 700..1500;
/// How long a process is dead.
const DEATHS_MS: std::ops::Range<u64> = 0..400;
/// How long one stands still.
const FREEZES_MS: std::ops::Range<u64> = 1000..5000;
/// How long a link is broken.
const BREAKS_MS: std::ops::Range<u64> = 300..2000;

/// Every kind of fault.
const KINDS: [Kind; 12] = [
    Kind::Kill(USERS),
    Kind::Kill(PRODUCTS),
    Kind::Kill(ORDERS),
    Kind::KillPostgres,
    Kind::Freeze,
    Kind::Break("late", Fault::Delay { base: Duration::from_millis(50), jitter: Duration::from_millis(1500) }),
    Kind::Break("thin", Fault::Throttle(2000)),
    Kind::Break("black hole", Fault::BlackHole),
    Kind::Break("reset", Fault::Reset),
    Kind::Break("refused", Fault::Refuse),
    Kind::Break("answers cut", Fault::CloseAfter(60)),
    Kind::Break("answers lost", Fault::LoseAnswers(0.5)),
];

#[derive(Clone, Copy)]
enum Kind {
    Kill(&'static str),
    KillPostgres,
    Freeze,
    Break(&'static str, Fault),
}

/// What is wrong for a while.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passing {
    /// This service stands still.
    Frozen(&'static str),
    /// This one of the three links is broken.
    Broken(usize),
}

/// All that goes wrong with a system.
pub(crate) struct Faults<'a> {
    durable: &'a mut Durable,
    began: Instant,
    /// What is wrong now, and until when.
    passing: Vec<(Instant, Passing)>,
    /// What is left of the dozen.
    kinds: Vec<Kind>,
    counts: BTreeMap<String, usize>,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(durable: &'a mut Durable) -> Self {
        Self { durable, began: Instant::now(), passing: Vec::new(), kinds: Vec::new(), counts: BTreeMap::new() }
    }

    /// One fault after the other for so long, in each dozen each kind once.
    pub(crate) async fn strike_for(&mut self, length: Duration, dice: &mut StdRng) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            let next = Instant::now() + some(PAUSES_MS, dice);
            self.pass_until(next).await;
            if self.kinds.is_empty() {
                self.kinds = KINDS.to_vec();
                self.kinds.shuffle(dice);
            }
            let kind = self.kinds.remove(0);
            self.strike(kind, dice).await;
        }
    }

    /// Whether there were enough for the run to prove something.
    pub(crate) fn are_enough(&self) -> bool {
        let of_each = self.counts.len() == KINDS.len() && self.counts.values().all(|count| *count >= MIN_OF_EACH_KIND);
        of_each && self.counts.values().sum::<usize>() >= MIN
    }

    /// Since the first of them.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends everything that is wrong; how many faults there were of each kind.
    pub(crate) async fn heal(mut self) -> BTreeMap<String, usize> {
        let passing = std::mem::take(&mut self.passing);
        for (_, passing) in passing {
            self.end(passing).await;
        }
        self.counts
    }

    /// Waits, and ends meanwhile what has lasted long enough.
    async fn pass_until(&mut self, next: Instant) {
        loop {
            let first = self.passing.iter().copied().min_by_key(|(until, _)| *until);
            let Some((until, passing)) = first.filter(|(until, _)| *until < next) else { break };
            time::sleep_until(until).await;
            self.passing.retain(|(_, other)| *other != passing);
            self.end(passing).await;
        }
        time::sleep_until(next).await;
    }

    async fn strike(&mut self, kind: Kind, dice: &mut StdRng) {
        let what = match kind {
            Kind::Kill(name) => {
                let death = some(DEATHS_MS, dice);
                let service = self.service(name);
                service.kill().await;
                time::sleep(death).await;
                service.restart().await;
                format!("kill {name}")
            }
            Kind::KillPostgres => {
                let death = some(DEATHS_MS, dice);
                task::block_in_place(|| self.durable.postgres.kill());
                time::sleep(death).await;
                task::block_in_place(|| self.durable.postgres.restart());
                "kill PostgreSQL".to_owned()
            }
            Kind::Freeze => {
                let name = *[USERS, PRODUCTS, ORDERS].choose(dice).expect("there are three");
                self.service(name).signal(Signal::Freeze).await;
                self.lasts(Passing::Frozen(name), some(FREEZES_MS, dice));
                "freeze".to_owned()
            }
            Kind::Break(name, fault) => {
                let link = dice.random_range(0..3);
                self.links()[link].set(fault);
                self.lasts(Passing::Broken(link), some(BREAKS_MS, dice));
                name.to_owned()
            }
        };
        say(format_args!("chaos: {:6.1} s  {what}", self.began.elapsed().as_secs_f64()));
        *self.counts.entry(what).or_default() += 1;
    }

    fn lasts(&mut self, passing: Passing, how_long: Duration) {
        self.passing.retain(|(_, other)| *other != passing);
        self.passing.push((Instant::now() + how_long, passing));
    }

    async fn end(&mut self, passing: Passing) {
        match passing {
            Passing::Frozen(name) => self.service(name).signal(Signal::Thaw).await,
            Passing::Broken(link) => self.links()[link].heal(),
        }
    }

    fn service(&mut self, name: &str) -> &mut Service {
        let system = &mut self.durable.system;
        match name {
            USERS => &mut system.users,
            PRODUCTS => &mut system.products,
            _ => &mut system.orders,
        }
    }

    fn links(&self) -> [&Proxy; 3] {
        let Links { orders_to_users, orders_to_products, products_to_users } = &self.durable.links;
        [orders_to_users, orders_to_products, products_to_users]
    }
}

fn some(range: std::ops::Range<u64>, dice: &mut StdRng) -> Duration {
    Duration::from_millis(dice.random_range(range))
}
