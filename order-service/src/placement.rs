//! Placing an order: the story.
//!
//! 1. **Intent.** The order is written down before anyone is asked, so that whatever is begun can be finished.
//! 2. **At the same time** user-service is asked for the user and product-service takes the stock.
//! 3. **Settle.** Both said yes: the intent becomes an order, only if nobody has given it up meanwhile.
//! 4. Else it is **given up**: first in the row, then to the client, and then, not in the client's way, the stock is
//!    released and the row goes. That also after a refusal: a copy of the take may still be on its way, and only the
//!    release that went before it stops it.
//!
//! Whatever dies in between, [`crate::reconciler`] finishes. `tests/model` searches every way in which this can go.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chassis::client::{Peer, PeerError};
use chassis::context::RequestContext;
use chassis::telemetry::metrics::{self, Counter, Family, Gauge, Labels};
use chassis::{crash_point, mistake};
use futures_util::FutureExt;
use jiff::Timestamp;
use shared::orders::{Order, OrderLine, WantedLine};
use shared::products::ReservedLine;
use shared::{Money, OrderId};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use crate::idempotency::{Fingerprint, Key};
use crate::order::NewOrder;
use crate::peers::{Products, Take, Users};
use crate::store::{BeginOutcome, Intent, OrderStore, StoreError};

/// How long a release may take, when nobody waits for it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

// Within ten seconds of the last fault nothing is half done. With the settings as they are by themselves, the reconciler looks
// every 1.5 s at the latest. An intent that nobody sees to is given up when it is 5 + 1 s old, so its release begins after
// 7.5 s. A claim that came to nothing, for its replica has died or the release failed, holds for 2 s, so its row is released
// after 3.5 s; and after 7 s if the first try was kept from a product-service that did not look well yet.

/// How much older than the time of an order an intent must be to be given up: its request may be settling it just then.
const ABANDON_GRACE: Duration = Duration::from_secs(1);
/// How long a claim keeps all replicas from trying, unless it is done. What takes longer is released twice, which does no harm.
const CLAIM_LEASE: Duration = Duration::from_secs(2);

static PLACEMENTS: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("order_placements", "Orders asked for", Family::default()));
static UNSETTLED: LazyLock<Gauge> = LazyLock::new(|| {
    metrics::register("orders_unsettled", "Orders that the reconciler could not finish yet", Gauge::default())
});

/// Everything it takes to place an order.
#[derive(Clone)]
pub struct Placement(Arc<Inner>);

struct Inner {
    store: Arc<dyn OrderStore>,
    users: Users,
    products: Products,
    timeout: Duration,
    /// One for each order that is being placed.
    places: Arc<Semaphore>,
    /// What is being placed or released, whether or not a client still waits for it.
    running: TaskTracker,
}

/// An order that is placed.
#[derive(Debug)]
pub struct Placed {
    /// The order.
    pub order: Arc<Order>,
    /// Whether it was placed before, under the same key.
    pub replayed: bool,
}

/// Why an order was not placed. Nothing was sold. Lines are told by their index.
#[derive(Debug)]
pub enum Refusal {
    /// There is no such user.
    UserNotFound,
    /// These lines name products that do not exist.
    ProductNotFound(Vec<usize>),
    /// These lines want more than is left, which is this much.
    InsufficientStock(Vec<(usize, i64)>),
    /// These lines believe in another price than this one.
    PriceChanged(Vec<(usize, Money)>),
    /// The key was used for another body.
    KeyReused,
    /// The first attempt with this key is still running.
    InProgress,
    /// It took too long: it was given up meanwhile, or never begun.
    TimedOut,
    /// As many orders are being placed as may be.
    Overloaded,
    /// A peer did not answer, or not as the contract says.
    Peer(PeerError),
    /// The store is away.
    Store(StoreError),
    /// A mistake of ours ended it half-way; the reconciler gives it up.
    Panicked(String),
}

impl Placement {
    /// Over this store and these peers; a placement has so much time, and so many may run at once.
    pub fn new(
        store: Arc<dyn OrderStore>,
        users: Users,
        products: Products,
        timeout: Duration,
        at_once: usize,
    ) -> Self {
        let places = Arc::new(Semaphore::new(at_once));
        Self(Arc::new(Inner { store, users, products, timeout, places, running: TaskTracker::new() }))
    }

    /// Where orders are kept.
    pub fn store(&self) -> &dyn OrderStore {
        &*self.0.store
    }

    /// Who is asked.
    pub fn peers(&self) -> Vec<&Peer> {
        vec![self.0.users.peer(), self.0.products.peer()]
    }

    /// After this long an intent that is not settled was left behind by someone who died. It is a courtesy to requests
    /// still running, no safety rule: acting too early costs such a request a 503.
    fn patience(&self) -> Duration {
        self.0.timeout + ABANDON_GRACE
    }

