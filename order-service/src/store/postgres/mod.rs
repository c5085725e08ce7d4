//! Orders in PostgreSQL.
//!
//! Each step is one statement, so no transaction stays open while a task waits. Each step is safe to repeat: when a
//! connection breaks, the statement may be done and its response lost; the next try then finds the step done and
//! reports success. Concurrent steps of the same kind share one statement ([`batched`]).

mod batched;
#[cfg(test)]
mod plans;
#[cfg(test)]
pub(super) mod tests;

use std::time::Duration;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::{Failure, Pool, Storage};
use jiff_sqlx::ToSqlx;
use serde::{Deserialize, Serialize};
use shared::orders::{Order, OrderLine, OrderStatus};
use shared::{Id, Money, OrderId};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{Error, Postgres, Row, query, query_scalar};
use uuid::Uuid;

use self::batched::{BatchedStatement, StatementSpec, StepResult};
use super::{BeginOutcome, Filter, Intent, OrderStore, StoreError};
use crate::SERVICE;
use crate::order::State;

type PgQuery = Query<'static, Postgres, PgArguments>;

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

/// Tries to record an intent whose key another row holds. A further try is needed only if that row has just been aborted.
const MAX_BEGIN_TRIES: u32 = 20;

/// The store in a PostgreSQL database.
///
/// Statements that return orders list their columns by name: `select *` would fail in a prepared statement when the
/// migration of a newer replica adds a column.
pub struct PostgresStore {
    pool: Pool,
    inserts: BatchedStatement<Intent, ()>,
    settlements: BatchedStatement<Settlement, Entity<Order>>,
    aborts: BatchedStatement<OrderId, ()>,
    releases: BatchedStatement<OrderId, ()>,
}

/// The values that turn an intent into an order.
struct Settlement {
    id: OrderId,
    lines: Vec<Line>,
    total: Money,
}

impl Settlement {
    /// Returns an upper bound for the size of its JSON: without its name a line is less than 100 bytes.
    fn bytes(&self) -> usize {
        self.lines.iter().map(|line| 100 + line.name.len()).sum()
    }
}

/// A line of an order as the database stores it, independent of the wire format.
#[derive(Serialize, Deserialize)]
struct Line {
    product: i64,
    name: String,
    quantity: u32,
    /// In cents.
    price: i64,
}

impl PostgresStore {
    /// Returns the store in the database at `url`. Its calls fail until the database is open.
    pub fn new(url: &PgConnectOptions, settings: &DatabaseSettings) -> Self {
        let pool = Pool::new(SERVICE, url, settings, &MIGRATIONS);
        let (id, item_bytes, read) = (|id: &OrderId| *id, |_: &OrderId| 0, |_: &PgRow| Ok(()));
        let insert = StatementSpec {
            name: "insert",
            id: |intent: &Intent| intent.id,
            item_bytes: |_| 0,
            statement: insert,
            read,
        };
        let settle = StatementSpec {
            name: "settle",
            id: |settlement: &Settlement| settlement.id,
            item_bytes: Settlement::bytes,
            statement: settle,
            read: order,
        };
        let abort = StatementSpec { name: "abort", id, item_bytes, statement: abort, read };
        let release = StatementSpec { name: "finish_release", id, item_bytes, statement: finish_release, read };
        Self {
            inserts: BatchedStatement::new(&pool, insert),
            settlements: BatchedStatement::new(&pool, settle),
            aborts: BatchedStatement::new(&pool, abort),
            releases: BatchedStatement::new(&pool, release),
            pool,
        }
    }

