//! Products and reservations in memory. They live as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::products::{ReserveAction, Reserved, ReservedLine};
use shared::{Id, OrderId};
use tokio::task;

use super::{ProductStore, StoreError};
use crate::product::{CreateProduct, ProductRecord, UpdateProduct, case_fold};
use crate::reservation::{
    Reservation, ReservationError, ReservationLines, ReservationOutcome, ReservationRequest, ReservationStatus,
};

/// Products that a search by name reads before it unlocks the store for others.
const SEARCH_CHUNK: usize = 4096;

/// The store in memory.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few map look-ups and never across an await. No code that holds it can panic in the middle of a change,
    /// so a poisoned lock is used like any other.
    tables: RwLock<Tables>,
}

/// Products and reservations, and the steps that change both.
///
/// The store in PostgreSQL copies the rows of a batch into it, to decide the batch by the same rules.
#[derive(Default)]
pub(super) struct Tables {
    products: BTreeMap<Id, Entity<ProductRecord>>,
    last_id: i64,
    /// Released reservations stay: each is the tombstone that rejects a late request.
    reservations: HashMap<OrderId, Reservation>,
}

impl MemoryStore {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Returns tables with these rows.
    pub(super) fn new(products: Vec<Entity<ProductRecord>>, reservations: Vec<Reservation>) -> Self {
        let products = products.into_iter().map(|record| (record.product.id, record)).collect();
        let reservations = reservations.into_iter().map(|reservation| (reservation.order_id, reservation)).collect();
        Self { products, last_id: 0, reservations }
    }

    /// Returns the lines with the current names and prices, if all of them can be reserved.
    fn reservable(&self, lines: &ReservationLines) -> Result<Vec<ReservedLine>, ReservationError> {
        let (mut reservable, mut unknown, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for (index, line) in lines.as_slice().iter().enumerate() {
            let Some(record) = self.products.get(&line.product_id) else {
                unknown.push(index);
                continue;
            };
            let product = &record.product;
            if product.stock < i64::from(line.quantity) {
                short.push((index, product.stock));
            }
            let (product_id, quantity) = (line.product_id, line.quantity);
            reservable.push(ReservedLine { product_id, name: product.name.clone(), price: product.price, quantity });
        }
        if !unknown.is_empty() {
            return Err(ReservationError::UnknownProducts(unknown));
        }
        if !short.is_empty() {
            return Err(ReservationError::InsufficientStock(short));
        }
        Ok(reservable)
    }

    /// Adds units, which may be negative, to the stock of a product, if it exists.
    fn add_stock(&mut self, id: Id, units: i64) {
        if let Some(record) = self.products.get_mut(&id) {
            record.update(|record| {
                record.product.stock += units;
                record.version += 1;
            });
        }
    }

    /// Reserves the units of all lines for an order, or of none.
    pub(super) fn reserve(&mut self, order_id: OrderId, lines: &ReservationLines) -> ReservationOutcome {
        let existing = self.reservations.get(&order_id);
        match (ReservationStatus::on_reserve(existing.map(|existing| existing.status)), existing) {
            (ReserveAction::ReturnExisting, Some(existing)) if lines.matches(&existing.lines) => {
                ReservationOutcome::Existing(Reserved { order_id, lines: existing.lines.clone() })
            }
            (ReserveAction::ReturnExisting, _) => ReservationOutcome::Rejected(ReservationError::Mismatch),
            (ReserveAction::Reject, _) => ReservationOutcome::Rejected(ReservationError::Released),
            (ReserveAction::Reserve, _) => match self.reservable(lines) {
                Err(error) => ReservationOutcome::Rejected(error),
                Ok(lines) => {
                    for line in &lines {
                        self.add_stock(line.product_id, -i64::from(line.quantity));
                    }
                    let reservation = Reservation { order_id, status: ReservationStatus::Taken, lines: lines.clone() };
                    self.reservations.insert(order_id, reservation);
                    ReservationOutcome::Created(Reserved { order_id, lines })
                }
            },
        }
    }

    fn release(&mut self, order_id: OrderId) {
        let before = self.reservations.get(&order_id).map(|reservation| reservation.status);
        let status = ReservationStatus::after_release(before);
        let tombstone = Reservation { order_id, status, lines: Vec::new() };
        let reservation = self.reservations.entry(order_id).or_insert(tombstone);
        reservation.status = status;
        if ReservationStatus::release_returns_stock(before) {
            for line in reservation.lines.clone() {
                self.add_stock(line.product_id, line.quantity.into());
            }
        }
    }
}

#[async_trait]
impl ProductStore for MemoryStore {
    async fn insert(&self, product: CreateProduct, created_at: Timestamp) -> Result<Entity<ProductRecord>, StoreError> {
        let mut tables = self.write();
        let next = tables.last_id + 1;
        let id = Id::new(next).ok_or_else(|| StoreError::Unavailable("out of ids".to_owned()))?;
        let entity = Entity::new(product.into_record(id, created_at));
        tables.products.insert(id, entity.clone());
        tables.last_id = next;
        Ok(entity)
    }

    async fn by_id(&self, id: Id) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        Ok(self.read().products.get(&id).cloned())
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<ProductRecord>>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let tables = self.read();
        Ok(ids.iter().filter_map(|id| tables.products.get(id).cloned()).collect())
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Entity<ProductRecord>>, StoreError> {
        let name = case_fold(name.unwrap_or_default());
        let (mut found, mut after) = (Vec::new(), page.after);
        loop {
            let mut read = 0;
            {
                let tables = self.read();
                let start = after.map_or(Bound::Unbounded, Bound::Excluded);
                for (id, record) in tables.products.range((start, Bound::Unbounded)).take(SEARCH_CHUNK) {
                    (after, read) = (Some(*id), read + 1);
                    if name.is_empty() || case_fold(&record.product.name).contains(&name) {
                        found.push(record.clone());
                        if found.len() > page.limit {
                            break;
                        }
                    }
                }
            }
            if read < SEARCH_CHUNK || found.len() > page.limit {
                return Ok(Rows::cut(found.into_iter(), page.limit));
            }
            task::yield_now().await;
        }
    }

    async fn replace(
        &self,
        expected_version: i64,
        record: ProductRecord,
    ) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        let mut tables = self.write();
        let current = tables.products.get_mut(&record.product.id);
        let Some(current) = current.filter(|current| current.version == expected_version) else { return Ok(None) };
        *current = Entity::new(record);
        Ok(Some(current.clone()))
    }

    async fn update(&self, id: Id, change: &UpdateProduct) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        let mut tables = self.write();
        let Some(current) = tables.products.get_mut(&id) else { return Ok(None) };
        current.update(|record| change.apply(record));
        Ok(Some(current.clone()))
    }

    async fn remove(&self, id: Id, expected_version: Option<i64>) -> Result<bool, StoreError> {
        let mut tables = self.write();
        let current = tables.products.get(&id);
        let matches = current.is_some_and(|current| expected_version.is_none_or(|version| version == current.version));
        Ok(matches && tables.products.remove(&id).is_some())
    }

    async fn reserve_many(
        &self,
        requests: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        // One lock for all requests: the most lines that fit into a request body take less than a millisecond.
        let mut tables = self.write();
        Ok(requests.iter().map(|request| Ok(tables.reserve(request.order_id, &request.lines))).collect())
    }

    async fn release_many(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
        let mut tables = self.write();
        order_ids.iter().for_each(|order_id| tables.release(*order_id));
        Ok(())
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        Ok(self.read().reservations.get(&order_id).cloned())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
