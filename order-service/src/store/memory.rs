//! Orders in memory, for as long as the process lives.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Id, Money, OrderId};

use super::{BeginOutcome, Filter, Intent, OrderStore, StoreError};
use crate::idempotency::{Fingerprint, Key};
use crate::order::{Released, State};

/// The store in memory. An order is shared with whoever reads it, and what they have never changes: it is edited when
/// nobody else has it, and else replaced.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few map look-ups at a time and never across an await. Nothing under it can panic half-way through a
    /// change, so a poisoned lock is taken all the same.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    rows: HashMap<OrderId, Row>,
    indexes: Indexes,
}

/// By what rows are found, besides their ids.
#[derive(Default)]
struct Indexes {
    /// The row that holds each key.
    keys: HashMap<Key, OrderId>,
    /// The rows that clients may see, by where they stand: once among all, once among their user's. A page of any filter is
    /// merged from at most one piece of it for each status.
    shown: BTreeSet<(Option<Id>, OrderStatus, OrderId)>,
    /// The rows that are not at rest, and until when each is claimed.
    unfinished: BTreeMap<OrderId, Timestamp>,
}

struct Row {
    state: State,
    /// As clients see it; of an intent, only what is known of it.
    order: Arc<Order>,
    key: Option<(Key, Fingerprint)>,
}

impl MemoryStore {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn placing(intent: Intent) -> Self {
        let Intent { id, user_id, key, created_at } = intent;
        let status = OrderStatus::Pending; // shown to nobody until it is true
        let order = Order { id, user_id, products: Vec::new(), total: Money::default(), status, created_at };
        Self { state: State::Placing, order: Arc::new(order), key }
    }
}

impl Tables {
    /// What the key of `intent` has led to, if it is in use.
    fn earlier(&self, intent: &Intent) -> Option<BeginOutcome> {
        let (key, fingerprint) = intent.key.as_ref()?;
        let row = self.rows.get(self.indexes.keys.get(key)?)?;
        let same_body = row.key.as_ref().is_some_and(|(_, earlier)| earlier == fingerprint);
        Some(match row.state.shown() {
            _ if !same_body => BeginOutcome::KeyMismatch,
            Some(_) => BeginOutcome::Replayed(Arc::clone(&row.order)),
            None => BeginOutcome::InProgress,
        })
    }

    /// Moves a row to the state that `step` leads to, if it leads anywhere from where the row is, and `edit`s it.
    fn move_row(
        &mut self,
        id: OrderId,
        step: impl FnOnce(State) -> Option<State>,
        edit: impl FnOnce(&mut Order),
    ) -> Option<Arc<Order>> {
        let row = self.rows.get_mut(&id)?;
        let next = step(row.state)?;
        self.indexes.remove(row);
        row.state = next;
        let order = Arc::make_mut(&mut row.order);
        edit(order);
        order.status = next.shown().unwrap_or(order.status);
        self.indexes.insert(row);
        Some(Arc::clone(&row.order))
    }

    fn insert(&mut self, row: Row) {
        self.indexes.insert(&row);
        self.rows.insert(row.order.id, row);
    }

    fn remove(&mut self, id: OrderId) {
        if let Some(row) = self.rows.remove(&id) {
            self.indexes.remove(&row);
        }
    }
}

impl Indexes {
    fn insert(&mut self, row: &Row) {
        let (id, user_id) = (row.order.id, row.order.user_id);
        if let Some(status) = row.state.shown() {
            self.shown.extend([None, Some(user_id)].map(|user| (user, status, id)));
        }
        if let Some((key, _)) = row.key.as_ref().filter(|_| row.state.holds_key()) {
            self.keys.insert(key.clone(), id);
        }
        if row.state == State::Placing || row.state.wants_release() {
            self.unfinished.insert(id, Timestamp::MIN);
        }
    }

    fn remove(&mut self, row: &Row) {
        let (id, user_id) = (row.order.id, row.order.user_id);
        if let Some(status) = row.state.shown() {
            for user in [None, Some(user_id)] {
                self.shown.remove(&(user, status, id));
            }
        }
        if let Some((key, _)) = row.key.as_ref().filter(|_| row.state.holds_key()) {
            self.keys.remove(key);
        }
        self.unfinished.remove(&id);
    }
}

