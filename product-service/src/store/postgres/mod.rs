//! Products and reservations in PostgreSQL. Each step is one statement: `migrations/` has the tables, and the functions
//! by which units are taken and released.

#[cfg(test)]
mod plans;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::config::DatabaseSettings;
use chassis::http::page::{Page, Rows};
use chassis::mistake;
use chassis::postgres::{self, Pool, is_row_error};
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use shared::products::{Reserved, ReservedLine, Take};
use shared::{Id, Money, OrderId, products};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::types::{Json, Uuid};
use sqlx::{Error, FromRow, Row};

use super::{ProductStore, StoreError};
use crate::SERVICE;
use crate::product::{NewProduct, Product, ProductChange, fold};
use crate::reservation::{Refusal, Reservation, ReservationOutcome, ReservationRequest, ReservationStatus};

/// The files in `migrations/`. A released one is never changed: databases have run it.
static MIGRATIONS: Migrator = sqlx_macros::migrate!();

/// Products, chosen by the rest of a statement.
macro_rules! products {
    ($which:literal) => {
        concat!("select id, name, price, stock, version, created_at from products ", $which)
    };
}

const PAGE: &str = products!("where id > $1 order by id limit $2");
const SEARCH: &str = products!("where id > $1 and folded_name like $3 order by id limit $2");

/// A mistake: the stock is read first and written then, whatever has become of it in between.
const READ_THEN_WRITE: &str = "with line as materialized
        (select * from unnest($2, $3, $4, $5) as line (n, index, product_id, quantity)),
    answered as materialized (select n, $1[n] as order_id, answer_to_take($1[n],
        array_agg(product_id order by index), array_agg(quantity order by index)) as answer from line group by n),
    seen as materialized (select id as seen_id, stock as seen_stock from products where id = any ($4)),
    written as (update products set stock = seen_stock - quantity, version = version + 1
        from answered join line using (n), seen where id = seen_id and id = product_id and answer ? 'now'),
    held as (insert into reservations (order_id, status, lines)
        select order_id, 'taken', answer -> 'now' from answered where answer ? 'now')
    select answer from answered order by n";

const TAKE_EACH: &str = "select answer from take_each($1, $2, $3, $4, $5) order by n";

/// A mistake: what was not taken leaves no tombstone.
const RELEASE_TAKEN: &str = "select release_each(array(select order_id from reservations where order_id = any ($1)))";

/// The store in PostgreSQL, which several replicas of the service may share.
pub struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Over this database, which is brought up to date first.
    ///
    /// # Errors
    /// If it does not answer, or cannot be brought up to date.
    pub async fn open(url: &PgConnectOptions, settings: &DatabaseSettings) -> Result<Self, String> {
        // Each statement has its index. A plan that was made when a table was small must not scan it when it is not, nor its
        // index from end to end, as other joins than by look-ups would.
        let plans = ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"].map(|scans| (scans, "off"));
        let url = url.clone().options(plans);
        Ok(Self { pool: postgres::open(SERVICE, &url, settings, &MIGRATIONS).await? })
    }

    async fn take_together(&self, takes: &[ReservationRequest]) -> Result<Vec<ReservationOutcome>, Error> {
        let order_ids: Vec<Uuid> = takes.iter().map(|take| take.order_id.0).collect();
        let lines = takes.iter().zip(1..).flat_map(|(take, whose)| {
            let lines = take.lines.as_slice().iter().zip(0..);
            lines.map(move |(line, index)| (whose, index, line.product_id.get(), i64::from(line.quantity)))
        });
        let (whose, indexes, product_ids, quantities): (Vec<i32>, Vec<i32>, Vec<i64>, Vec<i64>) = lines.collect();
        let sql = if mistake!("read then write") { READ_THEN_WRITE } else { TAKE_EACH };
        let take = || sqlx::query_scalar(sql).bind(&order_ids).bind(&whose).bind(&indexes);
        let take = || take().bind(&product_ids).bind(&quantities).fetch_all(&self.pool);
        let answers: Vec<Json<Answer>> = self.pool.retry_idempotent("take", take).await?;
        if answers.len() != takes.len() {
            return Err(Error::Decode(format!("{} answers to {} takes", answers.len(), takes.len()).into()));
        }
        Ok(answers.into_iter().zip(takes).map(|(Json(answer), take)| answer.to(take)).collect())
    }

    async fn release_together(&self, order_ids: &[OrderId]) -> Result<(), Error> {
        let order_ids: Vec<Uuid> = order_ids.iter().map(|order_id| order_id.0).collect();
        let sql = if mistake!("no tombstone") { RELEASE_TAKEN } else { "select release_each($1)" };
        let release = || sqlx::query(sql).bind(&order_ids);
        self.pool.retry_idempotent("release", || release().execute(&self.pool)).await?;
        Ok(())
    }
}