    /// Places `new` for the request of this context, at most once for each key. It runs in a task of its own: a client
    /// that hangs up does not stop it half-way. What has no request any more takes a place all the same.
    pub async fn place(
        &self,
        new: NewOrder,
        key: Option<(Key, Fingerprint)>,
        context: &RequestContext,
    ) -> Result<Placed, Refusal> {
        let (this, context) = (self.clone(), context.with_timeout(self.0.timeout));
        let Ok(place) = Arc::clone(&self.0.places).try_acquire_owned() else {
            return counted(Err(Refusal::Overloaded));
        };
        let run = async move {
            let _place = place;
            counted(this.run(new, key, context).await)
        };
        let placing = self.0.running.spawn(Box::pin(run.in_current_span())); // large, and tasks are moved
        placing.await.unwrap_or_else(|died| Err(Refusal::Panicked(died.to_string())))
    }

    async fn run(
        &self,
        new: NewOrder,
        key: Option<(Key, Fingerprint)>,
        context: RequestContext,
    ) -> Result<Placed, Refusal> {
        if context.time_left().is_zero() {
            return Err(Refusal::TimedOut); // nobody would hear of it
        }
        let id = OrderId(Uuid::now_v7());
        let intent = Intent { id, user_id: new.user_id, key, created_at: chassis::now() };
        crash_point!("place: before the intent");
        match self.0.store.begin(intent).await? {
            BeginOutcome::Started => crash_point!("place: after the intent"),
            BeginOutcome::Replayed(order) => return Ok(Placed { order, replayed: true }),
            BeginOutcome::InProgress => return Err(Refusal::InProgress),
            BeginOutcome::KeyMismatch => return Err(Refusal::KeyReused),
        }
        if mistake!("settle before taken") {
            self.settle(id, new.lines.iter().map(unpriced).collect()).await?;
        }
        let settled = match self.take_and_verify(id, &new, &context).await {
            Ok(taken) => self.settle(id, taken).await,
            Err(refusal) => Err(refusal),
        };
        match settled {
            Ok(order) => Ok(Placed { order, replayed: false }),
            Err(refusal) => self.give_up(id, refusal).await,
        }
    }

    /// Takes the stock and asks for the user, at the same time. What is certainly wrong is told before what may be.
    async fn take_and_verify(
        &self,
        id: OrderId,
        new: &NewOrder,
        context: &RequestContext,
    ) -> Result<Vec<ReservedLine>, Refusal> {
        let exists = self.0.users.exists(new.user_id, context).inspect(|_| crash_point!("place: user answered"));
        let take = self.0.products.take(id, &new.lines, context).inspect(|_| crash_point!("place: take answered"));
        let (exists, taken) = tokio::join!(exists, take);
        match (exists, taken) {
            (Ok(false), _) => Err(Refusal::UserNotFound),
            (_, Ok(Take::Unknown(lines))) => Err(Refusal::ProductNotFound(lines)),
            (_, Ok(Take::InsufficientStock(lines))) => Err(Refusal::InsufficientStock(lines)),
            (_, Ok(Take::Released)) => Err(Refusal::TimedOut),
            (_, Err(error)) => Err(Refusal::Peer(error)),
            (exists, Ok(Take::Taken(lines))) => {
                let lines = check_prices(&new.lines, lines)?;
                exists?;
                Ok(lines)
            }
        }
    }

    async fn settle(&self, id: OrderId, taken: Vec<ReservedLine>) -> Result<Arc<Order>, Refusal> {
        let total = Money::total(taken.iter().map(|line| line.price.times(line.quantity)));
        let total = total.ok_or_else(|| Refusal::Peer(self.0.products.nonsense("prices beyond all bounds")))?;
        crash_point!("place: before settling");
        let order = self.0.store.settle(id, taken.into_iter().map(order_line).collect(), total).await?;
        crash_point!("place: after settling");
        order.ok_or(Refusal::TimedOut)
    }

    /// Gives the intent up in the store, so that it can never become an order; the rest needs nobody to wait for it.
    ///
    /// An intent that is one no more became an order, and only the store's word of that was lost; or it is given up already,
    /// by somebody else or by a try of ours whose answer was lost. To release it twice does no harm.
    async fn give_up(&self, id: OrderId, refusal: Refusal) -> Result<Placed, Refusal> {
        crash_point!("give up: before");
        if !self.0.store.abort(id).await?
            && let Some(order) = self.0.store.by_id(id).await?
        {
            return Ok(Placed { order, replayed: false });
        }
        crash_point!("give up: after");
        if mistake!("no release after refusal") && !matches!(refusal, Refusal::Peer(_)) {
            return self.0.store.released(id).await.map_err(Refusal::Store).and(Err(refusal));
        }
        self.release_later(id);
        Err(refusal)
    }

