//! Tests of the PostgreSQL store alone. The tests of both stores are in `contract`.

use std::ops::Range;
use std::sync::Arc;

use chassis::http::extract::Header;
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use testing::postgres::{behind_a_faulty_connection, database, deadlocks, generous_timeouts};

use super::*;
use crate::idempotency::{Fingerprint, Key};
use crate::order::AfterRelease;

/// Opens the store with timeouts for a slow machine.
pub(in crate::store) async fn open(database: &PgConnectOptions) -> PostgresStore {
    PostgresStore::open(database, &generous_timeouts()).await.unwrap()
}

/// Inserts an order in this state.
async fn insert(store: &PostgresStore, state: &str) -> Result<Uuid, Error> {
    let insert =
        query_scalar("insert into orders (id, user_id, state, created_at) values ($1, 1, $2, now()) returning id");
    insert.bind(Uuid::now_v7()).bind(state).fetch_one(&store.pool).await
}

async fn read<T>(store: &PostgresStore, column: &str, id: Uuid) -> Option<T>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    let read = format!("select {column} from orders where id = $1");
    query_scalar(AssertSqlSafe(read)).bind(id).fetch_optional(&store.pool).await.unwrap()
}

#[tokio::test]
async fn has_the_same_states_and_steps_as_the_domain() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    for state in State::ALL {
        println!("{state:?}");
        let status: Option<String> = read(&store, "status", insert(&store, state.name()).await.unwrap()).await.unwrap();
        assert_eq!(status.as_deref(), state.visible_status().map(OrderStatus::name));

        let [aborted, settled, released] = [(); 3].map(|()| insert(&store, state.name()));
        let [aborted, settled, released] = [aborted.await.unwrap(), settled.await.unwrap(), released.await.unwrap()];
        store.abort(OrderId(aborted)).await.unwrap();
        store.settle(OrderId(settled), Vec::new(), Money::default()).await.unwrap();
        store.finish_release(OrderId(released)).await.unwrap();
        let after_release = match state.after_release() {
            Some(AfterRelease::Deleted) => None,
            Some(AfterRelease::Kept(state)) => Some(state),
            None => Some(state),
        };
        for (id, expected) in [
            (aborted, Some(state.abort().unwrap_or(state))),
            (settled, Some(state.settle().unwrap_or(state))),
            (released, after_release),
        ] {
            assert_eq!(read::<String>(&store, "state", id).await.as_deref(), expected.map(State::name));
        }
    }
    for unknown in ["", "Pending", "gone"] {
        assert!(insert(&store, unknown).await.is_err(), "{unknown:?}");
    }
}

#[tokio::test]
async fn keeps_keys_unique_except_for_aborting_rows() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    for state in State::ALL {
        query("delete from orders").execute(&store.pool).await.unwrap();
        for _ in 0..2 {
            let id = insert(&store, "aborting").await.unwrap();
            let key = query("update orders set idempotency_key = 'k', fingerprint = 'x' where id = $1").bind(id);
            key.execute(&store.pool).await.unwrap();
        }
        let move_all = query("update orders set state = $1").bind(state.name()).execute(&store.pool).await;
        assert_eq!(move_all.is_err(), state.holds_key(), "{state:?}");
    }
}

/// The rows of orders that another replica is claiming, or whose intent is being settled, are locked.
#[tokio::test]
async fn skips_locked_rows_when_claiming() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let mut rows = Vec::new();
    for state in ["aborting", "cancelling", "placing", "aborting", "placing"] {
        rows.push(OrderId(insert(&store, state).await.unwrap()));
    }
    let (locked, free) = rows.split_at(3);
    let mut connection = database.connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let lock = "select id from orders where id <= $1 for update";
    query(lock).bind(locked[2].0).execute(&mut *transaction).await.unwrap();

    let claim = || tokio::time::timeout(Duration::from_secs(20), store.claim(Duration::ZERO, Duration::ZERO, 3));
    assert_eq!(claim().await.expect("no wait for a lock").unwrap(), free);
    transaction.rollback().await.unwrap();
    assert_eq!(
        claim().await.expect("no wait for a lock").unwrap(),
        locked,
        "orders that were never claimed come first"
    );
}

