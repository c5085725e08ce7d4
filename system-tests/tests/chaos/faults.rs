//! The faults: processes are killed and frozen, and links fail in every way that the proxy can simulate.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use system_tests::durable::Durable;
use system_tests::{Fault, Links, ORDERS, PRODUCTS, Proxy, Service, Signal, USERS};
use tokio::task;
use tokio::time::{self, Instant};

use crate::print;

/// The time from one fault to the next.
const PAUSES_MS: std::ops::Range<u64> = 700..1500;
/// The time from a kill to the restart.
const DEATHS_MS: std::ops::Range<u64> = 0..400;
/// The time that a process stands still.
const FREEZES_MS: std::ops::Range<u64> = 1000..5000;
/// The time that a link is faulty.
const BREAKS_MS: std::ops::Range<u64> = 300..2000;

/// Every kind of fault.
const KINDS: [Kind; 12] = [
    Kind::Kill(USERS),
    Kind::Kill(PRODUCTS),
    Kind::Kill(ORDERS),
    Kind::KillPostgres,
    Kind::Freeze,
    Kind::Break("delay", Fault::Delay { base: Duration::from_millis(50), jitter: Duration::from_millis(1500) }),
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

/// A fault that ends later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    /// This service is frozen.
    Frozen(&'static str),
    /// This one of the three links is faulty.
    Broken(usize),
}

/// The faults of a system.
pub(crate) struct Faults<'a> {
    durable: &'a mut Durable,
    began: Instant,
    /// The faults that last, and when they end.
    lasting: Vec<(Instant, Lasting)>,
    /// The kinds that are left in the current round.
    kinds: Vec<Kind>,
    counts: BTreeMap<String, usize>,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(durable: &'a mut Durable) -> Self {
        Self { durable, began: Instant::now(), lasting: Vec::new(), kinds: Vec::new(), counts: BTreeMap::new() }
    }

    /// Injects faults for this long. Each round has every kind once, in random order.
    pub(crate) async fn inject_for(&mut self, length: Duration, random: &mut StdRng) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            let next = Instant::now() + duration(PAUSES_MS, random);
            self.wait_until(next).await;
            if self.kinds.is_empty() {
                self.kinds = KINDS.to_vec();
                self.kinds.shuffle(random);
            }
            let kind = self.kinds.remove(0);
            self.inject(kind, random).await;
        }
    }

    /// Returns whether each kind of fault happened at least this often.
    pub(crate) fn are_enough(&self, of_each_kind: usize) -> bool {
        self.counts.len() == KINDS.len() && self.counts.values().all(|count| *count >= of_each_kind)
    }

    /// Returns the time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends all faults. Returns the number of faults of each kind.
    pub(crate) async fn heal(mut self) -> BTreeMap<String, usize> {
        let lasting = std::mem::take(&mut self.lasting);
        for (_, lasting) in lasting {
            self.end(lasting).await;
        }
        self.counts
    }

    /// Waits until `next`, and ends faults whose time is over.
    async fn wait_until(&mut self, next: Instant) {
        loop {
            let first = self.lasting.iter().copied().min_by_key(|(until, _)| *until);
            let Some((until, lasting)) = first.filter(|(until, _)| *until < next) else { break };
            time::sleep_until(until).await;
            self.lasting.retain(|(_, other)| *other != lasting);
            self.end(lasting).await;
        }
        time::sleep_until(next).await;
    }

    async fn inject(&mut self, kind: Kind, random: &mut StdRng) {
        let name = match kind {
            Kind::Kill(name) => {
                let death = duration(DEATHS_MS, random);
                let service = self.service(name);
                service.kill().await;
                time::sleep(death).await;
                service.restart().await;
                format!("kill {name}")
            }
            Kind::KillPostgres => {
                let death = duration(DEATHS_MS, random);
                task::block_in_place(|| self.durable.postgres.kill());
                time::sleep(death).await;
                task::block_in_place(|| self.durable.postgres.restart());
                "kill PostgreSQL".to_owned()
            }
            Kind::Freeze => {
                let name = *[USERS, PRODUCTS, ORDERS].choose(random).expect("there are three services");
                self.service(name).signal(Signal::Freeze).await;
                self.start(Lasting::Frozen(name), duration(FREEZES_MS, random));
                "freeze".to_owned()
            }
            Kind::Break(name, fault) => {
                let link = random.random_range(0..3);
                self.links()[link].set(fault);
                self.start(Lasting::Broken(link), duration(BREAKS_MS, random));
                name.to_owned()
            }
        };
        print(format_args!("chaos: {:6.1} s  {name}", self.began.elapsed().as_secs_f64()));
        *self.counts.entry(name).or_default() += 1;
    }

    fn start(&mut self, lasting: Lasting, how_long: Duration) {
        self.lasting.retain(|(_, other)| *other != lasting);
        self.lasting.push((Instant::now() + how_long, lasting));
    }

    async fn end(&mut self, lasting: Lasting) {
        match lasting {
            Lasting::Frozen(name) => self.service(name).signal(Signal::Thaw).await,
            Lasting::Broken(link) => self.links()[link].heal(),
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

fn duration(range: std::ops::Range<u64>, random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(range))
}
