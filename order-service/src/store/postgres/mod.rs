//! Orders in PostgreSQL. Each step is one statement, which the database does whole or not at all, so that no transaction
//! stands open while somebody here is away. Each may be repeated: when a connection breaks, a statement may be done and
//! its answer lost, and then the next try is content to find it done. Steps of one kind that orders make at the same time
//! are one statement ([`batched`]).

mod batched;
#[cfg(test)]
mod plans;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use chassis::mistake;
use chassis::postgres::{self, Pool};
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

use self::batched::{BatchedStatement, StatementSpec};
use super::{BeginOutcome, Filter, Intent, OrderStore, StoreError};
use crate::SERVICE;
use crate::order::State;

type PgQuery = Query<'static, Postgres, PgArguments>;

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

/// How often an intent may find something in its way that is gone when it is looked at: each time an attempt with the
/// same key has failed just then.
const MAX_TURNS: u32 = 20;

/// What makes an order, by name: the next version's migration may have added to the table.
macro_rules! columns {
    () => {
        "id, user_id, lines, total, status, created_at"
    };
}

macro_rules! orders_where {
    ($condition:literal) => {
        concat!("select ", columns!(), " from orders where status is not null and ", $condition)
    };
}

macro_rules! order_set {
    ($change:literal) => {
        concat!("update orders set ", $change, " returning ", columns!())
    };
}

/// All insert keys in their order, so that nobody waits for somebody who waits for him. Of one key twice, one is inserted.
const INSERT: &str = "insert into orders (id, user_id, state, idempotency_key, fingerprint, created_at)
    select id, user_id, 'placing', key, fingerprint, created_at
    from unnest($1, $2, $3, $4, $5) as intent (id, user_id, key, fingerprint, created_at)
    order by key, id on conflict do nothing returning id";

/// What is in an intent's way: itself, from a try whose answer was lost, or the row that holds its key.
const EARLIER: &str = concat!(
    "select fingerprint, ",
    columns!(),
    " from orders where id = $1 or (idempotency_key = $2 and state <> 'aborting') order by id <> $1 limit 1"
);

// From here to RELEASED "is not distinct from" keeps the planner from the indexes of what waits: it believes that next to
// nothing does, and would look at all of it for each order, when for once that is many.
const SETTLE: &str = order_set!(
    "state = 'pending', lines = its_lines, total = its_total from unnest($1, $2, $3) as settled (its_id, its_lines, its_total)
    where id = its_id and state is not distinct from 'placing'"
);

const SETTLE_REGARDLESS: &str = order_set!(
    "state = 'pending', lines = its_lines, total = its_total from unnest($1, $2, $3) as settled (its_id, its_lines, its_total)
    where id = its_id"
); // a mistake

/// A commit comes so much later than its answer, by mistake.
const MISTAKEN_DELAY: Duration = Duration::from_millis(50);

const SETTLED_SOON: &str =
    "select id, user_id, $2::jsonb as lines, $3::bigint as total, 'pending' as status, created_at
    from orders where id = $1 and state = 'placing'"; // a mistake

const ABORT: &str =
    "update orders set state = 'aborting' where id = any ($1) and state is not distinct from 'placing' returning id";

const STEP: &str = order_set!("state = $3 where id = $1 and status = $2");

const RELEASED: &str = "with gone as
        (delete from orders where id = any ($1) and state is not distinct from 'aborting')
    update orders set state = 'cancelled' where id = any ($1) and state is not distinct from 'cancelling' returning id";

const BY_ID: &str = orders_where!("id = $1");

// Up to $2 orders behind $1. Each has an index that holds its orders in its order. Filter and id are compared as one and
// sorted by as one, so that only that index will do: for `status = 'pending' order by id` the planner may walk along all
// orders by id and leave out the others, hoping to meet enough that are pending soon, and they are the last of millions.
const PAGE: &str = orders_where!("id > $1 order by id limit $2");
const PAGE_OF_USER: &str = orders_where!("(user_id, id) > ($3, $1) and user_id <= $3 order by user_id, id limit $2");
const PAGE_OF_STATUS: &str = orders_where!("(status, id) > ($3, $1) and status <= $3 order by status, id limit $2");
const PAGE_OF_BOTH: &str = orders_where!(
    "(user_id::text || status, id) > ($3, $1) and user_id::text || status <= $3
    order by user_id::text || status, id limit $2"
);