/// The clock of a replica may be wrong by hours, in either direction.
#[tokio::test]
async fn decides_by_the_clock_of_the_database_which_intents_are_abandoned() {
    const HOUR: Duration = Duration::from_secs(3600);
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let ids = [(); 4].map(|()| OrderId(Uuid::now_v7()));
    for (id, created_at) in ids.into_iter().zip([chassis::now() - 9 * HOUR, chassis::now() + 9 * HOUR].repeat(2)) {
        let intent = Intent { id, user_id: Id::new(1).unwrap(), key: None, created_at };
        assert_eq!(store.begin(intent).await, Ok(BeginOutcome::Started));
    }
    let age = query("update orders set begun_at = begun_at - interval '2 hours' where id = any ($1)");
    age.bind([ids[0].0, ids[1].0]).execute(&store.pool).await.unwrap();
    assert_eq!(store.claim(HOUR, HOUR, 9).await.unwrap(), ids[..2]);
    assert_eq!(store.claim(HOUR, HOUR, 9).await.unwrap(), [], "they are claimed for an hour");
    let leases = "select count(*) from orders where claimed_until between now() + interval '59 minutes' and now() + interval '1 hour'";
    assert_eq!(query_scalar::<_, i64>(leases).fetch_one(&store.pool).await.unwrap(), 2);
}

#[tokio::test]
async fn reports_success_when_the_response_to_a_step_is_lost() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let store = open(&database).await;
    let (lose, was_lost) = (|| wire.lose_an_answer(), || wire.has_lost_it());
    for key in [None, Some((Key::parse("k").unwrap(), Fingerprint::of(b"{}")))] {
        let id = OrderId(Uuid::now_v7());
        let intent = Intent { id, user_id: Id::new(1).unwrap(), key, created_at: chassis::now() };
        lose();
        assert_eq!(store.begin(intent.clone()).await, Ok(BeginOutcome::Started));
        assert!(was_lost());
        lose();
        let settled = store.settle(id, Vec::new(), Money::default()).await.unwrap().expect("it is settled");
        assert_eq!((was_lost(), settled.status), (true, OrderStatus::Pending));
        for (from, to) in [(OrderStatus::Pending, State::Confirmed), (OrderStatus::Confirmed, State::Cancelling)] {
            lose();
            let order = store.step(id, from, to).await.unwrap().expect("it is moved");
            assert_eq!((was_lost(), Some(order.status)), (true, to.visible_status()));
            assert_eq!(store.step(id, from, to).await.unwrap(), None, "a new call is another step");
        }
        lose();
        store.finish_release(id).await.unwrap();
        assert!(was_lost());
        assert_eq!(read::<String>(&store, "state", id.0).await.as_deref(), Some("cancelled"));

        let id = OrderId(Uuid::now_v7());
        assert_eq!(store.begin(Intent { id, key: None, ..intent }).await, Ok(BeginOutcome::Started));
        lose();
        store.abort(id).await.unwrap();
        assert!(was_lost());
        assert_eq!(read::<String>(&store, "state", id.0).await.as_deref(), Some("aborting"));
    }
}

/// Returns intents with these keys, by ascending id.
fn intents(keys: impl Iterator<Item = u32>) -> Vec<Intent> {
    let key = |n| Some((Key::parse(&format!("k{n}")).unwrap(), Fingerprint::of(b"{}")));
    let new = |n| Intent {
        id: OrderId(Uuid::now_v7()),
        user_id: Id::new(1).unwrap(),
        key: key(n),
        created_at: chassis::now(),
    };
    keys.map(new).collect()
}

async fn begin_all(store: &PostgresStore, intents: &[Intent]) -> Vec<Result<BeginOutcome, StoreError>> {
    join_all(intents.iter().map(|intent| store.begin(intent.clone()))).await
}

/// Returns intents with these keys that are recorded.
async fn recorded(store: &PostgresStore, keys: Range<u32>) -> Vec<Intent> {
    let intents = intents(keys);
    assert!(begin_all(store, &intents).await.iter().all(|begun| *begun == Ok(BeginOutcome::Started)));
    intents
}

#[tokio::test]
async fn executes_concurrent_steps_in_one_statement_and_commit() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let intents = intents(0..100);
    let commits = async || -> i64 {
        query_scalar("select count(distinct xmin::text) from orders").fetch_one(&store.pool).await.unwrap()
    };
    assert!(begin_all(&store, &intents).await.iter().all(|begun| *begun == Ok(BeginOutcome::Started)));
    assert!(commits().await <= 2);
    let (settled, aborted) = intents.split_at(50);
    let settle = join_all(settled.iter().map(|intent| store.settle(intent.id, Vec::new(), Money::default())));
    let abort = join_all(aborted.iter().map(|intent| store.abort(intent.id)));
    let (settled, aborted) = tokio::join!(settle, abort);
    assert!(
        settled.into_iter().all(|settled| settled.unwrap().is_some())
            && aborted.into_iter().all(|done| done == Ok(true))
    );
    assert!(commits().await <= 4);
}

