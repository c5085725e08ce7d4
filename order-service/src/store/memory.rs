//! Orders in memory, for as long as the process lives.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use jiff::Timestamp;
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Id, Money, OrderId};

use super::{BeginOutcome, Filter, Intent, OrderStore, StoreError};
use crate::idempotency::{Fingerprint, Key};
use crate::order::{AfterRelease, State};

/// The store in memory.
#[derive(Default)]
pub struct MemoryStore {
    /// Held for a few map look-ups and never across an `await`. No change can panic half-way, so a poisoned lock is used
    /// like any other.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    rows: BTreeMap<OrderId, Row>,
    indexes: Indexes,
}

/// The indexes over the rows, besides their ids.
#[derive(Default)]
struct Indexes {
    /// The row that holds each idempotency key.
    keys: HashMap<Key, OrderId>,
    /// The visible rows by user, status and id. Each row has two entries, one of them without its user, so each
    /// combination of filters is at most one range per status.
    visible: BTreeSet<(Option<Id>, OrderStatus, OrderId)>,
    /// The rows that are placing, aborting or cancelling, and the end of each claim.
    unfinished: BTreeMap<OrderId, Timestamp>,
}

struct Row {
    state: State,
    /// What clients see. For an intent: what is known so far.
    order: Entity<Order>,
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
        let status = OrderStatus::Pending; // invisible until the intent is settled
        let order = Order { id, user_id, products: Vec::new(), total: Money::default(), status, created_at };
        Self { state: State::Placing, order: Entity::new(order), key }
    }
}

impl Tables {
    /// Returns the outcome for an intent whose key is in use.
    fn key_in_use(&self, intent: &Intent) -> Option<BeginOutcome> {
        let (key, fingerprint) = intent.key.as_ref()?;
        let row = self.rows.get(self.indexes.keys.get(key)?)?;
        let same_body = row.key.as_ref().is_some_and(|(_, earlier)| earlier == fingerprint);
        Some(match row.state.visible_status() {
            _ if !same_body => BeginOutcome::KeyMismatch,
            Some(_) => BeginOutcome::Replayed(row.order.clone()),
            None => BeginOutcome::InProgress,
        })
    }

    /// Moves a row to the state that `step` returns, and applies `edit`. Does nothing if `step` returns `None`.
    fn move_row(
        &mut self,
        id: OrderId,
        step: impl FnOnce(State) -> Option<State>,
        edit: impl FnOnce(&mut Order),
    ) -> Option<Entity<Order>> {
        let row = self.rows.get_mut(&id)?;
        let next = step(row.state)?;
        self.indexes.remove(row);
        row.state = next;
        row.order.update(|order| {
            edit(order);
            order.status = next.visible_status().unwrap_or(order.status);
        });
        self.indexes.insert(row);
        Some(row.order.clone())
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
        if let Some(status) = row.state.visible_status() {
            self.visible.extend([None, Some(user_id)].map(|user| (user, status, id)));
        }
        if let Some((key, _)) = row.key.as_ref().filter(|_| row.state.holds_key()) {
            self.keys.insert(key.clone(), id);
        }
        if row.state == State::Placing || row.state.needs_release() {
            self.unfinished.insert(id, Timestamp::MIN);
        }
    }

    fn remove(&mut self, row: &Row) {
        let (id, user_id) = (row.order.id, row.order.user_id);
        if let Some(status) = row.state.visible_status() {
            for user in [None, Some(user_id)] {
                self.visible.remove(&(user, status, id));
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
        if let Some(outcome) = tables.key_in_use(&intent) {
            return Ok(outcome);
        }
        tables.insert(Row::placing(intent));
        Ok(BeginOutcome::Started)
    }

    async fn settle(
        &self,
        id: OrderId,
        lines: Vec<OrderLine>,
        total: Money,
    ) -> Result<Option<Entity<Order>>, StoreError> {
        let fill = |order: &mut Order| (order.products, order.total) = (lines, total);
        Ok(self.write().move_row(id, State::settle, fill))
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        Ok(self.write().move_row(id, State::abort, |_| ()).is_some())
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Entity<Order>>, StoreError> {
        let step = |state: State| (state.visible_status() == Some(from)).then_some(to);
        Ok(self.write().move_row(id, step, |_| ()))
    }

    async fn finish_release(&self, id: OrderId) -> Result<(), StoreError> {
        let mut tables = self.write();
        match tables.rows.get(&id).and_then(|row| row.state.after_release()) {
            Some(AfterRelease::Deleted) => tables.remove(id),
            Some(AfterRelease::Kept(state)) => {
                tables.move_row(id, |_| Some(state), |_| ());
            }
            None => {}
        }
        Ok(())
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Entity<Order>>, StoreError> {
        let tables = self.read();
        let row = tables.rows.get(&id).filter(|row| row.state.visible_status().is_some());
        Ok(row.map(|row| row.order.clone()))
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Entity<Order>>, StoreError> {
        let tables = self.read();
        let with_status = |status: OrderStatus| {
            let entry = |id| (filter.user_id, status, id);
            let first = page.after.map_or(Bound::Included(entry(OrderId::MIN)), |id| Bound::Excluded(entry(id)));
            let found = tables.indexes.visible.range((first, Bound::Included(entry(OrderId::MAX))));
            found.map(|(_, _, id)| id).take(page.limit + 1) // one more shows whether another page follows
        };
        let statuses = OrderStatus::ALL.into_iter().filter(|status| filter.status.is_none_or(|only| only == *status));
        let mut ids: Vec<_> = statuses.flat_map(with_status).collect();
        ids.sort_unstable();
        let rows = ids.into_iter().filter_map(|id| tables.rows.get(id)).map(|row| row.order.clone());
        Ok(Rows::cut(rows, page.limit))
    }

    async fn claim(&self, abandon_after: Duration, lease: Duration, limit: usize) -> Result<Vec<OrderId>, StoreError> {
        let mut tables = self.write();
        let now = chassis::now();
        let abandoned_before = now.checked_sub(abandon_after).unwrap_or(Timestamp::MIN);
        let is_abandoned = |row: &Row| row.state == State::Placing && row.order.created_at <= abandoned_before;
        let unfinished = tables.indexes.unfinished.keys().filter(|id| tables.rows.get(id).is_some_and(is_abandoned));
        for id in unfinished.copied().collect::<Vec<_>>() {
            tables.move_row(id, State::abort, |_| ());
        }
        let until = now.checked_add(lease).unwrap_or(Timestamp::MAX);
        let Tables { rows, indexes } = &mut *tables;
        let is_claimable = |(id, claimed_until): &(&OrderId, &mut Timestamp)| {
            **claimed_until <= now && rows.get(id).is_some_and(|row| row.state.needs_release())
        };
        let mut waiting: Vec<_> = indexes.unfinished.iter_mut().filter(is_claimable).collect();
        waiting.sort_by_key(|(_, claimed_until)| **claimed_until); // stable, so equal claims stay in the order of ids
        let claimed = waiting.into_iter().take(limit).map(|(id, claimed_until)| {
            *claimed_until = until;
            *id
        });
        Ok(claimed.collect())
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        let Tables { rows, indexes } = &*self.read();
        let claimed = indexes.unfinished.iter().filter(|(id, claimed_until)| {
            **claimed_until > Timestamp::MIN && rows.get(id).is_some_and(|row| row.state.needs_release())
        });
        Ok(claimed.take(1000).count() as i64)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
