//! Tests of the PostgreSQL store alone. The tests of both stores are in `contract`.

use std::ops::Range;
use std::sync::Arc;

use chassis::http::extract::Header;
use futures_util::future::join_all;
use sqlx::{ConnectOptions, Connection};
use testing::postgres::{behind_a_faulty_connection, database, deadlocks, generous_timeouts};

use super::*;
use crate::idempotency::{Fingerprint, Key};
use crate::order::AfterRelease;

/// Opens the store with timeouts for a slow machine.
pub(in crate::store) async fn open(database: &PgConnectOptions) -> PostgresStore {
    PostgresStore::open(database, &generous_timeouts()).await.unwrap()
}

fn new_intent(key: Option<&str>) -> Intent {
    let key = key.map(|key| (Key::parse(key).unwrap(), Fingerprint::of(b"{}")));
    Intent { id: OrderId(Uuid::now_v7()), user_id: Id::new(1).unwrap(), key, created_at: chassis::now() }
}

/// Brings a new order into this state.
async fn in_state(store: &PostgresStore, state: State, key: Option<&str>) -> OrderId {
    let intent = new_intent(key);
    let id = intent.id;
    assert_eq!(store.begin(intent).await, Ok(BeginOutcome::Started));
    if state == State::Aborting {
        assert_eq!(store.abort(id).await, Ok(true));
    } else if state != State::Placing {
        assert!(store.settle(id, Vec::new(), Money::default()).await.unwrap().is_some());
        let update = query("update orders set state = $1 where id = $2").bind(state.name()).bind(id.0);
        update.execute(&store.pool).await.unwrap();
    }
    id
}

/// Returns the state of an attempt or order. `None` if there is no row of it.
async fn state(store: &PostgresStore, id: OrderId) -> Option<String> {
    let sql = "select 'placing' from intents where id = $1 union all select state from orders where id = $1
        union all select 'aborting' from releases where order_id = $1 and order_id not in (select id from orders)";
    query_scalar(sql).bind(id.0).fetch_optional(&store.pool).await.unwrap()
}

#[tokio::test]
async fn has_the_same_states_and_steps_as_the_domain() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    for current in State::ALL {
        println!("{current:?}");
        let [aborted, settled, released] = [(); 3].map(|()| in_state(&store, current, None));
        let [aborted, settled, released] = [aborted.await, settled.await, released.await];
        assert_eq!(state(&store, aborted).await.as_deref(), Some(current.name()));
        let status = store.by_id(aborted).await.unwrap().map(|order| order.status);
        assert_eq!(status, current.visible_status());

        store.abort(aborted).await.unwrap();
        store.settle(settled, Vec::new(), Money::default()).await.unwrap();
        store.finish_release(released).await.unwrap();
        let after_release = match current.after_release() {
            Some(AfterRelease::Deleted) => None,
            Some(AfterRelease::Kept(state)) => Some(state),
            None => Some(current),
        };
        for (id, expected) in [
            (aborted, Some(current.abort().unwrap_or(current))),
            (settled, Some(current.settle().unwrap_or(current))),
            (released, after_release),
        ] {
            assert_eq!(state(&store, id).await.as_deref(), expected.map(State::name));
        }
    }
    for unknown in ["", "Pending", "gone"] {
        let update = query("update orders set state = $1").bind(unknown).execute(&store.pool).await;
        assert!(update.is_err(), "{unknown:?}");
    }
}

#[tokio::test]
async fn keeps_keys_unique_except_for_aborting_attempts() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    for state in State::ALL {
        in_state(&store, state, Some(state.name())).await;
        let begun = store.begin(new_intent(Some(state.name()))).await.unwrap();
        assert_eq!(begun != BeginOutcome::Started, state.holds_key(), "{state:?}: {begun:?}");
    }
}

/// The rows of orders that another replica is claiming, or whose intent is being settled, are locked.
#[tokio::test]
async fn skips_locked_rows_when_claiming() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let mut rows = Vec::new();
    for state in [State::Aborting, State::Cancelling, State::Placing, State::Aborting, State::Placing] {
        rows.push(in_state(&store, state, None).await);
    }
    assert_eq!(store.claim(Duration::from_secs(3600), Duration::ZERO, 9).await.unwrap().len(), 3);
    let (locked, free) = rows.split_at(3);
    let mut connection = database.connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    for lock in
        ["select from intents where id <= $1 for update", "select from releases where order_id <= $1 for update"]
    {
        query(lock).bind(locked[2].0).execute(&mut *transaction).await.unwrap();
    }

    let claim = || tokio::time::timeout(Duration::from_secs(20), store.claim(Duration::ZERO, Duration::ZERO, 3));
    assert_eq!(claim().await.expect("no wait for a lock").unwrap(), free);
    transaction.rollback().await.unwrap();
    let next = claim().await.expect("no wait for a lock").unwrap();
    assert_eq!(next, locked, "the others have waited longer");
}

/// The first try of an insert may run on the server after the second one was settled.
#[tokio::test]
async fn releases_no_order_whose_intent_is_inserted_again() {
    let Some(database) = database().await else { return };
    let store = open(&database).await;
    let intents = [new_intent(None), new_intent(None), new_intent(Some("k"))];
    for begin in [1, 2] {
        assert!(begin_all(&store, &intents).await.iter().all(|begun| *begun == Ok(BeginOutcome::Started)));
        for intent in intents.iter().filter(|_| begin == 1) {
            assert!(store.settle(intent.id, Vec::new(), Money::default()).await.unwrap().is_some());
        }
    }
    assert_eq!(store.abort(intents[0].id).await, Ok(false));
    assert_eq!(store.claim(Duration::ZERO, Duration::ZERO, 9).await.unwrap(), []);
    for intent in &intents {
        assert_eq!(state(&store, intent.id).await.as_deref(), Some("pending"));
    }
    assert!(matches!(store.begin(new_intent(Some("k"))).await, Ok(BeginOutcome::Replayed(_))), "it keeps its key");
}

