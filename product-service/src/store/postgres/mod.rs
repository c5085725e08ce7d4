//! Products and reservations in PostgreSQL. Each step is one statement.
//!
//! `migrations/` declares the tables, and the functions that reserve and release units.

#[cfg(test)]
mod plans;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::entity::Entity;
use chassis::http::page::{Page, Rows};
use chassis::postgres::{Failure, Pool, Storage, is_row_error};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use shared::products::{Product, ReserveAction, Reserved, ReservedLine};
use shared::{Id, Money, OrderId};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::types::{Json, Uuid};
use sqlx::{Error, FromRow, Row};

use super::{ProductStore, StoreError};
use crate::SERVICE;
use crate::product::{CreateProduct, ProductRecord, UpdateProduct, case_fold};
use crate::reservation::{Reservation, ReservationError, ReservationOutcome, ReservationRequest, ReservationStatus};

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

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

    async fn reserve_together(&self, requests: &[ReservationRequest]) -> Result<Vec<ReservationOutcome>, Error> {
        const SQL: &str = "select answer from reserve_many($1, $2, $3, $4, $5) order by request";
        let order_ids: Vec<Uuid> = requests.iter().map(|request| request.order_id.0).collect();
        let lines = requests.iter().zip(1..).flat_map(|(request, number)| {
            let lines = request.lines.as_slice().iter().zip(0..);
            lines.map(move |(line, index)| (number, index, line.product_id.get(), i64::from(line.quantity)))
        });
        let (numbers, indexes, product_ids, quantities): (Vec<i32>, Vec<i32>, Vec<i64>, Vec<i64>) = lines.collect();
        let reserve = || sqlx::query_scalar(SQL).bind(&order_ids).bind(&numbers).bind(&indexes);
        let reserve = || reserve().bind(&product_ids).bind(&quantities).fetch_all(&self.pool);
        let answers: Vec<Json<Answer>> = self.pool.retry_idempotent("reserve", reserve).await?;
        if answers.len() != requests.len() {
            return Err(Error::Decode(format!("{} answers to {} requests", answers.len(), requests.len()).into()));
        }
        Ok(answers.into_iter().zip(requests).map(|(Json(answer), request)| answer.into_outcome(request)).collect())
    }

    async fn release_together(&self, order_ids: &[OrderId]) -> Result<(), Error> {
        const SQL: &str = "select release_many($1)";
        let order_ids: Vec<Uuid> = order_ids.iter().map(|order_id| order_id.0).collect();
        let release = || sqlx::query(SQL).bind(&order_ids).execute(&self.pool);
        self.pool.retry_idempotent("release", release).await?;
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
        const SQL: &str = r"
            select id, name, price, stock, version, created_at from products
            where id = any ($1) order by id";
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let by_ids = || sqlx::query_as(SQL).bind(&ids).fetch_all(&self.pool);
        let found = self.pool.retry_read("by_ids", by_ids).await?;
        Ok(found.into_iter().map(Entity::new).collect())
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
        match self.release_together(order_ids).await {
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
        const SQL: &str = "select jsonb_build_array(status, lines) from reservations where order_id = $1";
        let reservation = || sqlx::query_scalar(SQL).bind(order_id.0).fetch_optional(&self.pool);
        let found: Option<Json<(ReservationStatus, Vec<StoredLine>)>> =
            self.pool.retry_read("reservation", reservation).await?;
        Ok(found.map(|Json((status, lines))| Reservation { order_id, status, lines: reserved_lines(lines) }))
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

/// A line of a reservation as the database keeps it.
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

fn reserved_lines(lines: Vec<StoredLine>) -> Vec<ReservedLine> {
    let reserved =
        |StoredLine { product: product_id, name, price, quantity }| ReservedLine { product_id, name, price, quantity };
    lines.into_iter().map(reserved).collect()
}

/// The answer of the function `reserve_many`, which describes the cases.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Created(Vec<StoredLine>),
    Existing(ReservationStatus, Vec<StoredLine>),
    UnknownProducts(Vec<usize>),
    InsufficientStock(Vec<(usize, i64)>),
}

impl Answer {
    fn into_outcome(self, ReservationRequest { order_id, lines }: &ReservationRequest) -> ReservationOutcome {
        let order_id = *order_id;
        let rejected = ReservationOutcome::Rejected;
        match self {
            Self::Created(created) => {
                ReservationOutcome::Created(Reserved { order_id, lines: reserved_lines(created) })
            }
            Self::UnknownProducts(lines) => rejected(ReservationError::UnknownProducts(lines)),
            Self::InsufficientStock(lines) => rejected(ReservationError::InsufficientStock(lines)),
            Self::Existing(status, existing) => {
                let existing = reserved_lines(existing);
                match ReservationStatus::on_reserve(Some(status)) {
                    ReserveAction::Reject => rejected(ReservationError::Released),
                    _ if lines.matches(&existing) => {
                        ReservationOutcome::Existing(Reserved { order_id, lines: existing })
                    }
                    _ => rejected(ReservationError::Mismatch),
                }
            }
        }
    }
}