    /// Begins to give the stock of an order back. If that fails, the reconciler will see to it.
    pub fn release_later(&self, id: OrderId) {
        let this = self.clone();
        let release = async move {
            if let Err(refusal) = this.release(id).await {
                tracing::warn!(%id, ?refusal, "the stock is not released yet");
            }
        };
        self.0.running.spawn(release.in_current_span());
    }

    /// Gives the stock of an order back and, when that is acknowledged, finishes its row.
    pub async fn release(&self, id: OrderId) -> Result<(), Refusal> {
        crash_point!("release: before");
        if mistake!("finish before released") {
            self.0.store.released(id).await?;
        }
        self.0.products.release(id, &RequestContext::background(RELEASE_TIMEOUT)).await?;
        crash_point!("release: acknowledged");
        self.0.store.released(id).await?;
        crash_point!("release: finished");
        Ok(())
    }

    /// Waits, when the service ends, for what is still being placed or released; at most so long.
    pub async fn finish(&self, limit: Duration) {
        self.0.running.close();
        if time::timeout(limit, self.0.running.wait()).await.is_err() {
            tracing::warn!(running = self.0.running.len(), "some orders are left half done");
        }
    }

    /// Gives up what was left behind, and tries to finish up to `most` of what waits for its release; how many it did.
    pub async fn reconcile(&self, most: usize) -> Result<usize, StoreError> {
        let now = chassis::now();
        let left = self.0.store.claim(now, before(now, self.patience()), CLAIM_LEASE, most).await?;
        let releases = left.iter().map(|id| {
            crash_point!("reconcile: claimed");
            self.release(*id)
        });
        let mut finished = 0;
        for (id, released) in left.iter().zip(futures_util::future::join_all(releases).await) {
            crash_point!("reconcile: released");
            match released {
                Ok(()) => finished += 1,
                Err(refusal) => tracing::warn!(%id, ?refusal, "cannot release what was left half done"),
            }
        }
        if finished > 0 {
            tracing::info!(finished, "released what was left half done");
        }
        UNSETTLED.set(self.0.store.unsettled().await?);
        Ok(finished)
    }
}

/// What came of a placement, which the metrics tell.
fn counted(outcome: Result<Placed, Refusal>) -> Result<Placed, Refusal> {
    let label = match &outcome {
        Ok(Placed { replayed: false, .. }) => "placed",
        Ok(Placed { replayed: true, .. }) => "replayed",
        Err(Refusal::UserNotFound) => "user_not_found",
        Err(Refusal::ProductNotFound(_)) => "product_not_found",
        Err(Refusal::InsufficientStock(_)) => "insufficient_stock",
        Err(Refusal::PriceChanged(_)) => "price_changed",
        Err(Refusal::KeyReused) => "key_reused",
        Err(Refusal::InProgress) => "in_progress",
        Err(Refusal::TimedOut) => "overtaken",
        Err(Refusal::Overloaded) => "too_many",
        Err(Refusal::Peer(_)) => "peer_unavailable",
        Err(Refusal::Store(_)) => "store_unavailable",
        Err(Refusal::Panicked(_)) => "died",
    };
    PLACEMENTS.get_or_create(&[("outcome", label)]).inc();
    outcome
}

/// Refuses if a client believes in another price than the one that was taken.
fn check_prices(wanted: &[WantedLine], taken: Vec<ReservedLine>) -> Result<Vec<ReservedLine>, Refusal> {
    let changed = |(at, (wanted, taken)): (usize, (&WantedLine, &ReservedLine))| {
        wanted.price.filter(|price| *price != taken.price).map(|_| (at, taken.price))
    };
    let changed: Vec<_> = wanted.iter().zip(&taken).enumerate().filter_map(changed).collect();
    if changed.is_empty() { Ok(taken) } else { Err(Refusal::PriceChanged(changed)) }
}

fn order_line(taken: ReservedLine) -> OrderLine {
    let ReservedLine { product_id, name, price, quantity } = taken;
    OrderLine { product_id, name, quantity, price }
}

/// What the client believes to be taken, for who makes the mistake not to wait for the answer.
fn unpriced(wanted: &WantedLine) -> ReservedLine {
    let WantedLine { product_id, quantity, price } = *wanted;
    ReservedLine { product_id, name: String::new(), price: price.unwrap_or_default(), quantity }
}

fn before(time: Timestamp, span: Duration) -> Timestamp {
    time.checked_sub(span).unwrap_or(Timestamp::MIN)
}

impl From<PeerError> for Refusal {
    fn from(error: PeerError) -> Self {
        Self::Peer(error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