/// Passes over rows that somebody has locked: they are being settled, or given up, just now.
const GIVE_UP: &str = "with abandoned as materialized
        (select id from orders where state = 'placing' and created_at < $1
        order by created_at limit 1000 for update skip locked)
    update orders set state = 'aborting' from abandoned where orders.id = abandoned.id";

/// First what was never claimed, then what was claimed longest ago: rows that cannot be released keep none waiting. What
/// another replica is claiming just now is passed over.
const CLAIM_LEASE: &str = "with waiting as materialized
        (select id from orders where state in ('aborting', 'cancelling') and claimed_until <= $1
        order by claimed_until, id limit $3 for update skip locked),
    claimed as
        (update orders set claimed_until = $2 from waiting where orders.id = waiting.id returning orders.id)
    select id from claimed order by id";

const UNSETTLED: &str = "select count(*) from
    (select from orders where state in ('aborting', 'cancelling') and claimed_until > '-infinity' limit 1000) as waiting";

/// The store in a PostgreSQL database of its own.
pub struct PostgresStore {
    pool: Pool,
    inserts: BatchedStatement<Intent, ()>,
    settlements: BatchedStatement<Settlement, Arc<Order>>,
    aborts: BatchedStatement<OrderId, ()>,
    releases: BatchedStatement<OrderId, ()>,
}

/// What makes an order of an intent.
struct Settlement {
    id: OrderId,
    lines: Vec<Line>,
    total: Money,
}

impl Settlement {
    /// As JSON: what a line has besides its name takes less than a hundred.
    fn size(&self) -> usize {
        self.lines.iter().map(|line| 100 + line.name.len()).sum()
    }
}

/// A line of an order as it is kept. What crosses the wire may change; this must not.
#[derive(Serialize, Deserialize)]
struct Line {
    product: i64,
    name: String,
    quantity: u32,
    /// In cents.
    price: i64,
}

impl PostgresStore {
    /// The store in the database at `url`, brought to the latest of its migrations.
    ///
    /// # Errors
    /// If the database does not answer for half a minute, or cannot be migrated.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        // A plan that was made when the table was small must not scan it for a few orders when it is not.
        let plans = ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"].map(|scans| (scans, "off"));
        let pool = postgres::open(SERVICE, &url.clone().options(plans), settings, &MIGRATIONS).await?;
        if mistake!("no key index") {
            let dropped = query("drop index if exists orders_idempotency_key").execute(&pool).await;
            dropped.map_err(|error| error.to_string())?;
        }
        let (id, read, size) = (|id: &OrderId| *id, |_: &PgRow| Ok(()), |_: &OrderId| 0);
        let insert =
            StatementSpec { name: "insert", id: |intent: &Intent| intent.id, size: |_| 0, statement: insert, read };
        let settled = |settled: &Settlement| settled.id;
        let settle =
            StatementSpec { name: "settle", id: settled, size: Settlement::size, statement: settle, read: order };
        let abort = StatementSpec { name: "abort", id, size, statement: |ids| of_ids(ABORT, ids), read };
        let released = StatementSpec { name: "released", id, size, statement: |ids| of_ids(RELEASED, ids), read };
        Ok(Self {
            inserts: BatchedStatement::new(&pool, insert),
            settlements: BatchedStatement::new(&pool, settle),
            aborts: BatchedStatement::new(&pool, abort),
            releases: BatchedStatement::new(&pool, released),
            pool,
        })
    }

    /// What has come of that which was in the way of an intent; `None` if it is gone by now.
    async fn earlier(&self, intent: &Intent) -> Result<Option<BeginOutcome>, Error> {
        let (key, fingerprint) = columns_of_key(intent);
        let earlier = self
            .pool
            .retry_idempotent("earlier", || query(EARLIER).bind(intent.id.0).bind(key).fetch_optional(&self.pool))
            .await?;
        let Some(row) = earlier else { return Ok(None) };
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

    /// What came of a step. If the order was not where the step wants it, and there was a try before whose answer was lost,
    /// then that one has moved it, if it is where `done` says. (Or somebody else has, just then: it is there.)
    async fn moved(
        &self,
        id: OrderId,
        made: (Option<Arc<Order>>, bool),
        done: impl Fn(&Order) -> bool + Send,
    ) -> Result<Option<Arc<Order>>, StoreError> {
        match made {
            (None, true) => Ok(self.by_id(id).await?.filter(|order| done(order))),
            (moved, _) => Ok(moved),
        }
    }
}