/// Runs a statement as a replica of the release before sends it. Returns the number of rows.
async fn as_before(store: &PostgresStore, sql: &'static str) -> u64 {
    query(sql).execute(&store.pool).await.unwrap().rows_affected()
}

#[tokio::test]
async fn runs_beside_replicas_of_the_release_before() {
    const HOUR: Duration = Duration::from_secs(3600);
    const INSERT: &str = "insert into orders (id, user_id, state, idempotency_key, fingerprint, created_at)
        select id::uuid, 1, state, key, sha256('{}'), now() from (values
            ('00000000-0000-7000-8000-000000000001', 'placing', 'a'), ('00000000-0000-7000-8000-000000000002', 'aborting', 'b'),
            ('00000000-0000-7000-8000-000000000003', 'pending', 'c'), ('00000000-0000-7000-8000-000000000004', 'cancelling', 'g')
        ) as before (id, state, key)";
    const AGAIN: &str = "insert into orders (id, user_id, state, idempotency_key, fingerprint, created_at)
        select gen_random_uuid(), 1, 'placing', key, sha256('{}'), now() from unnest(array['a', 'c', 'd', 'e', 'f']) as key
        on conflict do nothing";
    let Some(database) = database().await else { return };
    let mut connection = database.connect().await.unwrap();
    let before = Migrator::with_migrations(MIGRATIONS.iter().take(2).cloned().collect());
    before.run(&mut connection).await.unwrap();
    query(INSERT).execute(&mut connection).await.unwrap();
    let id = |n: u128| OrderId(Uuid::from_u128(0x7000_8000_0000_0000_0000 + n));

    let store = open(&database).await;
    let begin = async |key| store.begin(new_intent(Some(key))).await.unwrap();
    assert_eq!((begin("a").await, begin("b").await), (BeginOutcome::InProgress, BeginOutcome::Started));
    assert!(matches!(begin("c").await, BeginOutcome::Replayed(order) if order.id == id(3)));
    in_state(&store, State::Placing, Some("d")).await;
    in_state(&store, State::Pending, Some("e")).await;
    assert_eq!(as_before(&store, AGAIN).await, 1, "only f is free");
    assert_eq!(begin("f").await, BeginOutcome::InProgress);
    let found =
        "select from orders where idempotency_key in ('c', 'e') and state = 'pending' and fingerprint = sha256('{}')";
    assert_eq!(as_before(&store, found).await, 2, "the replica finds the orders to replay");
    let abort = "update orders set state = 'aborting' where state = 'placing' and idempotency_key = 'f'";
    assert_eq!((as_before(&store, abort).await, begin("f").await), (1, BeginOutcome::Started));
    as_before(&store, "delete from orders where idempotency_key = 'f'").await;

    assert_eq!(store.claim(HOUR, Duration::ZERO, 9).await.unwrap(), [id(4)], "the others may be in progress");
    as_before(&store, "update orders set begun_at = begun_at - interval '2 hours'").await;
    assert_eq!(store.claim(HOUR, Duration::ZERO, 9).await.unwrap(), [id(1), id(2), id(4)]);
    for n in [1, 2, 4] {
        store.finish_release(id(n)).await.unwrap();
    }
    assert_eq!(begin("a").await, BeginOutcome::Started);
    let left = [state(&store, id(1)).await, state(&store, id(2)).await, state(&store, id(4)).await];
    assert_eq!(left.map(|state| state.unwrap_or_default()), ["", "", "cancelled"]);
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
    let age = query("update intents set begun_at = begun_at - interval '2 hours' where id = any ($1)");
    age.bind([ids[0].0, ids[1].0]).execute(&store.pool).await.unwrap();
    assert_eq!(store.claim(HOUR, HOUR, 9).await.unwrap(), ids[..2]);
    assert_eq!(store.claim(HOUR, HOUR, 9).await.unwrap(), [], "they are claimed for an hour");
    let leases = "select count(*) from releases where claimed_until between now() + interval '59 minutes' and now() + interval '1 hour'";
    assert_eq!(query_scalar::<_, i64>(leases).fetch_one(&store.pool).await.unwrap(), 2);
}

#[tokio::test]
async fn reports_success_when_the_response_to_a_step_is_lost() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let store = open(&database).await;
    let (lose, was_lost) = (|| wire.lose_an_answer(), || wire.has_lost_it());
    for key in [None, Some("k")] {
        let intent = new_intent(key);
        let id = intent.id;
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
        assert_eq!(state(&store, id).await.as_deref(), Some("cancelled"));

        let id = OrderId(Uuid::now_v7());
        assert_eq!(store.begin(Intent { id, key: None, ..intent }).await, Ok(BeginOutcome::Started));
        lose();
        store.abort(id).await.unwrap();
        assert!(was_lost());
        assert_eq!(state(&store, id).await.as_deref(), Some("aborting"));
    }
}

/// Returns intents with these keys, by ascending id.
fn intents(keys: impl Iterator<Item = u32>) -> Vec<Intent> {
    keys.map(|n| new_intent(Some(&format!("k{n}")))).collect()
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
        let sql = "select count(distinct xmin::text) from
            (select xmin from intents union all select xmin from orders union all select xmin from releases) as rows";
        query_scalar(sql).fetch_one(&store.pool).await.unwrap()
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
    query("select from intents where id = $1 for update")
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
        for delete in ["delete from intents", "delete from idempotency_keys"] {
            query(delete).execute(&replicas[0].pool).await.unwrap();
        }
    }
    assert_eq!(deadlocks(&database).await, 0);
}
