//! Products and reservations in PostgreSQL. Each step is one statement: `migrations/` has the tables, and the functions
//! by which units are taken and released.

use std::sync::Arc;

use async_trait::async_trait;
use chassis::page::{Page, Rows};
use chassis::postgres::{self, DatabaseSettings, once, repeat};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use shared::products::{Reserved, ReservedLine, Take};
use shared::{Id, Money, OrderId, products};
use sqlx::postgres::{PgConnectOptions, PgPool, PgRow};
use sqlx::types::Json;
use sqlx::{Error, FromRow, Row};

use super::{ProductStore, StoreError};
use crate::SERVICE;
use crate::product::{NewProduct, Product, fold};
use crate::reservation::{Lines, Refusal, Reservation, ReservationStatus, Taken};

const MIGRATIONS: [(&str, &str); 2] = [
    ("products", include_str!("../../migrations/0001_products.sql")),
    ("reservations", include_str!("../../migrations/0002_reservations.sql")),
];

/// Products, chosen by the rest of a statement.
macro_rules! products {
    ($which:literal) => {
        concat!("select id, name, price, stock, version, created_at from products ", $which)
    };
}

const PAGE: &str = products!("where id > $1 order by id limit $2");
const SEARCH: &str = products!("where id > $1 and folded_name like $3 order by id limit $2");

/// The store in PostgreSQL, which several replicas of the service may share.
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Over this database, which is brought up to date first.
    ///
    /// # Errors
    /// If it does not answer, or cannot be brought up to date.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        Ok(Self { pool: postgres::open(SERVICE, url, settings, &MIGRATIONS).await? })
    }
}

/// How many rows to read for a page of `limit`: one more, to see whether more follow.
fn one_more_than(limit: usize) -> i64 {
    i64::try_from(limit).map_or(i64::MAX, |limit| limit.saturating_add(1))
}

/// What `like` finds every folded name by that `part` is a part of: no character of it is special.
fn pattern(part: &str) -> String {
    let escaped = part.chars().flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c]));
    ["%", &escaped.collect::<String>(), "%"].concat()
}

/// A row, read.
struct Stored<T>(T);

impl FromRow<'_, PgRow> for Stored<Product> {
    fn from_row(row: &PgRow) -> Result<Self, Error> {
        let id = Id::new(row.try_get("id")?).ok_or_else(|| unreadable("id"))?;
        let price = Money::from_cents(row.try_get("price")?).ok_or_else(|| unreadable("price"))?;
        let created_at = row.try_get::<jiff_sqlx::Timestamp, _>("created_at")?.to_jiff();
        let (name, stock) = (row.try_get("name")?, row.try_get("stock")?);
        let public = products::Product { id, name, price, stock, created_at };
        Ok(Self(Product { public, version: row.try_get("version")? }))
    }
}

/// Nobody but this store writes here, so this is damage.
fn unreadable(column: &str) -> Error {
    Error::Decode(format!("the {column} of a product is out of range").into())
}

/// A line of a reservation as it is kept.
#[derive(Deserialize)]
struct Line {
    product: Id,
    name: String,
    #[serde(rename = "cents", deserialize_with = "money")]
    price: Money,
    quantity: u32,
}

fn money<'de, D: Deserializer<'de>>(cents: D) -> Result<Money, D::Error> {
    Money::from_cents(i64::deserialize(cents)?).ok_or_else(|| D::Error::custom("the price of a line is out of range"))
}

fn reserved(lines: Vec<Line>) -> Vec<ReservedLine> {
    let reserved =
        |Line { product: product_id, name, price, quantity }| ReservedLine { product_id, name, price, quantity };
    lines.into_iter().map(reserved).collect()
}

/// What the functions in `migrations/` answer to a take.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Now(Vec<Line>),
    Found(ReservationStatus, Vec<Line>),
    Unknown(Vec<usize>),
    Short(Vec<(usize, i64)>),
}

