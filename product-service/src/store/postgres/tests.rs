//! What only the store in PostgreSQL promises: durability, commits, locks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared::products::Line;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use testing::postgres::{behind_a_faulty_connection, database, deadlocks, generous_timeouts};

use super::*;
use crate::reservation::{ReservationError, ReservationLines};

async fn open(database: &PgConnectOptions) -> PostgresStore {
    PostgresStore::open(database, &generous_timeouts()).await.expect("a database")
}

fn lines(wanted: &[(i64, u32)]) -> ReservationLines {
    let line = |&(id, quantity)| Line { product_id: Id::new(id).unwrap(), quantity };
    ReservationLines::new(wanted.iter().map(line).collect()).unwrap()
}

fn new_request(wanted: &[(i64, u32)]) -> ReservationRequest {
    ReservationRequest { order_id: OrderId(Uuid::now_v7()), lines: lines(wanted) }
}

fn order_ids(requests: &[ReservationRequest]) -> Vec<OrderId> {
    requests.iter().map(|request| request.order_id).collect()
}

async fn add_lamp(store: &PostgresStore, stock: i64) -> i64 {
    let lamp = CreateProduct { name: "Lamp".to_owned(), price: Money::default(), stock };
    store.insert(lamp, chassis::now()).await.unwrap().product.id.get()
}

#[tokio::test]
async fn keeps_everything_across_a_restart() {
    let Some(database) = database().await else { return };
    let (store, order_id) = (open(&database).await, OrderId(Uuid::from_u128(1)));
    let lamp = add_lamp(&store, 5).await;
    let outcome = store.reserve(order_id, &lines(&[(lamp, 2)])).await.unwrap();
    drop(store);

    let store = open(&database).await;
    let ReservationOutcome::Created(reserved) = outcome else { panic!("{outcome:?}") };
    assert_eq!(store.reserve(order_id, &lines(&[(lamp, 2)])).await.unwrap(), ReservationOutcome::Existing(reserved));
    assert_eq!(store.by_id(Id::new(lamp).unwrap()).await.unwrap().unwrap().product.stock, 3);
}

#[tokio::test]
async fn folds_the_names_of_an_older_release_anew() {
    const ROW: &str = r"insert into products (name, folded_name, price, stock, version, created_at)
        values (U&'Cafe\0301', U&'cafe\0301', 1, 1, 1, now())";
    let Some(database) = database().await else { return };
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let older = Migrator::with_migrations(MIGRATIONS.iter().take(2).cloned().collect());
    older.run(&mut connection).await.unwrap();
    sqlx::raw_sql(ROW).execute(&mut connection).await.unwrap();

    let store = open(&database).await;
    let page = store.page(Page { after: None, limit: 9 }, Some("café")).await.unwrap();
    assert_eq!(page.rows.len(), 1);
}

/// The client gets an error, because the outcome is unknown. A second execution could undo the change of another client, or set
/// a stock twice.
#[tokio::test]
async fn executes_a_change_once_when_its_answer_is_lost() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let store = open(&database).await;
    let id = Id::new(add_lamp(&store, 5).await).unwrap();
    let version = async || store.by_id(id).await.unwrap().map(|record| record.version);

    let mut next = ProductRecord::clone(&store.by_id(id).await.unwrap().unwrap());
    next.version += 1;
    wire.lose_an_answer();
    store.replace(next.version - 1, next).await.expect_err("the outcome is unknown");
    assert_eq!((wire.has_lost_it(), version().await), (true, Some(2)));

    wire.lose_an_answer();
    let change = UpdateProduct { stock: Some(7), ..UpdateProduct::default() };
    store.update(id, &change).await.expect_err("the outcome is unknown");
    assert_eq!((wire.has_lost_it(), version().await), (true, Some(3)));

    wire.lose_an_answer();
    let desk = CreateProduct { name: "Desk".to_owned(), price: Money::default(), stock: 0 };
    store.insert(desk, chassis::now()).await.expect_err("the outcome is unknown");
    let rows = store.page(Page { after: None, limit: 9 }, None).await.unwrap().rows.len();
    assert_eq!((wire.has_lost_it(), rows), (true, 2));

    wire.lose_an_answer();
    store.remove(id, Some(3)).await.expect_err("the outcome is unknown");
    assert_eq!((wire.has_lost_it(), version().await), (true, None));
}