/// A statement has a timeout, and a huge one would delay the small orders in it.
#[tokio::test]
async fn splits_batches_of_large_orders() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let intents = recorded(&store, 0..60).await;
    let (name, price) = ("\u{1F4A1}".repeat(200), Money::default()); // four bytes per character
    let line = |id| OrderLine { product_id: Id::new(id).unwrap(), name: name.clone(), quantity: 1, price };
    let largest: Vec<_> = (1..=100).map(line).collect();
    let settled = join_all(intents.iter().map(|intent| store.settle(intent.id, largest.clone(), price))).await;
    assert!(settled.into_iter().all(|settled| settled.unwrap().is_some()));
    let sql = "select max(bytes) from
        (select sum(octet_length(lines::text)) as bytes from orders group by xmin::text) as together";
    let max: i64 = query_scalar(sql).fetch_one(&store.pool).await.unwrap();
    assert!(max <= 1 << 20, "{max} bytes");
}

#[tokio::test]
async fn reports_success_when_the_response_to_a_batch_is_lost() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let store = open(&database).await;
    let intents = intents(0..20);
    wire.lose_an_answer();
    assert!(begin_all(&store, &intents).await.iter().all(|begun| *begun == Ok(BeginOutcome::Started)));
    assert!(wire.has_lost_it());
    wire.lose_an_answer();
    let settled = join_all(intents.iter().map(|intent| store.settle(intent.id, Vec::new(), Money::default()))).await;
    assert!(settled.into_iter().all(|settled| settled.unwrap().is_some()) && wire.has_lost_it());
}

/// PostgreSQL cannot store U+0000. (A name from product-service never has one.)
#[tokio::test]
async fn fails_only_the_step_that_the_database_rejects() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let intents = recorded(&store, 0..9).await;
    let named = |name: &str| {
        vec![OrderLine { product_id: Id::new(1).unwrap(), name: name.to_owned(), quantity: 1, price: Money::default() }]
    };
    let settled = join_all(
        intents
            .iter()
            .enumerate()
            .map(|(n, intent)| store.settle(intent.id, named(if n == 4 { "\0" } else { "Lamp" }), Money::default())),
    );
    let failed: Vec<_> = settled.await.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, false, false, true, false, false, false, false]);
}

#[tokio::test]
async fn fails_only_the_step_whose_row_is_locked_too_long() {
    let Some(database) = database().await else { return };
    // The statement timeout of 5 s allows 2 s of waiting for a lock.
    let settings = DatabaseSettings { database_statement: Duration::from_secs(5), ..generous_timeouts() };
    let store = PostgresStore::open(&database, &settings).await.unwrap();
    let intents = recorded(&store, 0..9).await;
    let mut connection = database.connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    query("select id from orders where id = $1 for update")
        .bind(intents[4].id.0)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let settle = intents.iter().map(|intent| store.settle(intent.id, Vec::new(), Money::default()));
    let failed: Vec<_> = join_all(settle).await.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, false, false, true, false, false, false, false]);
}

/// The replicas insert the keys in opposite orders. A retry would hide a deadlock, so the database's counter is checked.
#[tokio::test(flavor = "multi_thread")]
async fn does_not_deadlock_when_replicas_insert_the_same_keys() {
    let Some(database) = database().await else { return };
    let replicas = Arc::new([open(&database).await, open(&database).await]);
    for _ in 0..20 {
        let intents = [intents(0..60), intents((0..60).rev())];
        let attempts = intents.into_iter().enumerate().map(|(replica, intents)| {
            let replicas = Arc::clone(&replicas);
            tokio::spawn(async move { begin_all(&replicas[replica], &intents).await })
        });
        let begun = join_all(attempts).await.into_iter().flat_map(|begun| begun.unwrap());
        assert_eq!(begun.filter(|begun| *begun == Ok(BeginOutcome::Started)).count(), 60, "one per key");
        query("delete from orders").execute(&replicas[0].pool).await.unwrap();
    }
    join_all(replicas.iter().map(|replica| replica.pool.close())).await;
    assert_eq!(deadlocks(&database).await, 0);
}
