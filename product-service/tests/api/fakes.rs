//! A store with faults: it can be unavailable, and another request can be faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use product_service::product::{CreateProduct, ProductRecord, UpdateProduct};
use product_service::reservation::{Reservation, ReservationLines, ReservationOutcome, ReservationRequest};
use product_service::store::{self, ProductStore, StoreError};
use shared::products::Line;
use shared::{Id, OrderId};
use uuid::Uuid;

/// The cause of the failure. It is for the log: no client may see it.
pub(crate) const CAUSE: &str = "disk on fire";

/// A store with two products, and with faults that a test switches on.
pub(crate) struct FaultyStore {
    store: Arc<dyn ProductStore>,
    unavailable: AtomicBool,
    rivals: AtomicU32,
}

impl FaultyStore {
    /// Returns a store without faults.
    pub(crate) async fn open() -> Arc<Self> {
        let store = store::memory(true).await.expect("a store in memory");
        Arc::new(Self { store, unavailable: AtomicBool::new(false), rivals: AtomicU32::new(0) })
    }

    /// Makes every call fail from now on, or none.
    pub(crate) fn set_unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, Ordering::SeqCst);
    }

    /// Reserves one unit of the product right after each of the next reads of a product.
    pub(crate) fn add_rivals(&self, rivals: u32) {
        self.rivals.store(rivals, Ordering::SeqCst);
    }

    fn available(&self) -> Result<&dyn ProductStore, StoreError> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable(CAUSE.to_owned()));
        }
        Ok(&*self.store)
    }
}

#[async_trait]
impl ProductStore for FaultyStore {
    async fn insert(&self, product: CreateProduct, created_at: Timestamp) -> Result<Entity<ProductRecord>, StoreError> {
        self.available()?.insert(product, created_at).await
    }

    async fn by_id(&self, id: Id) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        let found = self.available()?.by_id(id).await;
        let rivals = self.rivals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |rivals| rivals.checked_sub(1));
        if let Ok(rival) = rivals {
            let one = ReservationLines::new(vec![Line { product_id: id, quantity: 1 }]).expect("one line");
            self.store.reserve(OrderId(Uuid::from_u128(rival.into())), &one).await?;
        }
        found
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<ProductRecord>>, StoreError> {
        self.available()?.by_ids(ids).await
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Entity<ProductRecord>>, StoreError> {
        self.available()?.page(page, name).await
    }

    async fn replace(
        &self,
        expected_version: i64,
        record: ProductRecord,
    ) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        self.available()?.replace(expected_version, record).await
    }

    async fn update(&self, id: Id, change: &UpdateProduct) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        self.available()?.update(id, change).await
    }

    async fn remove(&self, id: Id, expected_version: Option<i64>) -> Result<bool, StoreError> {
        self.available()?.remove(id, expected_version).await
    }

    async fn reserve_many(
        &self,
        requests: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        self.available()?.reserve_many(requests).await
    }

    async fn release_many(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
        self.available()?.release_many(order_ids).await
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        self.available()?.reservation(order_id).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.available()?.ping().await
    }
}
