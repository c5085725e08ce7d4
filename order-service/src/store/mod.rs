//! What is kept. The trait and its comments are the contract; `contract` is the same, to be run against each store.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Id, Money, OrderId};

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
use crate::idempotency::{Fingerprint, Key};
use crate::order::State;

/// What the start-up line says of the store in memory.
pub const MEMORY: &str = "memory (a restart forgets everything)";
/// What it says of the store in PostgreSQL.
pub const POSTGRES: &str = "PostgreSQL";

/// Orders, and the intents that may become orders. Each call is one atomic step of an order's life
/// ([`crate::order::State`]), but for `claim`; a step that finds the order elsewhere does nothing and says so.
#[async_trait]
pub trait OrderStore: Send + Sync {
    /// Writes an intent down, [`State::Placing`], unless its key is held by another that is not given up. If it is written
    /// down already, its caller has asked twice, and it stays as it is.
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError>;

    /// The intent becomes an order with these lines; `None` if it is an intent no more.
    async fn settle(&self, id: OrderId, lines: Vec<OrderLine>, total: Money) -> Result<Option<Arc<Order>>, StoreError>;

    /// The intent is given up, and its key free at once. Whether it was one still.
    async fn abort(&self, id: OrderId) -> Result<bool, StoreError>;

    /// The order goes from where the client saw it to `to`; `None` if it is not there any more.
    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Arc<Order>>, StoreError>;

    /// The stock of this order is released: what was aborting goes, what was cancelling is cancelled. Any other stays.
    async fn released(&self, id: OrderId) -> Result<(), StoreError>;

    /// The order of this id, if clients may see it.
    async fn by_id(&self, id: OrderId) -> Result<Option<Arc<Order>>, StoreError>;

    /// A page of the orders that clients may see and that pass the filter, by ascending id. It costs the same wherever it
    /// is in the list and however few pass.
    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Arc<Order>>, StoreError>;

    /// Gives up the intents from before `abandoned`, and claims up to `most` orders that wait for their release, for so
    /// long: nobody is given them before `now + lease`. First those that were never claimed, then those that were claimed
    /// longest ago: what cannot be released keeps nothing waiting. A claim only saves work; two may release the same order. It
    /// is one atomic step for each order, not for all together: it may fail when some are given up and none is claimed.
    async fn claim(
        &self,
        now: Timestamp,
        abandoned: Timestamp,
        lease: Duration,
        most: usize,
    ) -> Result<Vec<OrderId>, StoreError>;

    /// How many orders have been claimed, and still wait for their release; of more than a thousand, a thousand.
    async fn unsettled(&self) -> Result<i64, StoreError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// An order that is to be placed.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The id it will have.
    pub id: OrderId,
    /// Whose it is.
    pub user_id: Id,
    /// The key that the client gave it, and the fingerprint of its body.
    pub key: Option<(Key, Fingerprint)>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// What came of an intent.
#[derive(Clone, Debug, PartialEq)]
pub enum BeginOutcome {
    /// It is written down.
    Started,
    /// Its key has led to this order already.
    Replayed(Arc<Order>),
    /// Its key is being placed by another attempt.
    InProgress,
    /// Its key belongs to another body.
    KeyMismatch,
}

/// Which orders to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only this user's.
    pub user_id: Option<Id>,
    /// Only those that clients see here.
    pub status: Option<OrderStatus>,
}

/// The store does not answer. What became of the call is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store does not answer: {0}")]
pub struct StoreError(pub String);

/// Opens the store in the database of these settings, or in memory if they have none; with what the start-up line says
/// of it.
///
/// # Errors
/// If the database does not answer for half a minute, or cannot be migrated.
pub async fn open(settings: &DatabaseSettings) -> Result<(Arc<dyn OrderStore>, &'static str), String> {
    let Some(url) = settings.url()? else { return Ok((memory(), MEMORY)) };
    Ok((Arc::new(PostgresStore::open(&url, settings).await?), POSTGRES))
}

/// An empty store in memory.
pub fn memory() -> Arc<dyn OrderStore> {
    Arc::new(MemoryStore::default())
}