/// How many rows to read for a page of `limit`: one more, to see whether more follow.
fn one_more_than(limit: usize) -> i64 {
    i64::try_from(limit + 1).unwrap_or(i64::MAX)
}

/// What `like` finds every name by that `part` is a part of: no character of it is special.
fn pattern(part: &str) -> String {
    format!("%{}%", part.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_"))
}

/// A row of `products`.
struct Stored(Product);

impl FromRow<'_, PgRow> for Stored {
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

/// What the function `take_each` answers; `migrations/` says when.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Now(Vec<Line>),
    Found(ReservationStatus, Vec<Line>),
    Unknown(Vec<usize>),
    Short(Vec<(usize, i64)>),
}

impl Answer {
    fn to(self, ReservationRequest { order_id, lines }: &ReservationRequest) -> ReservationOutcome {
        let order_id = *order_id;
        match self {
            Self::Now(taken) => ReservationOutcome::Created(Reserved { order_id, lines: reserved(taken) }),
            Self::Unknown(at) => ReservationOutcome::Rejected(Refusal::Unknown(at)),
            Self::Short(at) => ReservationOutcome::Rejected(Refusal::InsufficientStock(at)),
            Self::Found(status, held) => {
                let held = reserved(held);
                match ReservationStatus::on_take(Some(status)) {
                    Take::Refused => ReservationOutcome::Rejected(Refusal::Released),
                    _ if lines.matches(&held) => ReservationOutcome::Existing(Reserved { order_id, lines: held }),
                    _ => ReservationOutcome::Rejected(Refusal::Mismatch),
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
        let Stored(product) = self
            .pool
            .retry_if_not_executed("insert", || insert().bind(created_at.to_sqlx()).fetch_one(&self.pool))
            .await?;
        Ok(Arc::new(product))
    }

    async fn by_id(&self, id: Id) -> Result<Option<Arc<Product>>, StoreError> {
        let by_id = || sqlx::query_as(products!("where id = $1")).bind(id.get());
        let found = self.pool.retry_idempotent("by_id", || by_id().fetch_optional(&self.pool)).await?;
        Ok(found.map(|Stored(product)| Arc::new(product)))
    }

    async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Arc<Product>>, StoreError> {
        let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let by_ids = || sqlx::query_as(products!("where id = any ($1) order by id")).bind(&ids);
        let found = self.pool.retry_idempotent("by_ids", || by_ids().fetch_all(&self.pool)).await?;
        Ok(found.into_iter().map(|Stored(product)| Arc::new(product)).collect())
    }

    async fn page(&self, page: Page<Id>, name: Option<&str>) -> Result<Rows<Arc<Product>>, StoreError> {
        let name = fold(name.unwrap_or_default());
        if name.contains('\0') {
            return Ok(Rows::all(Vec::new())); // no name has it, and PostgreSQL takes no text that does
        }
        let page_of = |sql| sqlx::query_as(sql).bind(page.after.map_or(0, Id::get)).bind(one_more_than(page.limit));
        let found = if name.is_empty() {
            self.pool.retry_idempotent("page", || page_of(PAGE).fetch_all(&self.pool)).await?
        } else {
            let pattern = pattern(&name);
            // Planned anew each time: which index is the better one depends on what is looked for.
            self.pool
                .retry_idempotent("search", || page_of(SEARCH).bind(&pattern).persistent(false).fetch_all(&self.pool))
                .await?
        };
        Ok(Rows::cut(found.into_iter().map(|Stored(product)| Arc::new(product)), page.limit))
    }

    async fn replace(&self, version: i64, product: Product) -> Result<Option<Arc<Product>>, StoreError> {
        let products::Product { id, name, price, stock, created_at } = &product.public;
        let sql = "update products set name = $3, folded_name = $4, price = $5, stock = $6, version = $7, created_at = $8 \
                   where id = $1 and version = $2";
        let seen = || sqlx::query(sql).bind(id.get()).bind(version);
        let replace = || seen().bind(name).bind(fold(name)).bind(price.cents()).bind(stock).bind(product.version);
        // Who repeats a change may find it made and take it for another's; so too below.
        let replaced = self
            .pool
            .retry_if_not_executed("replace", || replace().bind(created_at.to_sqlx()).execute(&self.pool))
            .await?;
        Ok((replaced.rows_affected() == 1).then(|| Arc::new(product)))
    }

    async fn change(&self, id: Id, change: &ProductChange) -> Result<Option<Arc<Product>>, StoreError> {
        let ProductChange { name, price, stock } = change;
        let sql = "update products set name = coalesce($2, name), folded_name = coalesce($3, folded_name), \
                   price = coalesce($4, price), stock = coalesce($5, stock), version = version + 1 where id = $1 \
                   returning id, name, price, stock, version, created_at";
        let change = || sqlx::query_as(sql).bind(id.get()).bind(name).bind(name.as_deref().map(fold));
        let change = || change().bind(price.map(Money::cents)).bind(stock).fetch_optional(&self.pool);
        Ok(self.pool.retry_if_not_executed("change", change).await?.map(|Stored(product)| Arc::new(product)))
    }

    async fn remove(&self, id: Id, version: Option<i64>) -> Result<bool, StoreError> {
        let sql = "delete from products where id = $1 and version = coalesce($2, version)";
        let remove = || sqlx::query(sql).bind(id.get()).bind(version);
        Ok(self.pool.retry_if_not_executed("remove", || remove().execute(&self.pool)).await?.rows_affected() == 1)
    }

    async fn take_each(
        &self,
        takes: &[ReservationRequest],
    ) -> Result<Vec<Result<ReservationOutcome, StoreError>>, StoreError> {
        match self.take_together(takes).await {
            Ok(taken) => Ok(taken.into_iter().map(Ok).collect()),
            // For that one of them the others are not to blame. One after the other: one that waits for the row has others.
            Err(error) if takes.len() > 1 && is_row_error(&error) => {
                let alone = Self { pool: self.pool.short_lock_timeout() };
                let mut taken = Vec::with_capacity(takes.len());
                for take in takes {
                    taken.push(alone.take(take.order_id, &take.lines).await);
                }
                Ok(taken)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn release_each(&self, order_ids: &[OrderId]) -> Result<(), StoreError> {
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
        let sql = "select jsonb_build_array(status, lines) from reservations where order_id = $1";
        let held = || sqlx::query_scalar(sql).bind(order_id.0);
        let held: Option<Json<(ReservationStatus, Vec<Line>)>> =
            self.pool.retry_idempotent("reservation", || held().fetch_optional(&self.pool)).await?;
        Ok(held.map(|Json((status, lines))| Reservation { order_id, status, lines: reserved(lines) }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.pool.ping().await?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use shared::products::Line;
    use sqlx::{Connection, PgConnection, Postgres, Transaction};
    use testing::postgres::{behind_a_faulty_connection, database, deadlocks, generous_timeouts};

    use super::*;
    use crate::reservation::Lines;

    async fn open(database: &PgConnectOptions) -> PostgresStore {
        PostgresStore::open(database, &generous_timeouts()).await.expect("a database")
    }

    fn lines(wanted: &[(i64, u32)]) -> Lines {
        let line = |&(id, quantity)| Line { product_id: Id::new(id).unwrap(), quantity };
        Lines::new(wanted.iter().map(line).collect()).unwrap()
    }

    async fn add_lamp(store: &PostgresStore, stock: i64) -> i64 {
        let lamp = NewProduct { name: "Lamp".to_owned(), price: Money::default(), stock };
        store.insert(lamp, chassis::now()).await.unwrap().public.id.get()
    }

    #[tokio::test]
    async fn a_restart_forgets_nothing() {
        let Some(database) = database().await else { return };
        let (store, order_id) = (open(&database).await, OrderId(Uuid::from_u128(1)));
        let lamp = add_lamp(&store, 5).await;
        let taken = store.take(order_id, &lines(&[(lamp, 2)])).await.unwrap();
        store.pool.close().await;
        assert!(store.by_id(Id::new(lamp).unwrap()).await.is_err());

        let store = open(&database).await;
        let ReservationOutcome::Created(reserved) = taken else { panic!("{taken:?}") };
        assert_eq!(store.take(order_id, &lines(&[(lamp, 2)])).await.unwrap(), ReservationOutcome::Existing(reserved));
        assert_eq!(store.by_id(Id::new(lamp).unwrap()).await.unwrap().unwrap().public.stock, 3);
    }

    /// Nobody knows that it was made, so its client is told so. Made again it would be another's, or set a stock twice.
    #[tokio::test]
    async fn a_change_whose_answer_is_lost_is_made_once() {
        let Some(database) = database().await else { return };
        let (database, wire) = behind_a_faulty_connection(&database).await;
        let store = open(&database).await;
        let id = Id::new(add_lamp(&store, 5).await).unwrap();
        let version = async || store.by_id(id).await.unwrap().map(|product| product.version);

        let mut next = Product::clone(&store.by_id(id).await.unwrap().unwrap());
        next.version += 1;
        wire.lose_an_answer();
        store.replace(next.version - 1, next).await.expect_err("nobody knows");
        assert_eq!((wire.has_lost_it(), version().await), (true, Some(2)));

        wire.lose_an_answer();
        let change = ProductChange { name: None, price: None, stock: Some(7) };
        store.change(id, &change).await.expect_err("nobody knows");
        assert_eq!((wire.has_lost_it(), version().await), (true, Some(3)));

        wire.lose_an_answer();
        let desk = NewProduct { name: "Desk".to_owned(), price: Money::default(), stock: 0 };
        store.insert(desk, chassis::now()).await.expect_err("nobody knows");
        let rows = store.page(Page { after: None, limit: 9 }, None).await.unwrap().rows.len();
        assert_eq!((wire.has_lost_it(), rows), (true, 2));

        wire.lose_an_answer();
        store.remove(id, Some(3)).await.expect_err("nobody knows");
        assert_eq!((wire.has_lost_it(), version().await), (true, None));
    }

    #[tokio::test]
    async fn a_batch_is_one_commit() {
        let Some(database) = database().await else { return };
        let store = open(&database).await;
        let lamp = add_lamp(&store, 10).await;
        let takes: Vec<_> = (0..10)
            .map(|n| ReservationRequest { order_id: OrderId(Uuid::from_u128(n)), lines: lines(&[(lamp, 1)]) })
            .collect();
        let commits = async || -> (i64, i64) {
            let sql = "select count(*), count(distinct xmin::text) from reservations";
            sqlx::query_as(sql).fetch_one(&store.pool).await.unwrap()
        };
        store.take_each(&takes).await.unwrap();
        assert_eq!(commits().await, (10, 1));
        store.release_each(&takes.iter().map(|take| take.order_id).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(commits().await, (10, 1));
    }

    #[tokio::test]
    async fn who_is_refused_waits_for_nobody() {
        let Some(database) = database().await else { return };
        let store = open(&database).await;
        let lamp = add_lamp(&store, 1).await;
        let takes = [lines(&[(lamp, 2)]), lines(&[(lamp, 1), (999, 1)])];
        let takes: Vec<_> =
            takes.into_iter().map(|lines| ReservationRequest { order_id: OrderId(Uuid::now_v7()), lines }).collect();
        let mut connection = PgConnection::connect_with(&database).await.unwrap();
        let mut somebody = connection.begin().await.unwrap();
        sqlx::query("select id from products for update").execute(&mut *somebody).await.unwrap();
        let taken = tokio::time::timeout(Duration::from_secs(20), store.take_each(&takes)).await.expect("it waits");
        let short = ReservationOutcome::Rejected(Refusal::InsufficientStock(vec![(0, 1)]));
        assert_eq!(taken.unwrap(), [short, ReservationOutcome::Rejected(Refusal::Unknown(vec![1]))].map(Ok));
    }

    /// Somebody who holds the row of this product.
    async fn hold(connection: &mut PgConnection, product: i64) -> Transaction<'_, Postgres> {
        let mut somebody = connection.begin().await.unwrap();
        let hold = sqlx::query("select id from products where id = $1 for update").bind(product);
        hold.execute(&mut *somebody).await.unwrap();
        somebody
    }

    #[tokio::test]
    async fn what_somebody_keeps_waiting_for_too_long_fails_and_nothing_else() {
        let Some(database) = database().await else { return };
        // Two seconds of them for a row.
        let database_statement = Duration::from_secs(5);
        let settings = DatabaseSettings { database_connections: 2, database_statement, ..generous_timeouts() };
        let store = PostgresStore::open(&database, &settings).await.unwrap();
        let (lamp, desk) = (add_lamp(&store, 9).await, add_lamp(&store, 9).await);
        let [on_lamp, on_both, on_desk] = [&[lamp][..], &[lamp, desk], &[desk]].map(|wanted| {
            let wanted: Vec<_> = wanted.iter().map(|id| (*id, 1)).collect();
            ReservationRequest { order_id: OrderId(Uuid::now_v7()), lines: lines(&wanted) }
        });
        let stock = async |id| store.by_id(Id::new(id).unwrap()).await.unwrap().unwrap().public.stock;
        let mut connection = PgConnection::connect_with(&database).await.unwrap();
        let somebody = hold(&mut connection, desk).await;
        // More that wait than there are connections, and one that has what another wants while it waits for the desk.
        let mut takes: Vec<_> =
            (0..20).map(|_| ReservationRequest { order_id: OrderId(Uuid::now_v7()), ..on_both.clone() }).collect();
        takes.extend([&on_lamp, &on_desk].map(ReservationRequest::clone));
        let mut taken = store.take_each(&takes).await.unwrap();
        let innocent = taken.remove(20);
        assert!(matches!(innocent, Ok(ReservationOutcome::Created(_))), "{innocent:?}");
        assert!(taken.iter().all(Result::is_err), "{taken:?}");
        somebody.rollback().await.unwrap();
        assert_eq!((stock(lamp).await, stock(desk).await), (8, 9));

        store.take(on_desk.order_id, &on_desk.lines).await.unwrap();
        let somebody = hold(&mut connection, desk).await;
        store.release_each(&[on_desk.order_id, on_lamp.order_id]).await.expect_err("one is not released");
        assert_eq!(stock(lamp).await, 9);
        somebody.rollback().await.unwrap();
        store.release_each(&[on_lamp.order_id, on_desk.order_id]).await.unwrap();
        assert_eq!((stock(lamp).await, stock(desk).await), (9, 9), "each once");
    }

    /// By a replica of the last release that is replaced in a moment.
    #[tokio::test]
    async fn what_was_called_before_there_were_batches_is_still_there() {
        let Some(database) = database().await else { return };
        let store = open(&database).await;
        let (lamp, order_id) = (add_lamp(&store, 5).await, OrderId(Uuid::now_v7()));
        let take = async |wanted: i64| -> String {
            let take = sqlx::query_scalar("select take_units($1, $2, $3)::text").bind(order_id.0);
            take.bind(vec![999, lamp]).bind(vec![1, wanted]).fetch_one(&store.pool).await.unwrap()
        };
        assert_eq!(take(6).await, r#"{"unknown": [0]}"#);
        let chair = "insert into products overriding system value values (999, 'Chair', 'chair', 5, 1, 1, now())";
        sqlx::query(chair).execute(&store.pool).await.unwrap();
        assert_eq!(take(6).await, r#"{"short": [[1, 5]]}"#);
        let both = concat!(
            r#"[{"name": "Chair", "cents": 5, "product": 999, "quantity": 1}, "#,
            r#"{"name": "Lamp", "cents": 0, "product": 1, "quantity": 2}]"#
        );
        assert_eq!(take(2).await, format!(r#"{{"now": {both}}}"#));
        assert_eq!(take(2).await, format!(r#"{{"found": ["taken", {both}]}}"#));
        sqlx::query("select release_units($1)").bind(order_id.0).execute(&store.pool).await.unwrap();
        assert_eq!(take(2).await, format!(r#"{{"found": ["released", {both}]}}"#));
        assert_eq!(store.by_id(Id::new(lamp).unwrap()).await.unwrap().unwrap().public.stock, 5);
    }

    /// A deadlock would be resolved by another try and seen by nobody but the database, which counts.
    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_for_somebody_who_waits_for_him() {
        let Some(database) = database().await else { return };
        let store = Arc::new(open(&database).await);
        let (lamp, desk, vase) =
            (add_lamp(&store, 1000).await, add_lamp(&store, 1000).await, add_lamp(&store, 1000).await);
        let each = |n: u128, wanted: [i64; 3]| -> Vec<ReservationRequest> {
            let orders = (0..12).map(|order| OrderId(Uuid::from_u128((1 << 100) + n / 4 * 12 + order)));
            let wanted = wanted.into_iter().cycle().map(|id| lines(&[(id, 1)]));
            orders.zip(wanted).map(|(order_id, lines)| ReservationRequest { order_id, lines }).collect()
        };
        let orders = [[lamp, desk, vase], [vase, desk, lamp], [desk, vase, lamp], [vase, lamp, desk]];
        let clients = (0..).zip(orders.into_iter().cycle().take(8)).map(|(client, wanted)| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..50 {
                    let order_id = OrderId(Uuid::from_u128(client * 100 + n));
                    store.take(order_id, &lines(&wanted.map(|id| (id, 1)))).await.unwrap();
                    store.release(order_id).await.unwrap();
                    // Orders that all clients want, in any order, each for one of the products.
                    let mut batch = each(n, wanted);
                    batch.rotate_left(client as usize % 7);
                    store.take_each(&batch).await.unwrap();
                    batch.rotate_left(n as usize % 5);
                    store.release_each(&batch.iter().map(|take| take.order_id).collect::<Vec<_>>()).await.unwrap();
                }
            })
        });
        join_all(clients).await.into_iter().for_each(|client| client.unwrap());
        store.pool.close().await;
        assert_eq!(deadlocks(&database).await, 0);
    }
}
