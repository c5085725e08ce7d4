//! Products and reservations in PostgreSQL. No transaction stays open while a task waits: each change is one statement.
//!
//! A batch of reservations is read without locks and decided in Rust, by the code of the store in memory. One statement then
//! writes it. If the rows have changed meanwhile so that the decision is wrong, a constraint rejects the whole statement, and
//! the batch is decided anew.
//!
//! In statements for several rows, `(select $1)` hides the length of the array from the planner. It then finds that one plan fits
//! all batches, and keeps it. To plan each batch anew takes longer than to execute it.
//!
//! No deadlock is possible, because every statement locks in one order: order ids first, then products, each ascending. For that
//! a join must read its rows in this order, as a nested loop does; `chassis::postgres` makes the planner avoid the other joins.

#[cfg(test)]
mod plans;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::{Failure, Pool, Storage, is_constraint_violation, is_row_error};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use shared::products::{Product, Reserved, ReservedLine};
use shared::{Id, Money, OrderId};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::types::{Json, Uuid};
use sqlx::{Error, FromRow, Row};

use super::memory::Tables;
use super::{ProductStore, StoreError};
use crate::SERVICE;
use crate::product::{CreateProduct, ProductRecord, UpdateProduct, case_fold};
use crate::reservation::{Reservation, ReservationOutcome, ReservationRequest, ReservationStatus};

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

/// Maximum tries to reserve a batch. A further try is needed only if other changes have just taken units or order ids of it.
const MAX_TRIES: u32 = 20;

