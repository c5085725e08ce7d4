//! The store: orders, and the intents that may become orders.
//!
//! The trait and its comments are the contract. `contract` is the same in executable form and runs against both stores.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::Storage;
use jiff::Timestamp;
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Id, Money, OrderId};

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
use crate::idempotency::{Fingerprint, Key};
use crate::order::State;

/// Orders, and the intents that may become orders.
///
/// Each method except `claim` is one atomic step of the life cycle ([`crate::order::State`]). A step that finds the order
/// in another state changes nothing and reports that.
#[async_trait]
pub trait OrderStore: Send + Sync {
    /// Records an intent as [`State::Placing`], unless another row holds its key.
    ///
    /// Safe to repeat: if the intent is recorded already, it stays as it is and the outcome is `Started`.
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError>;

    /// Turns an intent into an order with these lines. `None` if the row is not an intent any more.
    async fn settle(
        &self,
        id: OrderId,
        lines: Vec<OrderLine>,
        total: Money,
    ) -> Result<Option<Entity<Order>>, StoreError>;

    /// Aborts an intent and frees its key. Returns whether the row was still an intent.
    async fn abort(&self, id: OrderId) -> Result<bool, StoreError>;

    /// Moves the order from the status that the client saw to the state `to`. `None` if its status is another now.
    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Entity<Order>>, StoreError>;

    /// Records that the stock is released: deletes an aborting row, and turns a cancelling order into a cancelled one.
    /// Rows in other states do not change.
    async fn finish_release(&self, id: OrderId) -> Result<(), StoreError>;

    /// Returns the order, if clients may see it.
    async fn by_id(&self, id: OrderId) -> Result<Option<Entity<Order>>, StoreError>;

    /// Returns a page of the visible orders that match the filter, by ascending id. The cost does not depend on the
    /// position of the page or on the number of matches.
    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Entity<Order>>, StoreError>;

    /// Aborts the intents that are at least `abandon_after` old, and claims up to `limit` orders that wait for their
    /// release. No other call returns a claimed order until the lease ends. All replicas use the clock of the store.
    ///
    /// Orders that were never claimed come first, then those whose claim is the oldest: an order whose release always
    /// fails delays no other. A claim only saves work: two replicas may release the same order. The call is atomic for
    /// each order, not as a whole: it may fail after it has aborted some intents and before it has claimed an order.
    async fn claim(&self, abandon_after: Duration, lease: Duration, limit: usize) -> Result<Vec<OrderId>, StoreError>;

    /// Returns how many orders were claimed and still wait for their release, at most 1,000.
    async fn unsettled(&self) -> Result<i64, StoreError>;

    /// Checks that the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// An order that is to be placed.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The id of the order.
    pub id: OrderId,
    /// The user who places the order.
    pub user_id: Id,
    /// The idempotency key of the request, and the fingerprint of its body.
    pub key: Option<(Key, Fingerprint)>,
    /// When the order was requested.
    pub created_at: Timestamp,
}

/// The result of [`OrderStore::begin`].
#[derive(Clone, Debug, PartialEq)]
pub enum BeginOutcome {
    /// The intent is recorded.
    Started,
    /// The key belongs to this order, with the same body.
    Replayed(Entity<Order>),
    /// Another attempt with the key and the same body is running.
    InProgress,
    /// The key was used with another body.
    KeyMismatch,
}

/// Which orders to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only orders of this user.
    pub user_id: Option<Id>,
    /// Only orders with this status.
    pub status: Option<OrderStatus>,
}

/// Why a call to the store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store did not answer. Nothing changed.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The store did not answer after a change. The change may or may not have been made.
    #[error("the store does not answer, and the change may have been made: {0}")]
    OutcomeUnknown(String),
}

impl StoreError {
    /// Returns the error of a change whose outcome is unknown, because this error kept the store from finding it out.
    pub fn after_ambiguous_change(self) -> Self {
        let (Self::Unavailable(cause) | Self::OutcomeUnknown(cause)) = self;
        Self::OutcomeUnknown(cause)
    }

    /// Returns the same error if it turns out that the change was not made.
    pub fn without_change(self) -> Self {
        let (Self::Unavailable(cause) | Self::OutcomeUnknown(cause)) = self;
        Self::Unavailable(cause)
    }
}

/// Returns the store in the database of these settings, or in memory without a database, and its storage.
///
/// # Errors
/// If `DATABASE_URL` is invalid.
pub fn open(settings: &DatabaseSettings) -> Result<(Arc<dyn OrderStore>, Storage), String> {
    let Some(url) = settings.url()? else { return Ok((memory(), Storage::Memory)) };
    let store = PostgresStore::new(&url, settings);
    let storage = store.storage();
    Ok((Arc::new(store), storage))
}

/// Returns an empty store in memory.
pub fn memory() -> Arc<dyn OrderStore> {
    Arc::new(MemoryStore::default())
}