#[tokio::test]
async fn commits_a_batch_once() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let lamp = add_lamp(&store, 10).await;
    let batch: Vec<_> = (0..10).map(|_| new_request(&[(lamp, 1)])).collect();
    let commits = async || -> (i64, i64) {
        let sql = "select count(*), count(distinct xmin::text) from reservations";
        sqlx::query_as(sql).fetch_one(&store.pool).await.unwrap()
    };
    store.reserve_many(&batch).await.unwrap();
    assert_eq!(commits().await, (10, 1));
    store.release_many(&order_ids(&batch)).await.unwrap();
    assert_eq!(commits().await, (10, 1));
}

#[tokio::test]
async fn rejects_without_waiting_for_a_lock() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let lamp = add_lamp(&store, 1).await;
    let batch = [new_request(&[(lamp, 2)]), new_request(&[(lamp, 1), (999, 1)])];
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let mut blocker = connection.begin().await.unwrap();
    sqlx::query("select id from products for update").execute(&mut *blocker).await.unwrap();
    let reserve = store.reserve_many(&batch);
    let outcomes = tokio::time::timeout(Duration::from_secs(20), reserve).await.expect("it does not wait");
    let short = ReservationOutcome::Rejected(ReservationError::InsufficientStock(vec![(0, 1)]));
    let unknown = ReservationOutcome::Rejected(ReservationError::UnknownProducts(vec![1]));
    assert_eq!(outcomes.unwrap(), [short, unknown].map(Ok));
}

/// Starts a transaction that holds the row of this product.
async fn lock_row(connection: &mut PgConnection, product: i64) -> Transaction<'_, Postgres> {
    let mut blocker = connection.begin().await.unwrap();
    let lock = sqlx::query("select id from products where id = $1 for update").bind(product);
    lock.execute(&mut *blocker).await.unwrap();
    blocker
}

#[tokio::test]
async fn fails_only_the_requests_that_need_a_row_held_too_long() {
    let Some(database) = database().await else { return };
    let database_statement = Duration::from_secs(5); // the limit for a row lock follows from it: 2 s
    let settings = DatabaseSettings { database_connections: 2, database_statement, ..generous_timeouts() };
    let store = PostgresStore::open(&database, &settings).await.unwrap();
    let (lamp, desk) = (add_lamp(&store, 9).await, add_lamp(&store, 9).await);
    let (on_lamp, on_desk) = (new_request(&[(lamp, 1)]), new_request(&[(desk, 1)]));
    let stock = async |id| store.by_id(Id::new(id).unwrap()).await.unwrap().unwrap().product.stock;
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let blocker = lock_row(&mut connection, desk).await;
    // More requests wait for the desk than there are connections, and they hold the lamp meanwhile. One needs only the lamp.
    let mut batch: Vec<_> = (0..20).map(|_| new_request(&[(lamp, 1), (desk, 1)])).collect();
    batch.extend([&on_lamp, &on_desk].map(ReservationRequest::clone));
    let mut outcomes = store.reserve_many(&batch).await.unwrap();
    let unaffected = outcomes.remove(20);
    assert!(matches!(unaffected, Ok(ReservationOutcome::Created(_))), "{unaffected:?}");
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    blocker.rollback().await.unwrap();
    assert_eq!((stock(lamp).await, stock(desk).await), (8, 9));

    store.reserve(on_desk.order_id, &on_desk.lines).await.unwrap();
    let blocker = lock_row(&mut connection, desk).await;
    store.release_many(&[on_desk.order_id, on_lamp.order_id]).await.expect_err("one is not released");
    assert_eq!(stock(lamp).await, 9);
    blocker.rollback().await.unwrap();
    store.release_many(&[on_lamp.order_id, on_desk.order_id]).await.unwrap();
    assert_eq!((stock(lamp).await, stock(desk).await), (9, 9), "each once");
}

/// Waits until this many statements wait for a lock of another transaction.
async fn waiting_for_locks(store: &PostgresStore, expected: i64) {
    const SQL: &str =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let waiting = async || -> i64 { sqlx::query_scalar(SQL).fetch_one(&store.pool).await.unwrap() };
    testing::eventually("the statements to wait", async || waiting().await == expected).await;
}

