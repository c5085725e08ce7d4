//! Products and reservations in memory, for as long as the process lives.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use chassis::table::Table;
use jiff::Timestamp;
use shared::products::{Line, Reserved, ReservedLine, Take};
use shared::{Id, OrderId, products};
use tokio::task;

use super::{ProductStore, StoreError};
use crate::product::{NewProduct, Product, ProductChange, fold};
use crate::reservation::{Lines, Refusal, Reservation, ReservationOutcome, ReservationRequest, ReservationStatus};

/// Products looked at for a part of their name before others get the lock.
const SEARCHED_AT_ONCE: usize = 4096;

/// The store in memory. A row is shared with whoever reads it, and what they have never changes: it is edited when
/// nobody else has it, and else replaced.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few map look-ups at a time and never across an await. Nothing under it can panic half-way through a
    /// change, so a poisoned lock is taken all the same.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    products: Table<Arc<Product>>,
    last_id: i64,
    /// Released ones stay: each is the tombstone that refuses a late take.
    reservations: HashMap<OrderId, Held>,
}

struct Held {
    status: ReservationStatus,
    lines: Vec<ReservedLine>,
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
    /// The lines at today's names and prices, if all can be taken.
    fn price(&self, lines: &Lines) -> Result<Vec<ReservedLine>, Refusal> {
        let wanted =
            || lines.as_slice().iter().map(|line| (line, self.products.get(line.product_id.get()))).enumerate();
        let unknown: Vec<usize> = wanted().filter(|(_, (_, product))| product.is_none()).map(|(at, _)| at).collect();
        if !unknown.is_empty() {
            return Err(Refusal::Unknown(unknown));
        }
        let stock = |product: Option<&Arc<Product>>| product.map_or(0, |product| product.public.stock);
        let short = wanted().map(|(at, (line, product))| (at, line.quantity, stock(product)));
        let short: Vec<_> =
            short.filter(|&(_, wanted, left)| left < i64::from(wanted)).map(|(at, _, left)| (at, left)).collect();
        if !short.is_empty() {
            return Err(Refusal::InsufficientStock(short));
        }
        Ok(wanted().filter_map(|(_, (line, product))| Some(priced(line, product?))).collect())
    }

    /// Adds `units` (which may be negative) to the stock of a product, if it still exists.
    fn restock(&mut self, id: Id, units: i64) {
        if let Some(product) = self.products.get_mut(id.get()) {
            let product = Arc::make_mut(product);
            product.public.stock += units;
            product.version += 1;
        }
    }

    fn take(&mut self, order_id: OrderId, lines: &Lines) -> ReservationOutcome {
        let held = self.reservations.get(&order_id);
        match (ReservationStatus::on_take(held.map(|held| held.status)), held) {
            (Take::Repeated, Some(held)) if lines.matches(&held.lines) => {
                ReservationOutcome::Existing(Reserved { order_id, lines: held.lines.clone() })
            }
            (Take::Repeated, _) => ReservationOutcome::Rejected(Refusal::Mismatch),
            (Take::Refused, _) => ReservationOutcome::Rejected(Refusal::Released),
            (Take::Fresh, _) => match self.price(lines) {
                Err(refusal) => ReservationOutcome::Rejected(refusal),
                Ok(priced) => {
                    for line in &priced {
                        self.restock(line.product_id, -i64::from(line.quantity));
                    }
                    let held = Held { status: ReservationStatus::Taken, lines: priced.clone() };
                    self.reservations.insert(order_id, held);
                    ReservationOutcome::Created(Reserved { order_id, lines: priced })
                }
            },
        }
    }

    fn release(&mut self, order_id: OrderId) {
        let before = self.reservations.get(&order_id).map(|held| held.status);
        let status = ReservationStatus::after_release(before);
        let nothing = Held { status, lines: Vec::new() };
        let held = self.reservations.entry(order_id).or_insert(nothing);
        held.status = status;
        if ReservationStatus::gives_back(before) {
            for line in held.lines.clone() {
                self.restock(line.product_id, line.quantity.into());
            }
        }
    }
}

fn priced(line: &Line, product: &Product) -> ReservedLine {
    let products::Product { name, price, .. } = &product.public;
    ReservedLine { product_id: line.product_id, name: name.clone(), price: *price, quantity: line.quantity }
}

#[async_trait]
impl ProductStore for MemoryStore {
    async fn insert(&self, new: NewProduct, created_at: Timestamp) -> Result<Arc<Product>, StoreError> {
        let mut tables = self.write();
        let next = tables.last_id + 1;
        let id = Id::new(next).ok_or_else(|| StoreError("out of ids".to_owned()))?;
        let NewProduct { name, price, stock } = new;
        let public = products::Product { id, name, price, stock, created_at };
        let product = Arc::new(Product { public, version: 1 });
        tables.products.put(next, Arc::clone(&product));
        tables.last_id = next;
        Ok(product)
    }

    async fn by_id(&self, id: Id) -> Result<Option<Arc<Product>>, StoreError> {
        Ok(self.read().products.get(id.get()).cloned())
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<Product>>, StoreError> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let tables = self.read();
        Ok(ids.iter().filter_map(|id| tables.products.get(id.get()).cloned()).collect())
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Arc<Product>>, StoreError> {
        let name = fold(name.unwrap_or_default());
        let (mut found, mut after) = (Vec::new(), page.after.map(Id::get));
        loop {
            let looked_at = {
                let tables = self.read();
                let rows = tables.products.after(after).take(SEARCHED_AT_ONCE);
                let mut looked_at = 0;
                for (number, product) in rows.inspect(|_| looked_at += 1) {
                    after = Some(number);
                    if name.is_empty() || fold(&product.public.name).contains(&name) {
                        found.push(Arc::clone(product));
                        if found.len() > page.limit {
                            break;
                        }
                    }
                }
                looked_at
            };
            if looked_at < SEARCHED_AT_ONCE || found.len() > page.limit {
                return Ok(Rows::cut(found.into_iter(), page.limit));
            }
            task::yield_now().await;
        }
    }

    async fn replace(&self, version: i64, product: Product) -> Result<Option<Arc<Product>>, StoreError> {
        let mut tables = self.write();
        let Some(current) = tables.products.get_mut(product.public.id.get()).filter(|row| row.version == version)
        else {
            return Ok(None);
        };
        *current = Arc::new(product);
        Ok(Some(Arc::clone(current)))
    }

    async fn change(&self, id: Id, change: &ProductChange) -> Result<Option<Arc<Product>>, StoreError> {
        let mut tables = self.write();
        let Some(current) = tables.products.get_mut(id.get()) else { return Ok(None) };
        *current = Arc::new(change.apply(current));
        Ok(Some(Arc::clone(current)))
    }

    async fn remove(&self, id: Id, version: Option<i64>) -> Result<bool, StoreError> {
        let mut tables = self.write();
        let there =
            tables.products.get(id.get()).is_some_and(|row| version.is_none_or(|version| row.version == version));
        if there {
            tables.products.remove(id.get());
        }
        Ok(there)
    }

    // One lock for all: the lines that a request has room for are looked up in less than a millisecond.

    async fn take_each(
        &self,
        takes: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        let mut tables = self.write();
        Ok(takes.iter().map(|take| Ok(tables.take(take.order_id, &take.lines))).collect())
    }

    async fn release_each(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
        let mut tables = self.write();
        order_ids.iter().for_each(|order_id| tables.release(*order_id));
        Ok(())
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        let tables = self.read();
        let held = tables.reservations.get(&order_id);
        Ok(held.map(|held| Reservation { order_id, status: held.status, lines: held.lines.clone() }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