/// The store in PostgreSQL. Several replicas of the service may share one database.
pub struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Returns the store in the database at `url`. Its calls fail until the database is open.
    pub fn new(url: &PgConnectOptions, settings: &DatabaseSettings) -> Self {
        Self { pool: Pool::new(SERVICE, url, settings, &MIGRATIONS) }
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

    /// Returns the products with these ids by ascending id. One attempt.
    async fn read_products(&self, ids: &[Id]) -> Result<Vec<Entity<ProductRecord>>, Error> {
        const SQL: &str = r"
            select id, name, price, stock, version, created_at from products
            where id = any ((select $1)::bigint[]) order by id";
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let found = sqlx::query_as(SQL).bind(ids).fetch_all(&self.pool).await?;
        Ok(found.into_iter().map(Entity::new).collect())
    }

    /// Returns the reservations of these orders. One attempt.
    async fn read_reservations(&self, order_ids: &[Uuid]) -> Result<Vec<Reservation>, Error> {
        const SQL: &str = r"
            select order_id, jsonb_build_array(status, lines) from reservations
            where order_id = any ((select $1)::uuid[])";
        let found: Vec<StoredReservation> = sqlx::query_as(SQL).bind(order_ids).fetch_all(&self.pool).await?;
        let found = found.into_iter().map(|(order_id, Json((status, lines)))| Reservation {
            order_id: OrderId(order_id),
            status,
            lines: lines.into_iter().map(reserved_line).collect(),
        });
        Ok(found.collect())
    }

    async fn reserve_together(&self, requests: &[ReservationRequest]) -> Result<Vec<ReservationOutcome>, Error> {
        let mut tries = 1;
        loop {
            match self.pool.retry_idempotent("reserve", || self.try_reserve(requests)).await {
                Err(error) if tries < MAX_TRIES && is_constraint_violation(&error) => tries += 1,
                outcomes => return outcomes,
            }
        }
    }

    /// Decides the requests by the rows as they are, and writes the new reservations. A request that is rejected waits for no
    /// lock: while a product is sold out, most are.
    ///
    /// The names and prices are those at the time of the reading, which is before any later change of them.
    ///
    /// # Errors
    /// If a constraint is violated, the rows have changed between the two. Nothing is written then.
    async fn try_reserve(&self, requests: &[ReservationRequest]) -> Result<Vec<ReservationOutcome>, Error> {
        let order_ids: Vec<Uuid> = requests.iter().map(|request| request.order_id.0).collect();
        let lines = requests.iter().flat_map(|request| request.lines.as_slice());
        let product_ids: HashSet<Id> = lines.map(|line| line.product_id).collect();
        // Products first: if another request for the same order has just taken their last units, its reservation is seen.
        let products = self.read_products(&Vec::from_iter(product_ids)).await?;
        let reservations = self.read_reservations(&order_ids).await?;
        let mut tables = Tables::new(products, reservations);
        let outcomes: Vec<_> =
            requests.iter().map(|request| tables.reserve(request.order_id, &request.lines)).collect();
        let created: Vec<_> = outcomes.iter().filter_map(ReservationOutcome::created).collect();
        if !created.is_empty() {
            self.write_created(created).await?;
        }
        Ok(outcomes)
    }

    async fn write_created(&self, created: Vec<&Reserved>) -> Result<(), Error> {
        // `reservations_pkey` rejects a second reservation, and `products_stock_not_negative` units that are gone. A product that
        // was removed meanwhile is left out, as if it had been removed after the reservation.
        const SQL: &str = r"
            with created as (
                insert into reservations (order_id, status, lines)
                select order_id, 'taken', lines from unnest((select $1), $2) as created (order_id, lines) order by order_id
                returning order_id)
            update products set stock = stock - units, version = version + 1
            from unnest((select $3), $4) as sold (product_id, units)
            where id = product_id and (select count(*) from created) > 0";
        let mut sold = BTreeMap::<i64, i64>::new(); // ascending: the rows are locked in this order
        for line in created.iter().flat_map(|reserved| &reserved.lines) {
            *sold.entry(line.product_id.get()).or_default() += i64::from(line.quantity);
        }
        let stored = |reserved: &Reserved| Json(reserved.lines.iter().map(stored_line).collect::<Vec<_>>());
        let (order_ids, lines): (Vec<Uuid>, Vec<_>) = created.iter().map(|it| (it.order_id.0, stored(it))).collect();
        let (product_ids, units): (Vec<_>, Vec<_>) = sold.into_iter().unzip();
        let write = sqlx::query(SQL).bind(order_ids).bind(lines).bind(product_ids).bind(units);
        write.execute(&self.pool).await.map(drop)
    }

    /// Writes a tombstone for each order without a reservation. Then releases the reservations of the others.
    ///
    /// The first statement waits for reservations that are being written, so the second one sees them.
    async fn try_release(&self, order_ids: &[Uuid]) -> Result<(), Error> {
        const ADD_TOMBSTONES: &str = r"
            insert into reservations (order_id, status, lines)
            select order_id, 'released', '[]' from unnest((select $1)) as order_id order by order_id
            on conflict do nothing returning order_id";
        const RELEASE: &str = r"
            with held as materialized (
                select order_id from reservations
                where order_id = any ((select $1)::uuid[]) and status = 'taken' order by order_id for update),
            released as (
                update reservations set status = 'released' from held where reservations.order_id = held.order_id
                returning lines),
            returned as materialized (
                select product, sum(quantity)::bigint as units
                from released, jsonb_to_recordset(lines) as line (product bigint, quantity bigint)
                group by product order by product)
            update products set stock = stock + units, version = version + 1 from returned where id = product";
        let added = sqlx::query_scalar(ADD_TOMBSTONES).bind(order_ids).fetch_all(&self.pool).await?;
        let reserved: Vec<&Uuid> = order_ids.iter().filter(|order_id| !added.contains(*order_id)).collect();
        if !reserved.is_empty() {
            sqlx::query(RELEASE).bind(reserved).execute(&self.pool).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ProductStore for PostgresStore {
    async fn insert(&self, product: CreateProduct, created_at: Timestamp) -> Result<Entity<ProductRecord>, StoreError> {
        const SQL: &str = r"
            insert into products (name, folded_name, price, stock, version, created_at)
            values ($1, $2, $3, $4, 1, $5)
            returning id, name, price, stock, version, created_at";
        let CreateProduct { name, price, stock } = product;
        let insert = || sqlx::query_as(SQL).bind(&name).bind(case_fold(&name)).bind(price.cents()).bind(stock);
        let insert = || insert().bind(created_at.to_sqlx()).fetch_one(&self.pool);
        let record: ProductRecord = self.pool.retry_if_not_executed("insert", insert).await?;
        Ok(Entity::new(record))
    }

    async fn by_id(&self, id: Id) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        const SQL: &str = "select id, name, price, stock, version, created_at from products where id = $1";
        let by_id = || sqlx::query_as(SQL).bind(id.get()).fetch_optional(&self.pool);
        Ok(self.pool.retry_read("by_id", by_id).await?.map(Entity::new))
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Entity<ProductRecord>>, StoreError> {
        Ok(self.pool.retry_read("by_ids", || self.read_products(ids)).await?)
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Entity<ProductRecord>>, StoreError> {
        const PAGE: &str = r"
            select id, name, price, stock, version, created_at from products
            where id > $1 order by id limit $2";
        const SEARCH: &str = r"
            select id, name, price, stock, version, created_at from products
            where id > $1 and folded_name like $3 order by id limit $2";
        let name = case_fold(name.unwrap_or_default());
        if name.contains('\0') {
            return Ok(Rows::all(Vec::new())); // no name contains it, and PostgreSQL rejects a text with it
        }
        let limit = i64::try_from(page.limit + 1).unwrap_or(i64::MAX); // one more, to see whether more follow
        let page_of = |sql| sqlx::query_as(sql).bind(page.after.map_or(0, Id::get)).bind(limit);
        let found = if name.is_empty() {
            self.pool.retry_read("page", || page_of(PAGE).fetch_all(&self.pool)).await?
        } else {
            let pattern = like_pattern(&name);
            // Planned anew for each search: the better index depends on the name.
            let search = || page_of(SEARCH).bind(&pattern).persistent(false).fetch_all(&self.pool);
            self.pool.retry_read("search", search).await?
        };
        Ok(Rows::cut(found.into_iter().map(Entity::new), page.limit))
    }

    // The three steps below are not idempotent. A second try could find the change of the first one, and report a conflict.

    async fn replace(
        &self,
        expected_version: i64,
        record: ProductRecord,
    ) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        const SQL: &str = r"
            update products
            set name = $3, folded_name = $4, price = $5, stock = $6, version = $7, created_at = $8
            where id = $1 and version = $2";
        let ProductRecord { product, version } = &record;
        let replace = || sqlx::query(SQL).bind(product.id.get()).bind(expected_version).bind(&product.name);
        let replace = || replace().bind(case_fold(&product.name)).bind(product.price.cents()).bind(product.stock);
        let replace = || replace().bind(version).bind(product.created_at.to_sqlx()).execute(&self.pool);
        let replaced = self.pool.retry_if_not_executed("replace", replace).await?;
        Ok((replaced.rows_affected() == 1).then(|| Entity::new(record)))
    }

    async fn update(&self, id: Id, change: &UpdateProduct) -> Result<Option<Entity<ProductRecord>>, StoreError> {
        const SQL: &str = r"
            update products
            set name = coalesce($2, name), folded_name = coalesce($3, folded_name),
                price = coalesce($4, price), stock = coalesce($5, stock), version = version + 1
            where id = $1
            returning id, name, price, stock, version, created_at";
        let UpdateProduct { name, price, stock } = change;
        let update = || sqlx::query_as(SQL).bind(id.get()).bind(name).bind(name.as_deref().map(case_fold));
        let update = || update().bind(price.map(Money::cents)).bind(stock).fetch_optional(&self.pool);
        Ok(self.pool.retry_if_not_executed("update", update).await?.map(Entity::new))
    }

    async fn remove(&self, id: Id, expected_version: Option<i64>) -> Result<bool, StoreError> {
        const SQL: &str = "delete from products where id = $1 and version = coalesce($2, version)";
        let remove = || sqlx::query(SQL).bind(id.get()).bind(expected_version).execute(&self.pool);
        Ok(self.pool.retry_if_not_executed("remove", remove).await?.rows_affected() == 1)
    }

    async fn reserve_many(
        &self,
        requests: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        match self.reserve_together(requests).await {
            Ok(outcomes) => Ok(outcomes.into_iter().map(Ok).collect()),
            // One row failed the whole batch, so each request is tried alone. They go one after the other, so that those that
            // wait for this row do not use up the connections.
            Err(error) if requests.len() > 1 && is_row_error(&error) => {
                let alone = Self { pool: self.pool.short_lock_timeout() };
                let mut outcomes = Vec::with_capacity(requests.len());
                for request in requests {
                    outcomes.push(alone.reserve(request.order_id, &request.lines).await);
                }
                Ok(outcomes)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn release_many(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = order_ids.iter().map(|order_id| order_id.0).collect();
        match self.pool.retry_idempotent("release", || self.try_release(&ids)).await {
            Err(error) if order_ids.len() > 1 && is_row_error(&error) => {
                let alone = Self { pool: self.pool.short_lock_timeout() };
                let mut released = Ok(());
                for order_id in order_ids {
                    released = alone.release(*order_id).await.and(released);
                }
                released
            }
            released => Ok(released?),
        }
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        let ids = [order_id.0];
        Ok(self.pool.retry_read("reservation", || self.read_reservations(&ids)).await?.pop())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match Failure::from(&error) {
            Failure::Unavailable(cause) => Self::Unavailable(cause),
            Failure::OutcomeUnknown(cause) => Self::OutcomeUnknown(cause),
        }
    }
}

/// Returns the pattern with which `like` finds every name that contains `part`. No character of `part` is special.
fn like_pattern(part: &str) -> String {
    format!("%{}%", part.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_"))
}

impl FromRow<'_, PgRow> for ProductRecord {
    fn from_row(row: &PgRow) -> Result<Self, Error> {
        let id = Id::new(row.try_get("id")?).ok_or_else(|| out_of_range("id"))?;
        let price = Money::from_cents(row.try_get("price")?).ok_or_else(|| out_of_range("price"))?;
        let created_at = row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff();
        let (name, stock) = (row.try_get("name")?, row.try_get("stock")?);
        Ok(Self { product: Product { id, name, price, stock, created_at }, version: row.try_get("version")? })
    }
}

/// Returns the error for a damaged row: only this store writes here.
fn out_of_range(column: &str) -> Error {
    Error::Decode(format!("the {column} of a product is out of range").into())
}

/// The order id, status and lines of a reservation, as [`PostgresStore::read_reservations`] selects them.
type StoredReservation = (Uuid, Json<(ReservationStatus, Vec<StoredLine>)>);

/// A line of a reservation as the database keeps it. [`stored_line`] writes it.
#[derive(Deserialize)]
struct StoredLine {
    product: Id,
    name: String,
    #[serde(rename = "cents", deserialize_with = "money_from_cents")]
    price: Money,
    quantity: u32,
}

fn money_from_cents<'de, D: Deserializer<'de>>(cents: D) -> Result<Money, D::Error> {
    Money::from_cents(i64::deserialize(cents)?).ok_or_else(|| D::Error::custom("the price of a line is out of range"))
}

fn stored_line(ReservedLine { product_id, name, price, quantity }: &ReservedLine) -> Value {
    json!({"product": product_id, "name": name, "cents": price.cents(), "quantity": quantity})
}

fn reserved_line(StoredLine { product: product_id, name, price, quantity }: StoredLine) -> ReservedLine {
    ReservedLine { product_id, name, price, quantity }
}