impl Answer {
    fn to(self, order_id: OrderId, lines: &Lines) -> Taken {
        match self {
            Self::Now(taken) => Taken::Now(Reserved { order_id, lines: reserved(taken) }),
            Self::Unknown(at) => Taken::Refused(Refusal::Unknown(at)),
            Self::Short(at) => Taken::Refused(Refusal::Short(at)),
            Self::Found(status, held) => {
                let held = reserved(held);
                match ReservationStatus::on_take(Some(status)) {
                    Take::Refused => Taken::Refused(Refusal::Released),
                    _ if lines.are_those_of(&held) => Taken::Already(Reserved { order_id, lines: held }),
                    _ => Taken::Refused(Refusal::Mismatch),
                }
            }
        }
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

#[async_trait]
impl ProductStore for PostgresStore {
    async fn insert(&self, new: NewProduct, created_at: Timestamp) -> Result<Arc<Product>, StoreError> {
        let NewProduct { name, price, stock } = new;
        let sql = "insert into products (name, folded_name, price, stock, version, created_at) \
                   values ($1, $2, $3, $4, 1, $5) returning id, name, price, stock, version, created_at";
        let insert = || sqlx::query_as(sql).bind(&name).bind(fold(&name)).bind(price.cents()).bind(stock);
        let Stored(product) = once(|| insert().bind(created_at.to_sqlx()).fetch_one(&self.pool)).await?;
        Ok(Arc::new(product))
    }

    async fn by_id(&self, id: Id) -> Result<Option<Arc<Product>>, StoreError> {
        let by_id = || sqlx::query_as(products!("where id = $1")).bind(id.get());
        let found = repeat(|| by_id().fetch_optional(&self.pool)).await?;
        Ok(found.map(|Stored(product)| Arc::new(product)))
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<Product>>, StoreError> {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let by_ids = || sqlx::query_as(products!("where id = any ($1) order by id")).bind(&ids);
        let found = repeat(|| by_ids().fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(|Stored(product)| Arc::new(product)).collect())
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Arc<Product>>, StoreError> {
        let name = fold(name.unwrap_or_default());
        if name.contains('\0') {
            return Ok(Rows::all(Vec::new())); // no name has it, and PostgreSQL takes no text that does
        }
        let page_of = |sql| sqlx::query_as(sql).bind(page.after.map_or(0, Id::get)).bind(one_more_than(page.limit));
        let found = if name.is_empty() {
            repeat(|| page_of(PAGE).fetch_all(&self.pool)).await?
        } else {
            let pattern = pattern(&name);
            // Planned anew each time: which index is the better one depends on what is looked for.
            repeat(|| page_of(SEARCH).bind(&pattern).persistent(false).fetch_all(&self.pool)).await?
        };
        Ok(Rows::cut(found.into_iter().map(|Stored(product)| Arc::new(product)), page.limit))
    }

    async fn replace(&self, version: i64, product: Product) -> Result<Option<Arc<Product>>, StoreError> {
        let products::Product { id, name, price, stock, created_at } = &product.public;
        let sql = "update products set name = $3, folded_name = $4, price = $5, stock = $6, version = $7, created_at = $8 \
                   where id = $1 and version = $2";
        let seen = || sqlx::query(sql).bind(id.get()).bind(version);
        let replace = || seen().bind(name).bind(fold(name)).bind(price.cents()).bind(stock).bind(product.version);
        let replaced = repeat(|| replace().bind(created_at.to_sqlx()).execute(&self.pool)).await?;
        Ok((replaced.rows_affected() == 1).then(|| Arc::new(product)))
    }

    async fn remove(&self, id: Id, version: i64) -> Result<bool, StoreError> {
        let remove = || sqlx::query("delete from products where id = $1 and version = $2").bind(id.get()).bind(version);
        Ok(repeat(|| remove().execute(&self.pool)).await?.rows_affected() == 1)
    }

    async fn take(&self, order_id: OrderId, lines: &Lines) -> Result<Taken, StoreError> {
        let (ids, quantities): (Vec<i64>, Vec<i64>) =
            lines.as_slice().iter().map(|line| (line.product_id.get(), i64::from(line.quantity))).unzip();
        let take = || sqlx::query_scalar("select take_units($1, $2, $3)").bind(order_id.0).bind(&ids).bind(&quantities);
        let Json(answer) = repeat(|| take().fetch_one(&self.pool)).await?;
        Ok(Answer::to(answer, order_id, lines))
    }

    async fn release(&self, order_id: OrderId) -> Result<(), StoreError> {
        let release = || sqlx::query("select release_units($1)").bind(order_id.0);
        repeat(|| release().execute(&self.pool)).await?;
        Ok(())
    }

    async fn reservation(&self, order_id: OrderId) -> Result<Option<Reservation>, StoreError> {
        let sql = "select jsonb_build_array(status, lines) from reservations where order_id = $1";
        let held = || sqlx::query_scalar(sql).bind(order_id.0);
        let held: Option<Json<(ReservationStatus, Vec<Line>)>> = repeat(|| held().fetch_optional(&self.pool)).await?;
        Ok(held.map(|Json((status, lines))| Reservation { order_id, status, lines: reserved(lines) }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        repeat(|| sqlx::query("select 1").execute(&self.pool)).await?;
        Ok(())
    }
}
