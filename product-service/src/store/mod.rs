//! The store: products, and the reservations on their stock.
//!
//! The trait and its comments are the contract. `contract` is the same in executable form and runs against both stores.

#[cfg(test)]
mod contract;
mod memory;
mod postgres;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::Storage;
use jiff::Timestamp;
use shared::{Id, Money, OrderId};

pub use self::memory::MemoryStore;
pub use self::postgres::PostgresStore;
use crate::product::{CreateProduct, ProductRecord, UpdateProduct};
use crate::reservation::{Reservation, ReservationLines, ReservationOutcome, ReservationRequest};

/// Products by id, and reservations on their stock. Each call is one atomic step.
///
/// Units are conserved: the stock of a product and the reserved units change together. A stock is never negative.
#[async_trait]
pub trait ProductStore: Send + Sync {
    /// Adds a product and assigns the next id. It is higher than every id before, including those of removed products.
    async fn insert(&self, product: CreateProduct, created_at: Timestamp) -> Result<Entity<ProductRecord>, StoreError>;

    /// Returns the product with this id.
    async fn by_id(&self, id: Id) -> Result<Option<Entity<ProductRecord>>, StoreError>;

    /// Returns the products with these ids, each once, by ascending id. Unknown ids are left out.
    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<ProductRecord>>, StoreError>;

    /// Returns a page of all products by ascending id. The cost does not depend on the position of the page.
    ///
    /// With `name`, only products whose name contains it, compared by [`crate::product::case_fold`].
    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Entity<ProductRecord>>, StoreError>;

    /// Replaces the record with the id of `record`, if it is at `expected_version`.
    ///
    /// `None` if it does not exist or has another version. Changes of the stock change the version too.
    async fn replace(
        &self,
        expected_version: i64,
        record: ProductRecord,
    ) -> Result<Option<Entity<ProductRecord>>, StoreError>;

    /// Changes the given members of the product with this id at any version. `None` if it does not exist.
    ///
    /// Reservations cannot delay this call. They could delay a read followed by [`ProductStore::replace`] for ever.
    async fn update(&self, id: Id, change: &UpdateProduct) -> Result<Option<Entity<ProductRecord>>, StoreError>;

    /// Removes the product with this id, if it is at `expected_version`, or at any version without one. Returns whether
    /// it was removed.
    async fn remove(&self, id: Id, expected_version: Option<i64>) -> Result<bool, StoreError>;

    /// Reserves the units of all lines for an order, or of none.
    ///
    /// Safe to repeat: the same lines again return the first result, with its names and prices. A rejected request leaves
    /// no trace.
    async fn reserve(&self, order_id: OrderId, lines: &ReservationLines) -> Result<ReservationOutcome, StoreError> {
        let request = ReservationRequest { order_id, lines: lines.clone() };
        let outcome = self.reserve_many(&[request]).await?.pop();
        outcome.unwrap_or_else(|| Err(StoreError::Unavailable("no outcome for the reservation".to_owned())))
    }

    /// Reserves for several orders, each independently and as if one request followed the other.
    ///
    /// Returns the outcomes in the order of the requests. All requests are one step, unless another transaction holds a row
    /// for too long: then only the requests that need this row fail.
    async fn reserve_many(
        &self,
        requests: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError>;

    /// Releases a reservation for ever. Its units return once to the products that still exist.
    ///
    /// No later request can reserve under this id, even if there was no reservation. Safe to repeat.
    async fn release(&self, order_id: OrderId) -> Result<(), StoreError> {
        self.release_many(&[order_id]).await
    }

    /// Releases several reservations in one step. If another transaction holds a row for too long, the call fails, but
    /// reservations that do not need this row are released.
    async fn release_many(&self, order_ids: &[OrderId]) -> Result<(), StoreError>;

    /// Returns the reservation of this order. `None` if it was neither reserved nor released.
    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError>;

    /// Checks that the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
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

/// Returns the store and its storage: the database of these settings, or memory if they name none. `seed` applies only to a
/// store in memory.
///
/// # Errors
/// If `DATABASE_URL` is invalid.
pub async fn open(settings: &DatabaseSettings, seed: bool) -> Result<(Arc<dyn ProductStore>, Storage), String> {
    let Some(url) = settings.url()? else { return Ok((memory(seed).await?, Storage::Memory)) };
    let store = PostgresStore::new(&url, settings);
    let storage = store.storage();
    Ok((Arc::new(store), storage))
}

/// Returns a store in memory: with the products of the tutorial if `seed`, else empty.
///
/// # Errors
/// If a product cannot be added.
pub async fn memory(seed: bool) -> Result<Arc<dyn ProductStore>, String> {
    let store = MemoryStore::default();
    for (name, cents, stock) in [("Laptop", 99_999, 50), ("Phone", 59_900, 100)].into_iter().filter(|_| seed) {
        let price = Money::from_cents(cents).unwrap_or_default();
        let product = CreateProduct { name: name.to_owned(), price, stock };
        store.insert(product, chassis::now()).await.map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(store))
}