    /// Returns the store, and opens its database before.
    ///
    /// # Errors
    /// If the database does not answer for 30 s, refuses access, or cannot be migrated.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        let store = Self::new(url, settings);
        store.pool.open().await?;
        Ok(store)
    }

    /// Returns the database of this store.
    pub fn storage(&self) -> Storage {
        Storage::Postgres(self.pool.clone())
    }

    /// Returns the outcome for an intent that could not be inserted. `None` if the conflicting row is gone.
    ///
    /// The conflict is either the intent itself, from a try whose response was lost, or the row that holds its key.
    async fn outcome_of_conflict(&self, intent: &Intent) -> Result<Option<BeginOutcome>, Error> {
        const SQL: &str = r"
            select fingerprint, id, user_id, lines, total, status, created_at from orders
            where id = $1 or (idempotency_key = $2 and state <> 'aborting')
            order by id <> $1 limit 1";
        let (key, fingerprint) = key_columns(intent);
        let select = || query(SQL).bind(intent.id.0).bind(key).fetch_optional(&self.pool);
        let Some(row) = self.pool.retry_read("find_conflict", select).await? else { return Ok(None) };
        Ok(Some(if row.try_get::<Uuid, _>("id")? == intent.id.0 {
            BeginOutcome::Started
        } else if row.try_get::<Option<&[u8]>, _>("fingerprint")? != fingerprint {
            BeginOutcome::KeyMismatch
        } else if row.try_get::<Option<&str>, _>("status")?.is_none() {
            BeginOutcome::InProgress
        } else {
            BeginOutcome::Replayed(order(&row)?)
        }))
    }

    /// Returns the order that a step has moved.
    ///
    /// If the statement found the order in another state, an earlier try whose response was lost may have moved it.
    /// That is so if `is_done` holds for the order. (Another request may have made the same step; the order then is
    /// where it should be.)
    async fn moved(
        &self,
        id: OrderId,
        result: StepResult<Entity<Order>>,
        is_done: impl Fn(&Order) -> bool + Send,
    ) -> Result<Option<Entity<Order>>, StoreError> {
        match result {
            StepResult { value: None, is_ambiguous: true } => {
                let order = self.by_id(id).await.map_err(StoreError::after_ambiguous_change)?;
                Ok(order.filter(|order| is_done(order)))
            }
            StepResult { value, .. } => Ok(value),
        }
    }
}

#[async_trait]
impl OrderStore for PostgresStore {
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError> {
        for _ in 0..MAX_BEGIN_TRIES {
            if self.inserts.execute(intent.clone()).await?.value.is_some() {
                return Ok(BeginOutcome::Started);
            }
            if let Some(outcome) = self.outcome_of_conflict(&intent).await? {
                return Ok(outcome);
            }
        }
        Err(StoreError::Unavailable("the row that holds the idempotency key cannot be found".to_owned()))
    }

