//! How an order is placed.
//!
//! 1. **Intent.** The order is recorded as `placing` before any peer is called. So every attempt that was started can be
//!    finished. An order without a key is rejected before the intent if a peer is overloaded.
//! 2. **Verify and reserve.** user-service verifies the user and product-service reserves the stock, concurrently.
//! 3. **Settle.** If both succeed, the intent becomes an order, provided that it was not aborted meanwhile.
//! 4. **Abort.** Otherwise the row is aborted first, then the client gets the error. In the background the reservation is
//!    released and the row is deleted. A rejected reservation is released too: a duplicate of its request may still
//!    arrive, and product-service rejects it only after a release.
//!
//! If the process dies in between, [`crate::reconciler`] finishes the attempt. `tests/model` searches every interleaving.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chassis::client::{Admission, Peer, PeerError};
use chassis::context::RequestContext;
use chassis::crash_point;
use chassis::http::entity::Entity;
use chassis::telemetry::metrics::{self, Counter, Family, Gauge, Labels};
use futures_util::FutureExt;
use futures_util::future::join_all;
use shared::orders::{Order, OrderLine};
use shared::products::ReservedLine;
use shared::{Money, OrderId};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use crate::idempotency::{Fingerprint, Key};
use crate::order::{PlaceOrder, WantedLine};
use crate::peers::{Products, ReserveOutcome, Users};
use crate::store::{BeginOutcome, Intent, OrderStore, StoreError};

/// Time limit for a release in the background.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

// Within 10 s of the last fault every order is finished. With the default settings the reconciler runs at least every
// 1.5 s.
// - An abandoned intent is aborted when it is 5 + 1 s old, so its release starts after at most 7.5 s.
// - If a replica dies or a release fails, the claim ends after 3 s, and the next release starts after at most 4.5 s.
// - If that release did not reach product-service, because calls to it were still throttled, the next one starts after at
//   most 9 s.

/// Added to the order timeout before an intent counts as abandoned, because its request may be settling it right now.
const ABANDON_GRACE: Duration = Duration::from_secs(1);
/// Time for which other replicas leave a claimed order alone: the time limit of its release, and a second for the store.
const CLAIM_LEASE: Duration = Duration::from_secs(RELEASE_TIMEOUT.as_secs() + 1);

static PLACEMENTS: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    metrics::register("order_placements", "Attempts to place an order, by outcome", Family::default())
});
static UNSETTLED: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "Orders whose stock the reconciler has tried to release without success so far";
    metrics::register("orders_unsettled", help, Gauge::default())
});

/// Places orders. Cheap to clone; all clones share their state.
#[derive(Clone)]
pub struct Placement(Arc<Inner>);

struct Inner {
    store: Arc<dyn OrderStore>,
    users: Users,
    products: Products,
    timeout: Duration,
    /// One permit for each order that is being placed.
    permits: Arc<Semaphore>,
    /// The placements and releases that are running, with or without a waiting client.
    running: TaskTracker,
}

/// An order that is placed.
#[derive(Debug)]
pub struct Placed {
    /// The order.
    pub order: Entity<Order>,
    /// Whether an earlier request with the same key has placed it.
    pub replayed: bool,
}

/// Why an order was not placed. Lines are given by their index.
///
/// No stock was sold, with two exceptions: the attempt is [`Self::Unfinished`], or the store does not know its outcome.
#[derive(Debug, thiserror::Error)]
pub enum PlaceOrderError {
    /// The user does not exist.
    #[error("the user does not exist")]
    UserNotFound,
    /// These lines name products that do not exist.
    #[error("the products of lines {0:?} do not exist")]
    ProductNotFound(Vec<usize>),
    /// These lines ask for more units than are left; with the units left.
    #[error("insufficient stock for lines {0:?}")]
    InsufficientStock(Vec<(usize, i64)>),
    /// These lines expect another price; with the real price.
    #[error("other prices than expected for lines {0:?}")]
    PriceChanged(Vec<(usize, Money)>),
    /// The key was used with another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
    /// An earlier request with this key is still running.
    #[error("an earlier request with the idempotency key is running")]
    InProgress,
    /// The attempt took too long. It was aborted meanwhile, or it never started.
    #[error("the attempt took too long")]
    TimedOut,
    /// The attempt has not ended in time. It goes on, and may succeed.
    #[error("the attempt has not ended in time")]
    Unfinished,
    /// Too many orders are being placed.
    #[error("too many orders are being placed")]
    Overloaded,
    /// A peer gave no response, or none that the contract allows.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attempt panicked; the reconciler aborts it.
    #[error("the attempt panicked: {0}")]
    Panicked(String),
}

