//! What is kept. The trait and its comments are the contract; `contract` is the same, to be run against each store.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::{Id, Money, OrderId};

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
use crate::product::{NewProduct, Product, ProductChange};
use crate::reservation::{Lines, Reservation, ReservationOutcome, ReservationRequest};

/// What the start-up line says of the store in memory.
pub const MEMORY: &str = "memory (a restart forgets everything)";
/// What it says of the one in PostgreSQL.
pub const POSTGRES: &str = "PostgreSQL";

/// Products by id, and reservations on their stock. Each call is one atomic step.
///
/// Units are conserved: a product's stock and what reservations hold of it change together, and a stock is never below
/// zero.
#[async_trait]
pub trait ProductStore: Send + Sync {
    /// Adds a product under the next id, which is higher than any before, also than those that were removed.
    async fn insert(&self, new: NewProduct, created_at: Timestamp) -> Result<Arc<Product>, StoreError>;

    /// The product of this id.
    async fn by_id(&self, id: Id) -> Result<Option<Arc<Product>>, StoreError>;

    /// The products of these ids that there are, each once, by ascending id.
    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<Product>>, StoreError>;

    /// A page of all products by ascending id; with `name`, of those whose name has it as a part, compared by
    /// [`crate::product::fold`]. Without, it costs the same wherever it is in the list.
    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Arc<Product>>, StoreError>;

    /// Puts `product` in the place of the one of its id, if that is still at `version`; `None` if it has changed since,
    /// its stock included, or is gone.
    async fn replace(&self, version: i64, product: Product) -> Result<Option<Arc<Product>>, StoreError>;

    /// Changes the product of this id, at whatever version it is: what is not given stays as it is at that moment. `None` if
    /// it is gone. It does not wait for a moment without takes, as who looks and then replaces would have to.
    async fn change(&self, id: Id, change: &ProductChange) -> Result<Option<Arc<Product>>, StoreError>;

    /// Removes the product of this id, if it is still at `version`, or at any if none is given. Whether it did.
    async fn remove(&self, id: Id, version: Option<i64>) -> Result<bool, StoreError>;

    /// Takes the units of all lines for an order, or of none. Safe to repeat: the same lines again are answered as the
    /// first time, with the names and prices of then. A refused take leaves no trace.
    async fn take(&self, order_id: OrderId, lines: &Lines) -> Result<ReservationOutcome, StoreError> {
        let mut taken = self.take_each(&[ReservationRequest { order_id, lines: lines.clone() }]).await?;
        taken.pop().unwrap_or_else(|| Err(StoreError("it does not say what came of a take".to_owned())))
    }

    /// The same for several orders, each on its own and as if one came after the other: all in one step, unless somebody else
    /// keeps one of them waiting for too long. What came of each, in the order asked; an error for those that were kept waiting.
    async fn take_each(
        &self,
        takes: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError>;

    /// Releases a reservation for ever: what it holds goes back to the products that still exist, once; and no take
    /// under this id succeeds again, also if there was none yet. Safe to repeat.
    async fn release(&self, order_id: OrderId) -> Result<(), StoreError> {
        self.release_each(&[order_id]).await
    }

    /// The same for several reservations, in one step. If somebody else keeps one of them waiting for too long, the others are
    /// released all the same, and it fails.
    async fn release_each(&self, order_ids: &[OrderId]) -> Result<(), StoreError>;

    /// The reservation of this order; `None` if there was neither a take nor a release.
    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The store does not answer. What became of the call is unknown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store does not answer: {0}")]
pub struct StoreError(pub String);

/// Opens the store that the settings ask for, and says what the start-up line calls it. Only one in memory is seeded.
///
/// # Errors
/// If the database does not answer or cannot be brought up to date.
pub async fn open(settings: &DatabaseSettings, seed: bool) -> Result<(Arc<dyn ProductStore>, &'static str), String> {
    match settings.url()? {
        None => Ok((memory(seed).await?, MEMORY)),
        Some(url) => Ok((Arc::new(PostgresStore::open(&url, settings).await?), POSTGRES)),
    }
}

/// A store in memory, with the products of the tutorial in it if `seed`.
///
/// # Errors
/// If the products cannot be added.
pub async fn memory(seed: bool) -> Result<Arc<dyn ProductStore>, String> {
    let store = MemoryStore::default();
    for (name, cents, stock) in [("Laptop", 99_999, 50), ("Phone", 59_900, 100)].into_iter().filter(|_| seed) {
        let price = Money::from_cents(cents).unwrap_or_default();
        let new = NewProduct { name: name.to_owned(), price, stock };
        store.insert(new, chassis::now()).await.map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(store))
}