#[async_trait]
impl OrderStore for PostgresStore {
    async fn begin(&self, intent: Intent) -> Result<BeginOutcome, StoreError> {
        for _ in 0..MAX_TURNS {
            if let (Some(()), _) = self.inserts.make(intent.clone()).await? {
                return Ok(BeginOutcome::Started);
            }
            if let Some(begun) = self.earlier(&intent).await? {
                return Ok(begun);
            }
        }
        Err(StoreError("what holds the key cannot be found".to_owned()))
    }

    async fn settle(&self, id: OrderId, lines: Vec<OrderLine>, total: Money) -> Result<Option<Arc<Order>>, StoreError> {
        let settlement = Settlement { id, lines: lines.into_iter().map(Line::from).collect(), total };
        if mistake!("answer before commit") {
            let soon = query(SETTLED_SOON).bind(id.0).bind(Json(&settlement.lines)).bind(total.cents());
            let (row, pool) = (soon.fetch_optional(&self.pool).await?, self.pool.clone());
            tokio::spawn(async move {
                tokio::time::sleep(MISTAKEN_DELAY).await;
                settle(&[&settlement]).execute(&pool).await
            });
            return Ok(row.as_ref().map(order).transpose()?);
        }
        let made = self.settlements.make(settlement).await?;
        self.moved(id, made, |_| true).await // nobody else makes an order of this intent
    }

    async fn abort(&self, id: OrderId) -> Result<bool, StoreError> {
        Ok(self.aborts.make(id).await?.0.is_some())
    }

    async fn step(&self, id: OrderId, from: OrderStatus, to: State) -> Result<Option<Arc<Order>>, StoreError> {
        let step = || query(STEP).bind(id.0).bind(from.name()).bind(to.name());
        let (row, may_be_made) =
            self.pool.retry_reporting_ambiguity("step", || step().fetch_optional(&self.pool)).await?;
        let made = (row.as_ref().map(order).transpose()?, may_be_made);
        self.moved(id, made, |order| Some(order.status) == to.shown()).await
    }

    async fn released(&self, id: OrderId) -> Result<(), StoreError> {
        self.releases.make(id).await?;
        Ok(())
    }

    async fn by_id(&self, id: OrderId) -> Result<Option<Arc<Order>>, StoreError> {
        let row = self.pool.retry_idempotent("by_id", || query(BY_ID).bind(id.0).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(order).transpose()?)
    }

    async fn page(&self, page: Page<OrderId>, filter: Filter) -> Result<Rows<Arc<Order>>, StoreError> {
        let rows = self
            .pool
            .retry_idempotent("page", || bind(query(page_sql(filter)), page, filter).fetch_all(&self.pool))
            .await?;
        let orders: Vec<Arc<Order>> = rows.iter().map(order).collect::<Result<_, _>>()?;
        Ok(Rows::cut(orders.into_iter(), page.limit))
    }