impl Placement {
    /// Creates a placement over this store and these peers. An order must be placed within `timeout`. At most
    /// `max_concurrent` orders are placed at the same time.
    pub fn new(
        store: Arc<dyn OrderStore>,
        users: Users,
        products: Products,
        timeout: Duration,
        max_concurrent: usize,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(max_concurrent));
        Self(Arc::new(Inner { store, users, products, timeout, permits, running: TaskTracker::new() }))
    }

    /// Returns the store.
    pub fn store(&self) -> &dyn OrderStore {
        &*self.0.store
    }

    /// Returns the peers: user-service, then product-service.
    pub fn peers(&self) -> Vec<&Peer> {
        vec![self.0.users.peer(), self.0.products.peer()]
    }

    /// Places an order, at most once for each key.
    ///
    /// The attempt runs in a task of its own, so a client that disconnects does not stop it half-way. It keeps its permit
    /// until it ends, with or without a client.
    pub async fn place(
        &self,
        request: PlaceOrder,
        key: Option<(Key, Fingerprint)>,
        context: &RequestContext,
    ) -> Result<Placed, PlaceOrderError> {
        // The calls end when 90 % of the time are over. Then the store has 5 %. The last 5 % are for sending the response to
        // a client whose own timeout is the same.
        let context = context.with_timeout(self.0.timeout - self.0.timeout / 10);
        let (this, deadline) = (self.clone(), context.clone());
        let Ok(permit) = Arc::clone(&self.0.permits).try_acquire_owned() else {
            return counted(Err(PlaceOrderError::Overloaded));
        };
        let attempt = async move {
            let _permit = permit;
            counted(this.attempt(request, key, context).await)
        };
        let task = self.0.running.spawn(Box::pin(attempt.in_current_span())); // boxed: it is large, and tasks are moved
        let finished = deadline.with_grace(self.0.timeout / 20, task).await.map_err(|_| PlaceOrderError::Unfinished)?;
        finished.unwrap_or_else(|panicked| Err(PlaceOrderError::Panicked(panicked.to_string())))
    }

    async fn attempt(
        &self,
        request: PlaceOrder,
        key: Option<(Key, Fingerprint)>,
        context: RequestContext,
    ) -> Result<Placed, PlaceOrderError> {
        if context.time_left().is_zero() {
            return Err(PlaceOrderError::TimedOut);
        }
        // Before the intent, because an order that a slow peer cannot serve in time must cost nothing. With a key, a rejection
        // counts only after the intent: a repeated request may need no peer.
        let admissions = tokio::try_join!(self.0.users.admit(&context), self.0.products.admit(&context));
        let admissions = if key.is_none() { Ok(admissions?) } else { admissions };
        let id = OrderId(Uuid::now_v7());
        let intent = Intent { id, user_id: request.user_id, key, created_at: chassis::now() };
        crash_point!("place: before the intent");
        // If the intent was recorded although this fails, the reconciler aborts it.
        match self.0.store.begin(intent).await.map_err(StoreError::without_change)? {
            BeginOutcome::Started => crash_point!("place: after the intent"),
            BeginOutcome::Replayed(order) => return Ok(Placed { order, replayed: true }),
            BeginOutcome::InProgress => return Err(PlaceOrderError::InProgress),
            BeginOutcome::KeyMismatch => return Err(PlaceOrderError::KeyReused),
        }
        let lines = match admissions {
            Ok(admissions) => self.verify_and_reserve(id, &request, &context, admissions).await,
            Err(error) => Err(error.into()),
        };
        let settled = match lines {
            Ok(lines) => self.settle(id, lines).await,
            Err(error) => Err(error),
        };
        match settled {
            Ok(order) => Ok(Placed { order, replayed: false }),
            Err(error) => self.abort(id, error).await,
        }
    }

    /// Verifies the user and reserves the stock, concurrently. Returns the reserved lines.
    ///
    /// If both calls fail, a rejection is returned rather than the failure of a peer, because a retry cannot cure it.
    async fn verify_and_reserve(
        &self,
        id: OrderId,
        request: &PlaceOrder,
        context: &RequestContext,
        (user, stock): (Admission, Admission),
    ) -> Result<Vec<ReservedLine>, PlaceOrderError> {
        // Pinned, because a future that gets another one by value stores it twice.
        let exists = pin!(self.0.users.exists(request.user_id, context, user));
        let reserve = pin!(self.0.products.reserve(id, &request.products, context, stock));
        let exists = exists.inspect(|_| crash_point!("place: user answered"));
        let reserve = reserve.inspect(|_| crash_point!("place: reservation answered"));
        match tokio::join!(exists, reserve) {
            (Ok(false), _) => Err(PlaceOrderError::UserNotFound),
            (_, Ok(ReserveOutcome::UnknownProducts(lines))) => Err(PlaceOrderError::ProductNotFound(lines)),
            (_, Ok(ReserveOutcome::InsufficientStock(lines))) => Err(PlaceOrderError::InsufficientStock(lines)),
            (_, Ok(ReserveOutcome::Released)) => Err(PlaceOrderError::TimedOut),
            (_, Err(error)) => Err(error.into()),
            (exists, Ok(ReserveOutcome::Reserved(lines))) => {
                check_prices(&request.products, &lines)?;
                exists?;
                Ok(lines)
            }
        }
    }

    async fn settle(&self, id: OrderId, reserved: Vec<ReservedLine>) -> Result<Entity<Order>, PlaceOrderError> {
        let total = Money::total(reserved.iter().map(|line| line.price.times(line.quantity)));
        let total = total.ok_or_else(|| self.0.products.unexpected("the total is out of range"))?;
        crash_point!("place: before settling");
        let order = self.0.store.settle(id, reserved.into_iter().map(order_line).collect(), total).await?;
        crash_point!("place: after settling");
        order.ok_or(PlaceOrderError::TimedOut)
    }

    /// Aborts the intent in the store, so that it can never become an order, and starts the release. Returns `error`.
    ///
    /// If the row is not an intent any more, there are two cases:
    ///
    /// - It is an order, and the response of the store to its settlement was lost. Then this returns the order.
    /// - It is aborted already, by the reconciler or by an earlier try whose response was lost. Then it is released again,
    ///   which does no harm.
    ///
    /// If the store fails here, the row may be an order only if the outcome of its settlement is unknown. Only then the
    /// error is [`StoreError::OutcomeUnknown`].
    async fn abort(&self, id: OrderId, error: PlaceOrderError) -> Result<Placed, PlaceOrderError> {
        crash_point!("abort: before");
        let (error, classify): (_, fn(StoreError) -> StoreError) = match error {
            PlaceOrderError::Store(error @ StoreError::OutcomeUnknown(_)) => {
                (error.without_change().into(), StoreError::after_ambiguous_change)
            }
            error => (error, StoreError::without_change),
        };
        if !self.0.store.abort(id).await.map_err(classify)?
            && let Some(order) = self.0.store.by_id(id).await.map_err(classify)?
        {
            return Ok(Placed { order, replayed: false });
        }
        crash_point!("abort: after");
        self.release_in_background(id);
        Err(error)
    }

    /// Starts to release the stock of an order. If that fails, the reconciler will retry.
    pub fn release_in_background(&self, id: OrderId) {
        let this = self.clone();
        let release = async move {
            if let Err(error) = this.release(id).await {
                log_failed_release(id, &error);
            }
        };
        self.0.running.spawn(release.in_current_span());
    }

    /// Releases the stock of an order. Once that is acknowledged, deletes the row or marks the order as cancelled.
    ///
    /// # Errors
    /// If product-service or the store fails.
    pub async fn release(&self, id: OrderId) -> Result<(), PlaceOrderError> {
        crash_point!("release: before");
        self.0.products.release(id, &RequestContext::background(RELEASE_TIMEOUT)).await?;
        crash_point!("release: acknowledged");
        self.0.store.finish_release(id).await?;
        crash_point!("release: finished");
        Ok(())
    }

    /// Waits at shutdown for the placements and releases that are running, at most for `limit`.
    pub async fn finish(&self, limit: Duration) {
        self.0.running.close();
        if time::timeout(limit, self.0.running.wait()).await.is_err() {
            let remaining = self.0.running.len();
            tracing::warn!(remaining, "shutdown timed out; the reconciler will finish the remaining orders");
        }
    }

    /// Aborts abandoned intents, then releases the stock of up to `limit` orders that wait for it. Returns how many of
    /// them are finished.
    ///
    /// This runs in a task of its own, so that [`Placement::finish`] waits for the claimed orders after the reconciler stopped.
    ///
    /// # Errors
    /// If the store fails. A failed release is logged and retried by a later call.
    pub async fn reconcile(&self, limit: usize) -> Result<usize, StoreError> {
        let this = self.clone();
        let task = self.0.running.spawn(async move { this.claim_and_release(limit).await });
        task.await.unwrap_or_else(|panicked| Err(StoreError::Unavailable(panicked.to_string())))
    }

    async fn claim_and_release(&self, limit: usize) -> Result<usize, StoreError> {
        let claimed = self.0.store.claim(self.abandon_after(), CLAIM_LEASE, limit).await?;
        let releases = claimed.iter().map(|id| {
            crash_point!("reconcile: claimed");
            self.release(*id)
        });
        let mut finished = 0;
        for (id, released) in claimed.iter().zip(join_all(releases).await) {
            crash_point!("reconcile: released");
            match released {
                Ok(()) => finished += 1,
                Err(error) => log_failed_release(*id, &error),
            }
        }
        if finished > 0 {
            tracing::info!(finished, "the reconciler finished orders");
        }
        UNSETTLED.set(self.0.store.unsettled().await?);
        Ok(finished)
    }

    /// Returns the age at which an intent counts as abandoned.
    ///
    /// It may be wrong without harm: if an intent is aborted too early, its request fails with 503.
    fn abandon_after(&self) -> Duration {
        self.0.timeout + ABANDON_GRACE
    }
}