#[tokio::test]
async fn decides_anew_when_the_rows_change_before_the_writing() {
    let Some(database) = database().await else { return };
    let store = Arc::new(open(&database).await);
    let lamp = add_lamp(&store, 5).await;
    let [units, id, other] = [2, 3, 1].map(|quantity| new_request(&[(lamp, quantity)]));
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let mut blocker = connection.begin().await.unwrap();
    sqlx::query("update products set stock = 1").execute(&mut *blocker).await.unwrap();
    let tombstone = sqlx::query("insert into reservations values ($1, 'released', '[]')").bind(id.order_id.0);
    tombstone.execute(&mut *blocker).await.unwrap();
    let reserve = |batch: Vec<ReservationRequest>| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.reserve_many(&batch).await.unwrap() })
    };
    let (short, released) = (reserve(vec![units, other]), reserve(vec![id]));
    waiting_for_locks(&store, 2).await;
    blocker.commit().await.unwrap();
    let short = short.await.unwrap();
    let expected = ReservationOutcome::Rejected(ReservationError::InsufficientStock(vec![(0, 1)]));
    assert_eq!(short[0], Ok(expected), "two units were there when it was read");
    assert!(matches!(short[1], Ok(ReservationOutcome::Created(_))), "{short:?}");
    assert_eq!(released.await.unwrap(), [Ok(ReservationOutcome::Rejected(ReservationError::Released))]);
}

/// They call functions of the database.
#[tokio::test]
async fn releases_once_beside_replicas_of_the_release_before() {
    const RESERVE: &str = "select count(*) from reserve_many(array[$1]::uuid[], array[1], array[0], array[$2]::bigint[], array[2]::bigint[])
        where answer ? $3";
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let lamp = add_lamp(&store, 5).await;
    let stock = async || store.by_id(Id::new(lamp).unwrap()).await.unwrap().unwrap().product.stock;
    let reserve_before = async |order_id: OrderId, answer: &str| -> i64 {
        let reserve = sqlx::query_scalar(RESERVE).bind(order_id.0).bind(lamp).bind(answer);
        reserve.fetch_one(&store.pool).await.unwrap()
    };
    let release_before = async |order_id: OrderId| {
        sqlx::query("select release_many(array[$1]::uuid[])").bind(order_id.0).execute(&store.pool).await.unwrap();
    };
    let [one, two, three] = [1, 2, 3].map(|n| OrderId(Uuid::from_u128(n)));
    assert_eq!(reserve_before(one, "created").await, 1);
    let again = store.reserve(one, &lines(&[(lamp, 2)])).await.unwrap();
    assert!(matches!(again, ReservationOutcome::Existing(_)), "{again:?}");
    for _ in 0..2 {
        store.release(one).await.unwrap();
        release_before(one).await;
    }
    assert_eq!((reserve_before(one, "existing").await, stock().await), (1, 5));
    release_before(two).await;
    let late = store.reserve(two, &lines(&[(lamp, 2)])).await.unwrap();
    assert_eq!(late, ReservationOutcome::Rejected(ReservationError::Released));

    // A release of the older replica, while this one is writing the reservation.
    let mut connection = PgConnection::connect_with(&database).await.unwrap();
    let mut writing = connection.begin().await.unwrap();
    let line = format!(r#"[{{"product": {lamp}, "name": "Lamp", "cents": 0, "quantity": 2}}]"#);
    let insert = sqlx::query("insert into reservations values ($1, 'taken', $2::jsonb)").bind(three.0).bind(line);
    insert.execute(&mut *writing).await.unwrap();
    sqlx::query("update products set stock = stock - 2").execute(&mut *writing).await.unwrap();
    let (_, committed) = tokio::join!(release_before(three), async {
        waiting_for_locks(&store, 1).await;
        writing.commit().await
    });
    committed.unwrap();
    let released = store.reservation(three).await.unwrap().map(|reservation| reservation.status);
    assert_eq!((released, stock().await), (Some(ReservationStatus::Released), 5));
}

/// A retry would hide a deadlock from the client, so the test reads the counter of the database.
#[tokio::test(flavor = "multi_thread")]
async fn does_not_deadlock_when_batches_overlap() {
    let Some(database) = database().await else { return };
    let store = Arc::new(open(&database).await);
    let (lamp, desk, vase) = (add_lamp(&store, 1000).await, add_lamp(&store, 1000).await, add_lamp(&store, 1000).await);
    // All clients use the same order ids, in different orders, each id for one of the products.
    let shared_batch = |n: u128, wanted: [i64; 3]| -> Vec<ReservationRequest> {
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
                store.reserve(order_id, &lines(&wanted.map(|id| (id, 1)))).await.unwrap();
                store.release(order_id).await.unwrap();
                let mut batch = shared_batch(n, wanted);
                batch.rotate_left(client as usize % 7);
                store.reserve_many(&batch).await.unwrap();
                batch.rotate_left(n as usize % 5);
                store.release_many(&order_ids(&batch)).await.unwrap();
            }
        })
    });
    join_all(clients).await.into_iter().for_each(|client| client.unwrap());
    assert_eq!(deadlocks(&database).await, 0);
}