#[async_trait]
impl OrderStore for MemoryStore {
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError> {
        let mut tables = self.write();
        if tables.rows.contains_key(&intent.id) {
            return Ok(BeginOutcome::Started);
        }
        let earlier = tables.earlier(&intent);
        if earlier.is_none() {
            tables.insert(Row::placing(intent));
        }
        Ok(earlier.unwrap_or(BeginOutcome::Started))
    }

    async fn settle(&self, id: OrderId, lines: Vec<OrderLine>, total: Money) -> Result<Option<Arc<Order>>, StoreError> {
        let fill = |order: &mut Order| (order.products, order.total) = (lines, total);
        Ok(self.write().move_row(id, State::settle, fill))
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        Ok(self.write().move_row(id, State::abort, |_| ()).is_some())
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Arc<Order>>, StoreError> {
        let step = |state: State| (state.shown() == Some(from)).then_some(to);
        Ok(self.write().move_row(id, step, |_| ()))
    }

    async fn released(&self, id: OrderId) -> Result<(), StoreError> {
        let mut tables = self.write();
        match tables.rows.get(&id).and_then(|row| row.state.released()) {
            Some(Released::Gone) => tables.remove(id),
            Some(Released::Kept(state)) => {
                tables.move_row(id, |_| Some(state), |_| ());
            }
            None => {}
        }
        Ok(())
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Arc<Order>>, StoreError> {
        let tables = self.read();
        let row = tables.rows.get(&id).filter(|row| row.state.shown().is_some());
        Ok(row.map(|row| Arc::clone(&row.order)))
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Arc<Order>>, StoreError> {
        let tables = self.read();
        let standing = |status: OrderStatus| {
            let at = |id| (filter.user_id, status, id);
            let from = page.after.map_or(Bound::Included(at(OrderId::MIN)), |id| Bound::Excluded(at(id)));
            let found = tables.indexes.shown.range((from, Bound::Included(at(OrderId::MAX))));
            found.map(|(_, _, id)| id).take(page.limit + 1) // do more follow?
        };
        let statuses = OrderStatus::ALL.into_iter().filter(|status| filter.status.is_none_or(|only| only == *status));
        let mut ids: Vec<_> = statuses.flat_map(standing).collect();
        ids.sort_unstable();
        let rows = ids.into_iter().filter_map(|id| tables.rows.get(id)).map(|row| Arc::clone(&row.order));
        Ok(Rows::cut(rows, page.limit))
    }

    async fn claim(
        &self,
        now: Timestamp,
        abandoned: Timestamp,
        lease: Duration,
        most: usize,
    ) -> Result<Vec<OrderId>, StoreError> {
        let mut tables = self.write();
        let is_abandoned = |row: &Row| row.state == State::Placing && row.order.created_at < abandoned;
        let unfinished = tables.indexes.unfinished.keys().filter(|id| tables.rows.get(id).is_some_and(is_abandoned));
        for id in unfinished.copied().collect::<Vec<_>>() {
            tables.move_row(id, State::abort, |_| ());
        }
        let until = now.checked_add(lease).unwrap_or(Timestamp::MAX);
        let Tables { rows, indexes } = &mut *tables;
        let waits = |(id, claimed): &(&OrderId, &mut Timestamp)| {
            **claimed <= now && rows.get(id).is_some_and(|row| row.state.wants_release())
        };
        let mut waiting: Vec<_> = indexes.unfinished.iter_mut().filter(waits).collect();
        waiting.sort_by_key(|(_, claimed)| **claimed); // and, since that is stable, by id
        let claimed = waiting.into_iter().take(most).map(|(id, claimed)| {
            *claimed = until;
            *id
        });
        Ok(claimed.collect())
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        let Tables { rows, indexes } = &*self.read();
        let claimed = indexes.unfinished.iter().filter(|(id, claimed)| {
            **claimed > Timestamp::MIN && rows.get(id).is_some_and(|row| row.state.wants_release())
        });
        Ok(claimed.take(1000).count() as i64)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