/// Counts an outcome in the metrics, and returns it.
fn counted(outcome: Result<Placed, PlaceOrderError>) -> Result<Placed, PlaceOrderError> {
    let label = match &outcome {
        Ok(Placed { replayed: false, .. }) => "placed",
        Ok(Placed { replayed: true, .. }) => "replayed",
        Err(PlaceOrderError::UserNotFound) => "user_not_found",
        Err(PlaceOrderError::ProductNotFound(_)) => "product_not_found",
        Err(PlaceOrderError::InsufficientStock(_)) => "insufficient_stock",
        Err(PlaceOrderError::PriceChanged(_)) => "price_changed",
        Err(PlaceOrderError::KeyReused) => "key_reused",
        Err(PlaceOrderError::InProgress) => "in_progress",
        Err(PlaceOrderError::TimedOut | PlaceOrderError::Unfinished) => "timed_out",
        Err(PlaceOrderError::Overloaded) => "overloaded",
        Err(PlaceOrderError::Peer(_)) => "peer_unavailable",
        Err(PlaceOrderError::Store(_)) => "store_unavailable",
        Err(PlaceOrderError::Panicked(_)) => "panicked",
    };
    PLACEMENTS.get_or_create(&[("outcome", label)]).inc();
    outcome
}

fn log_failed_release(order_id: OrderId, error: &PlaceOrderError) {
    tracing::warn!(%order_id, %error, "release failed; the reconciler will retry");
}

/// Checks that the reserved lines have the prices that the client expects.
fn check_prices(wanted: &[WantedLine], reserved: &[ReservedLine]) -> Result<(), PlaceOrderError> {
    let changed: Vec<_> = (0..)
        .zip(wanted.iter().zip(reserved))
        .filter(|(_, (wanted, reserved))| wanted.price.is_some_and(|price| price != reserved.price))
        .map(|(index, (_, reserved))| (index, reserved.price))
        .collect();
    if changed.is_empty() { Ok(()) } else { Err(PlaceOrderError::PriceChanged(changed)) }
}

fn order_line(reserved: ReservedLine) -> OrderLine {
    let ReservedLine { product_id, name, price, quantity } = reserved;
    OrderLine { product_id, name, quantity, price }
}