    async fn claim(
        &self,
        now: Timestamp,
        abandoned: Timestamp,
        lease: Duration,
        most: usize,
    ) -> Result<Vec<OrderId>, StoreError> {
        // Two statements, for what is given up and not claimed yet is as any other that waits.
        self.pool.retry_idempotent("give_up", || query(GIVE_UP).bind(abandoned.to_sqlx()).execute(&self.pool)).await?;
        let until = now.checked_add(lease).unwrap_or(Timestamp::MAX);
        let claim = || {
            let claim = query_scalar(CLAIM_LEASE).bind(now.to_sqlx()).bind(until.to_sqlx()).bind(limit(most));
            claim.fetch_all(&self.pool)
        };
        Ok(self.pool.retry_idempotent("claim", claim).await?.into_iter().map(OrderId).collect())
    }

    async fn unsettled(&self) -> Result<i64, StoreError> {
        Ok(self.pool.retry_idempotent("unsettled", || query_scalar(UNSETTLED).fetch_one(&self.pool)).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

fn insert(intents: &[&Intent]) -> PgQuery {
    let of_each = intents.iter().map(|intent| {
        let (key, fingerprint) = columns_of_key(intent);
        (intent.id.0, intent.user_id.get(), key, fingerprint, intent.created_at.to_sqlx())
    });
    let (ids, users, keys, fingerprints, times): (Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>) = of_each.collect();
    query(INSERT).bind(ids).bind(users).bind(keys).bind(fingerprints).bind(times)
}

fn settle(settlements: &[&Settlement]) -> PgQuery {
    let of_each = settlements.iter().map(|settled| (settled.id.0, Json(&settled.lines), settled.total.cents()));
    let (ids, lines, totals): (Vec<_>, Vec<_>, Vec<_>) = of_each.collect();
    let sql = if mistake!("settle regardless") { SETTLE_REGARDLESS } else { SETTLE };
    query(sql).bind(ids).bind(lines).bind(totals)
}

fn of_ids(sql: &'static str, ids: &[&OrderId]) -> PgQuery {
    query(sql).bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
}

fn columns_of_key(intent: &Intent) -> (Option<&str>, Option<&[u8]>) {
    intent.key.as_ref().map(|(key, fingerprint)| (key.as_str(), fingerprint.as_bytes())).unzip()
}

fn page_sql(filter: Filter) -> &'static str {
    match (filter.user_id, filter.status) {
        (None, None) => PAGE,
        (Some(_), None) => PAGE_OF_USER,
        (None, Some(_)) => PAGE_OF_STATUS,
        (Some(_), Some(_)) => PAGE_OF_BOTH,
    }
}

/// The parameters of a page: where it begins and ends, then what the filter wants.
fn bind(page_sql: PgQuery, page: Page<OrderId>, filter: Filter) -> PgQuery {
    let query = page_sql.bind(page.after.unwrap_or(OrderId::MIN).0).bind(limit(page.limit + 1));
    match (filter.user_id, filter.status) {
        (None, None) => query,
        (Some(user), None) => query.bind(user.get()),
        (None, Some(status)) => query.bind(status.name()),
        (Some(user), Some(status)) => query.bind(format!("{user}{status}")),
    }
}

fn limit(rows: usize) -> i64 {
    rows.try_into().unwrap_or(i64::MAX)
}

/// The order in a row with its columns.
fn order(row: &PgRow) -> Result<Arc<Order>, Error> {
    let Json(lines) = row.try_get::<Json<Vec<Line>>, _>("lines")?;
    Ok(Arc::new(Order {
        id: OrderId(row.try_get("id")?),
        user_id: Id::new(row.try_get("user_id")?).ok_or_else(|| strange("user_id"))?,
        products: lines.into_iter().map(OrderLine::try_from).collect::<Result<_, _>>()?,
        total: Money::from_cents(row.try_get("total")?).ok_or_else(|| strange("total"))?,
        status: row.try_get::<&str, _>("status")?.parse().map_err(|_| strange("status"))?,
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
        let product_id = Id::new(product).ok_or_else(|| strange("lines"))?;
        let price = Money::from_cents(price).ok_or_else(|| strange("lines"))?;
        Ok(Self { product_id, name, quantity, price })
    }
}

/// The error for a value that nobody here has written.
fn strange(column: &str) -> Error {
    Error::Decode(format!("{column} holds what cannot be").into())
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}
