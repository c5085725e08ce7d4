//! A store that is as faulty as a test wants it: it can be away, and a rival can be quicker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use product_service::product::{NewProduct, Product, ProductChange};
use product_service::reservation::{Lines, Reservation, ReservationOutcome, ReservationRequest};
use product_service::store::{self, ProductStore, StoreError};
use shared::products::Line;
use shared::{Id, OrderId};
use uuid::Uuid;

/// What the store says when it is away, and no client may read.
pub(crate) const CAUSE: &str = "disk on fire";

/// The store of a shop that has just opened, with whatever goes wrong.
pub(crate) struct ShakyStore {
    store: Arc<dyn ProductStore>,
    away: AtomicBool,
    rivals: AtomicU32,
}

impl ShakyStore {
    /// With which nothing is wrong yet.
    pub(crate) async fn open() -> Arc<Self> {
        let store = store::memory(true).await.expect("a store in memory");
        Arc::new(Self { store, away: AtomicBool::new(false), rivals: AtomicU32::new(0) })
    }

    /// From now on it does not answer; or does so again.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// The next so many times that somebody looks at a product, he will find, when he changes it, that one unit was taken
    /// since.
    pub(crate) fn send_rivals(&self, rivals: u32) {
        self.rivals.store(rivals, Ordering::SeqCst);
    }

    fn up(&self) -> Result<&dyn ProductStore, StoreError> {
        if self.away.load(Ordering::SeqCst) { Err(StoreError(CAUSE.to_owned())) } else { Ok(&*self.store) }
    }
}

#[async_trait]
impl ProductStore for ShakyStore {
    async fn insert(&self, new: NewProduct, created_at: Timestamp) -> Result<Arc<Product>, StoreError> {
        self.up()?.insert(new, created_at).await
    }

    async fn by_id(&self, id: Id) -> Result<Option<Arc<Product>>, StoreError> {
        let seen = self.up()?.by_id(id).await;
        let rivals = self.rivals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |rivals| rivals.checked_sub(1));
        if let Ok(rival) = rivals {
            let one = Lines::new(vec![Line { product_id: id, quantity: 1 }]).expect("one line");
            self.store.take(OrderId(Uuid::from_u128(rival.into())), &one).await?;
        }
        seen
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<Product>>, StoreError> {
        self.up()?.by_ids(ids).await
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Arc<Product>>, StoreError> {
        self.up()?.page(page, name).await
    }

    async fn replace(&self, version: i64, product: Product) -> Result<Option<Arc<Product>>, StoreError> {
        self.up()?.replace(version, product).await
    }

    async fn change(&self, id: Id, change: &ProductChange) -> Result<Option<Arc<Product>>, StoreError> {
        self.up()?.change(id, change).await
    }

    async fn remove(&self, id: Id, version: Option<i64>) -> Result<bool, StoreError> {
        self.up()?.remove(id, version).await
    }

    async fn take_each(
        &self,
        takes: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        self.up()?.take_each(takes).await
    }

    async fn release_each(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
        self.up()?.release_each(order_ids).await
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        self.up()?.reservation(order_id).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.up()?.ping().await
    }
}
