//! Orders in PostgreSQL.
//!
//! Each step is one statement, so no transaction stays open while a task waits. Each step is safe to repeat: when a
//! connection breaks, the statement may be done and its response lost; the next try then finds the step done and
//! reports success. Concurrent steps of the same kind share one statement ([`batched`]).
//!
//! An attempt is a row of `intents` while it is placing, and a row of `releases` while it is aborting. The row of `orders` is
//! written once, when the attempt becomes an order. The key of a request stays in `idempotency_keys` all the time.

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
use jiff::Timestamp;
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
    settlements: BatchedStatement<Settlement, (Id, Timestamp)>,
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
            read: |row| Ok((user_id(row)?, created_at(row)?)),
        };
        let abort =
            StatementSpec { name: "abort", id, item_bytes, statement: |ids| query(ABORT).bind(uuids(ids)), read };
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
    /// The conflict is either the intent itself, from a try whose response was lost, or the attempt or order that holds its key.
    async fn outcome_of_conflict(&self, intent: &Intent) -> Result<Option<BeginOutcome>, Error> {
        const SQL: &str = r"
            select order_id = $1 or exists (select from releases where order_id = $1) as is_own,
                held.fingerprint, id, user_id, lines, total, status, created_at
            from idempotency_keys as held left join orders on id = order_id where key = $2";
        let (Some(key), fingerprint) = key_columns(intent) else { return Ok(Some(BeginOutcome::Started)) };
        let select = || query(SQL).bind(intent.id.0).bind(key).fetch_optional(&self.pool);
        let Some(row) = self.pool.retry_read("find_conflict", select).await? else { return Ok(None) };
        Ok(Some(if row.try_get("is_own")? {
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
        let settlement = Settlement { id, lines: lines.iter().cloned().map(Line::from).collect(), total };
        let StepResult { value, is_ambiguous } = self.settlements.execute(settlement).await?;
        let value = value.map(|(user_id, created_at)| {
            Entity::new(Order { id, user_id, products: lines, total, status: OrderStatus::Pending, created_at })
        });
        // Only this request turns the intent into an order.
        self.moved(id, StepResult { value, is_ambiguous }, |_| true).await
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

    /// Several statements, because each must see the rows of those before. They skip locked rows: another replica is settling,
    /// aborting or claiming those.
    async fn claim(&self, abandon_after: Duration, lease: Duration, limit: usize) -> Result<Vec<OrderId>, StoreError> {
        const ABANDONED: &str = r"
            select id from intents where begun_at <= now() - $1 * interval '1 second'
            order by id limit 1000 for update skip locked";
        // Replicas of the release before leave intents in `orders`.
        const COLLECT: &str = r"
            with abandoned as
                (delete from orders where state in ('placing', 'aborting') and begun_at <= now() - $1 * interval '1 second'
                returning id, idempotency_key),
            freed as (delete from idempotency_keys using abandoned where key = idempotency_key and order_id = id)
            insert into releases (order_id)
            select id from abandoned union all select id from orders where state = 'cancelling'
            on conflict do nothing";
        const CLAIM: &str = r"
            with waiting as materialized
                (select order_id from releases where claimed_until <= now()
                order by claimed_until, order_id limit $2 for update skip locked),
            claimed as
                (update releases set claimed_until = now() + $1 * interval '1 second' from waiting
                where releases.order_id = waiting.order_id returning releases.order_id)
            select order_id from claimed order by order_id";
        let age = abandon_after.as_secs_f64();
        let abandoned = || query_scalar(ABANDONED).bind(age).fetch_all(&self.pool);
        let abandoned: Vec<Uuid> = self.pool.retry_read("find_abandoned", abandoned).await?;
        let abort = || query(ABORT).bind(&abandoned).execute(&self.pool);
        self.pool.retry_idempotent("abort_abandoned", abort).await?;
        self.pool.retry_idempotent("collect", || query(COLLECT).bind(age).execute(&self.pool)).await?;
        let claim = || query_scalar(CLAIM).bind(lease.as_secs_f64()).bind(sql_limit(limit)).fetch_all(&self.pool);
        Ok(self.pool.retry_idempotent("claim", claim).await?.into_iter().map(OrderId).collect())
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        const SQL: &str = r"
            select count(*) from (select from releases where claimed_until > '-infinity' limit 1000) as waiting";
        Ok(self.pool.retry_read("unsettled", || query_scalar(SQL).fetch_one(&self.pool)).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

// In the next four statements, `(select $1)` hides the length of the array from the planner. It then finds that one plan fits
// all batches, and keeps it. To plan each batch anew takes longer than to execute it.

/// Inserts intents. All transactions insert keys in the same order, so they cannot deadlock. Of two intents with one key
/// only one is inserted.
fn insert(intents: &[&Intent]) -> PgQuery {
    const SQL: &str = r"
        with held as
            (insert into idempotency_keys (key, order_id, fingerprint)
            select key, id, fingerprint from unnest((select $1), $3, $4) as intent (id, key, fingerprint)
            where key is not null order by key, id on conflict do nothing returning order_id)
        insert into intents (id, user_id, idempotency_key, created_at)
        select id, user_id, key, created_at from unnest((select $1), $2, $3, $5) as intent (id, user_id, key, created_at)
        where key is null or id in (select order_id from held) on conflict do nothing returning id";
    let rows = intents.iter().map(|intent| {
        let (key, fingerprint) = key_columns(intent);
        (intent.id.0, intent.user_id.get(), key, fingerprint, intent.created_at.to_sqlx())
    });
    let (ids, users, keys, fingerprints, times): (Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>) = rows.collect();
    query(SQL).bind(ids).bind(users).bind(keys).bind(fingerprints).bind(times)
}

fn settle(settlements: &[&Settlement]) -> PgQuery {
    const SQL: &str = r"
        with settled as
            (delete from intents using unnest((select $1), $2, $3) as settlement (order_id, lines, total) where id = order_id
            returning id, user_id, lines, total, created_at)
        insert into orders (id, user_id, state, lines, total, created_at)
        select id, user_id, 'pending', lines, total, created_at from settled returning id, user_id, created_at";
    let rows = settlements.iter().map(|settlement| {
        let Settlement { id, lines, total } = settlement;
        (id.0, Json(lines), total.cents())
    });
    let (ids, lines, totals): (Vec<_>, Vec<_>, Vec<_>) = rows.collect();
    query(SQL).bind(ids).bind(lines).bind(totals)
}

/// Aborts intents and frees their keys.
///
/// If a connection breaks while an intent is inserted, the insert may still run on the server after the next try of it was
/// settled. Such an intent has an order already. It is deleted, and its stock is not released.
const ABORT: &str = r"
    with aborted as (delete from intents where id = any ((select $1)::uuid[]) returning id, idempotency_key),
    freed as (delete from idempotency_keys using aborted where key = idempotency_key and order_id = id)
    insert into releases (order_id) select id from aborted where not exists (select from orders where orders.id = aborted.id)
    on conflict do nothing returning order_id as id";

// `is not distinct from` keeps the planner from the partial index by state. It estimates that this index holds almost nothing
// and would scan it for each order; after an outage it holds many rows.
fn finish_release(ids: &[&OrderId]) -> PgQuery {
    const SQL: &str = r"
        with released as (delete from releases where order_id = any ((select $1)::uuid[]))
        update orders set state = 'cancelled' where id = any ((select $1)::uuid[]) and state is not distinct from 'cancelling' returning id";
    query(SQL).bind(uuids(ids))
}

/// Returns the query for up to `limit + 1` orders after `after`.
///
/// Filters and id are compared and sorted as one value, so that only the index fits that has the filters before the id. For
/// `where status = 'pending' order by id` the planner could walk all orders by id and skip the others, although the pending
/// ones are the last of millions. The orders of a user are those with each status, merged.
fn page_query(page: Page<OrderId>, filter: Filter) -> PgQuery {
    const ALL: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and id > $1 order by id limit $2";
    const BY_STATUS: &str = r"
        select id, user_id, lines, total, status, created_at from orders
        where status is not null and (status, id) > ($3, $1) and status <= $3 order by status, id limit $2";
    // An upper bound of user and status together would not end the scan, so other orders of the user may follow. They are dropped.
    const BY_USER_AND_STATUS: &str = r"
        select id, user_id, lines, total, status, created_at from unnest($4) as wanted cross join lateral
            (select id, user_id, lines, total, status, created_at from orders
            where (user_id, status, id) > ($3, wanted, $1) and user_id <= $3 order by user_id, status, id limit $2)
        as following
        where status = wanted order by id limit $2";
    let bounded = |sql| query(sql).bind(page.after.unwrap_or(OrderId::MIN).0).bind(sql_limit(page.limit + 1));
    match (filter.user_id, filter.status) {
        (None, None) => bounded(ALL),
        (None, Some(status)) => bounded(BY_STATUS).bind(status.name()),
        (Some(user), status) => {
            let wanted = OrderStatus::ALL.into_iter().filter(|one| status.is_none_or(|only| only == *one));
            bounded(BY_USER_AND_STATUS).bind(user.get()).bind(wanted.map(OrderStatus::name).collect::<Vec<_>>())
        }
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
        user_id: user_id(row)?,
        products: lines.into_iter().map(OrderLine::try_from).collect::<Result<_, _>>()?,
        total: Money::from_cents(row.try_get("total")?).ok_or_else(|| invalid("total"))?,
        status: row.try_get::<&str, _>("status")?.parse().map_err(|_| invalid("status"))?,
        created_at: created_at(row)?,
    }))
}

fn user_id(row: &PgRow) -> Result<Id, Error> {
    Id::new(row.try_get("user_id")?).ok_or_else(|| invalid("user_id"))
}

fn created_at(row: &PgRow) -> Result<Timestamp, Error> {
    Ok(row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff())
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