    async fn settle(
        &self,
        id: OrderId,
        lines: Vec<OrderLine>,
        total: Money,
    ) -> Result<Option<Entity<Order>>, StoreError> {
        let settlement = Settlement { id, lines: lines.into_iter().map(Line::from).collect(), total };
        let result = self.settlements.execute(settlement).await?;
        self.moved(id, result, |_| true).await // only this request turns the intent into an order
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        Ok(self.aborts.execute(id).await?.value.is_some())
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Entity<Order>>, StoreError> {
        const SQL: &str = r"
            update orders set state = $3 where id = $1 and status = $2
            returning id, user_id, lines, total, status, created_at";
        let update = || query(SQL).bind(id.0).bind(from.name()).bind(to.name()).fetch_optional(&self.pool);
        let (row, is_ambiguous) = self.pool.retry_reporting_ambiguity("step", update).await?;
        let result = StepResult { value: row.as_ref().map(order).transpose()?, is_ambiguous };
        self.moved(id, result, |order| Some(order.status) == to.visible_status()).await
    }

    async fn finish_release(&self, id: OrderId) -> Result<(), StoreError> {
        self.releases.execute(id).await?;
        Ok(())
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Entity<Order>>, StoreError> {
        const SQL: &str = r"
            select id, user_id, lines, total, status, created_at from orders where status is not null and id = $1";
        let row = self.pool.retry_read("by_id", || query(SQL).bind(id.0).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(order).transpose()?)
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Entity<Order>>, StoreError> {
        let rows = self.pool.retry_read("page", || page_query(page, filter).fetch_all(&self.pool)).await?;
        let orders: Vec<Entity<Order>> = rows.iter().map(order).collect::<Result<_, _>>()?;
        Ok(Rows::cut(orders.into_iter(), page.limit))
    }

    /// Two statements, because the second must also see the rows that the first one aborts. Both skip locked rows:
    /// another replica is settling, aborting or claiming those.
    async fn claim(&self, abandon_after: Duration, lease: Duration, limit: usize) -> Result<Vec<OrderId>, StoreError> {
        const ABORT_ABANDONED: &str = r"
            with abandoned as materialized
                (select id from orders where state = 'placing' and begun_at <= now() - $1 * interval '1 second'
                order by begun_at limit 1000 for update skip locked)
            update orders set state = 'aborting' from abandoned where orders.id = abandoned.id";
        const CLAIM: &str = r"
            with waiting as materialized
                (select id from orders where state in ('aborting', 'cancelling') and claimed_until <= now()
                order by claimed_until, id limit $2 for update skip locked),
            claimed as
                (update orders set claimed_until = now() + $1 * interval '1 second' from waiting
                where orders.id = waiting.id returning orders.id)
            select id from claimed order by id";
        let abort = || query(ABORT_ABANDONED).bind(abandon_after.as_secs_f64()).execute(&self.pool);
        self.pool.retry_idempotent("abort_abandoned", abort).await?;
        let claim = || query_scalar(CLAIM).bind(lease.as_secs_f64()).bind(sql_limit(limit)).fetch_all(&self.pool);
        Ok(self.pool.retry_idempotent("claim", claim).await?.into_iter().map(OrderId).collect())
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        const SQL: &str = r"
            select count(*) from
                (select from orders where state in ('aborting', 'cancelling') and claimed_until > '-infinity' limit 1000)
                as waiting";
        Ok(self.pool.retry_read("unsettled", || query_scalar(SQL).fetch_one(&self.pool)).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

/// Inserts intents. All transactions insert keys in the same order, so they cannot deadlock. Of two intents with one key
/// only one is inserted.
fn insert(intents: &[&Intent]) -> PgQuery {
    const SQL: &str = r"
        insert into orders (id, user_id, state, idempotency_key, fingerprint, created_at)
        select id, user_id, 'placing', key, fingerprint, created_at
        from unnest($1, $2, $3, $4, $5) as intent (id, user_id, key, fingerprint, created_at)
        order by key, id on conflict do nothing returning id";
    let rows = intents.iter().map(|intent| {
        let (key, fingerprint) = key_columns(intent);
        (intent.id.0, intent.user_id.get(), key, fingerprint, intent.created_at.to_sqlx())
    });
    let (ids, users, keys, fingerprints, times): (Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>) = rows.collect();
    query(SQL).bind(ids).bind(users).bind(keys).bind(fingerprints).bind(times)
}

// In the next three statements, `is not distinct from` keeps the planner from the partial indexes by state. It estimates
// that those hold almost nothing and would scan them for each order; after an outage they hold many rows.

fn settle(settlements: &[&Settlement]) -> PgQuery {
    const SQL: &str = r"
        update orders set state = 'pending', lines = new_lines, total = new_total
        from unnest($1, $2, $3) as settlement (order_id, new_lines, new_total)
        where id = order_id and state is not distinct from 'placing'
        returning id, user_id, lines, total, status, created_at";
    let rows = settlements.iter().map(|settlement| {
        let Settlement { id, lines, total } = settlement;
        (id.0, Json(lines), total.cents())
    });
    let (ids, lines, totals): (Vec<_>, Vec<_>, Vec<_>) = rows.collect();
    query(SQL).bind(ids).bind(lines).bind(totals)
}

fn abort(ids: &[&OrderId]) -> PgQuery {
    const SQL: &str = r"
        update orders set state = 'aborting' where id = any ($1) and state is not distinct from 'placing' returning id";
    query(SQL).bind(uuids(ids))
}

fn finish_release(ids: &[&OrderId]) -> PgQuery {
    const SQL: &str = r"
        with deleted as (delete from orders where id = any ($1) and state is not distinct from 'aborting')
        update orders set state = 'cancelled' where id = any ($1) and state is not distinct from 'cancelling' returning id";
    query(SQL).bind(uuids(ids))
}

/// Returns the query for up to `limit + 1` orders after `after`.
///
/// Each combination of filters has its own index in the order of the page. Filter and id are compared and sorted as one
/// value, so that only that index fits. For `where status = 'pending' order by id` the planner could walk all orders by
/// id and skip the others, although the pending ones are the last of millions.
fn page_query(page: Page<OrderId>, filter: Filter) -> PgQuery {
    const ALL: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and id > $1 order by id limit $2";
    const BY_USER: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and (user_id, id) > ($3, $1) and user_id <= $3 order by user_id, id limit $2";
    const BY_STATUS: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and (status, id) > ($3, $1) and status <= $3 order by status, id limit $2";
    const BY_USER_AND_STATUS: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and (user_id::text || status, id) > ($3, $1) and user_id::text || status <= $3
        order by user_id::text || status, id limit $2";
    let bounded = |sql| query(sql).bind(page.after.unwrap_or(OrderId::MIN).0).bind(sql_limit(page.limit + 1));
    match (filter.user_id, filter.status) {
        (None, None) => bounded(ALL),
        (Some(user), None) => bounded(BY_USER).bind(user.get()),
        (None, Some(status)) => bounded(BY_STATUS).bind(status.name()),
        (Some(user), Some(status)) => bounded(BY_USER_AND_STATUS).bind(format!("{user}{status}")),
    }
}

fn uuids(ids: &[&OrderId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.0).collect()
}

fn key_columns(intent: &Intent) -> (Option<&str>, Option<&[u8]>) {
    intent.key.as_ref().map(|(key, fingerprint)| (key.as_str(), fingerprint.as_bytes())).unzip()
}

fn sql_limit(rows: usize) -> i64 {
    rows.try_into().unwrap_or(i64::MAX)
}

fn order(row: &PgRow) -> Result<Entity<Order>, Error> {
    let Json(lines) = row.try_get::<Json<Vec<Line>>, _>("lines")?;
    Ok(Entity::new(Order {
        id: OrderId(row.try_get("id")?),
        user_id: Id::new(row.try_get("user_id")?).ok_or_else(|| invalid("user_id"))?,
        products: lines.into_iter().map(OrderLine::try_from).collect::<Result<_, _>>()?,
        total: Money::from_cents(row.try_get("total")?).ok_or_else(|| invalid("total"))?,
        status: row.try_get::<&str, _>("status")?.parse().map_err(|_| invalid("status"))?,
        created_at: row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff(),
    }))
}

impl From<OrderLine> for Line {
    fn from(line: OrderLine) -> Self {
        let OrderLine { product_id, name, quantity, price } = line;
        Self { product: product_id.get(), name, quantity, price: price.cents() }
    }
}

impl TryFrom<Line> for OrderLine {
    type Error = Error;

    fn try_from(line: Line) -> Result<Self, Error> {
        let Line { product, name, quantity, price } = line;
        let product_id = Id::new(product).ok_or_else(|| invalid("lines"))?;
        let price = Money::from_cents(price).ok_or_else(|| invalid("lines"))?;
        Ok(Self { product_id, name, quantity, price })
    }
}

/// Returns the error for a value that this service never writes.
fn invalid(column: &str) -> Error {
    Error::Decode(format!("the column {column} has an invalid value").into())
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match Failure::from(&error) {
            Failure::Unavailable(cause) => Self::Unavailable(cause),
            Failure::OutcomeUnknown(cause) => Self::OutcomeUnknown(cause),
        }
    }
}
