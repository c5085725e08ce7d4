use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, SqlSafeStr};
use testing::eventually;
use testing::postgres::{behind_a_faulty_connection, behind_pgbouncer, database};
use tokio::time;

use super::Pool;
use super::connections::ANSWER_TIMEOUT;
use super::retry::sql_state;
use crate::config::{DatabaseSettings, defaults};

const THINGS: &str = "create table things (id bigint primary key); select pg_sleep(0.2)";

/// The same as `testing::postgres::generous_timeouts`, but of the chassis that is tested, not of the one that `testing` links.
pub(super) fn generous_timeouts() -> DatabaseSettings {
    const MINUTE: Duration = Duration::from_secs(60);
    DatabaseSettings { database_acquire: MINUTE, database_statement: MINUTE, ..defaults() }
}

fn short_timeouts() -> DatabaseSettings {
    DatabaseSettings { database_acquire: ANSWER_TIMEOUT, database_statement: ANSWER_TIMEOUT, ..defaults() }
}

/// The same as `migrate!` of a folder with the files `0001_test.sql`, `0002_test.sql`, …
pub(super) fn migrations(sql: &[&'static str]) -> Migrator {
    let numbered = sql
        .iter()
        .zip(1..)
        .map(|(sql, version)| Migration::new(version, "test".into(), MigrationType::Simple, sql.into_sql_str(), false));
    Migrator::with_migrations(numbered.collect())
}

async fn open(database: &PgConnectOptions, settings: &DatabaseSettings, migrations: &Migrator) -> Result<Pool, String> {
    let pool = Pool::new("tiny", database, settings, migrations);
    pool.open().await?;
    Ok(pool)
}

pub(super) async fn pool(database: &PgConnectOptions, connections: u32, settings: DatabaseSettings) -> Pool {
    let settings = DatabaseSettings { database_connections: connections, ..settings };
    open(database, &settings, &migrations(&[])).await.unwrap()
}

/// Runs steps of 50 ms concurrently. Returns whether all succeed.
pub(super) async fn run_concurrently(pool: &Pool, steps: usize) -> bool {
    let sleep = || pool.retry_idempotent("test", || sqlx::query("select pg_sleep(0.05)").execute(pool));
    join_all((0..steps).map(|_| sleep())).await.iter().all(Result::is_ok)
}

/// Opens as many connections, and waits until all are idle.
pub(super) async fn open_connections(pool: &Pool, number: u32) {
    eventually("open connections", async || {
        run_concurrently(pool, number as usize).await;
        let returned = async || {
            let (open, idle) = pool.connections.count();
            open == idle
        };
        eventually("all connections to be returned", returned).await;
        pool.connections.count() == (number, number)
    })
    .await;
}

#[tokio::test]
async fn migrates_once_when_replicas_start_together() {
    let Some(database) = database().await else { return };
    let (settings, things) = (generous_timeouts(), migrations(&[THINGS]));
    let open = || open(&database, &settings, &things);
    let (one, two, three) = tokio::join!(open(), open(), open());
    for pool in [one.unwrap(), two.unwrap(), three.unwrap()] {
        sqlx::query("select id from things").execute(&pool).await.unwrap();
    }
}

#[tokio::test]
async fn starts_when_the_database_is_ahead_and_refuses_a_changed_migration() {
    let Some(database) = database().await else { return };
    let settings = generous_timeouts();
    let newer = [THINGS, "alter table things add name text"];
    for release in [&newer[..], &newer[..1]] {
        open(&database, &settings, &migrations(release)).await.unwrap();
    }
    let changed = migrations(&["create table others (id bigint primary key)"]);
    assert!(open(&database, &settings, &changed).await.is_err(), "a changed migration");
}

#[tokio::test]
async fn leaves_time_for_two_lock_waits_per_statement_and_limits_them_more_on_request() {
    let Some(database) = database().await else { return };
    let pool = pool(&database, 1, generous_timeouts()).await;
    let limits = async |pool: &Pool| -> (bool, bool) {
        let seconds = |name| format!("extract(epoch from current_setting('{name}')::interval)");
        let (lock, statement) = (seconds("lock_timeout"), seconds("statement_timeout"));
        let sql = format!("select 2 * {lock} < {statement}, {lock} < 0.05");
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
    };
    assert_eq!(limits(&pool).await, (true, false));
    assert_eq!(limits(&pool.short_lock_timeout()).await, (true, true));
}

#[tokio::test]
async fn times_out_when_the_database_is_silent_and_keeps_no_permit() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let pool = pool(&database, 2, short_timeouts()).await;
    eventually("two connections", async || run_concurrently(&pool, 2).await).await;
    wire.set_silent(true);
    let silent = async { (run_concurrently(&pool, 4).await, pool.ping().await) };
    let (succeeded, pinged) = time::timeout(Duration::from_secs(30), silent).await.expect("every step ends");
    assert!(!succeeded && pinged.is_err());
    wire.set_silent(false);
    let recovered = async || run_concurrently(&pool, 2).await && pool.ping().await.is_ok();
    eventually("as many connections as before", recovered).await;
}

#[tokio::test]
async fn uses_a_connection_again_if_the_database_was_silent_while_it_was_returned() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let pool = pool(&database, 1, short_timeouts()).await;
    eventually("a connection", async || run_concurrently(&pool, 1).await).await;
    wire.set_silent(true);
    time::sleep(ANSWER_TIMEOUT / 5).await; // what the return sends would be lost
    wire.set_silent(false);
    assert_eq!(pool.connections.count(), (1, 1));
    eventually("the connection", async || run_concurrently(&pool, 1).await).await;
}

#[tokio::test]
async fn keeps_no_permit_when_a_statement_is_cancelled_and_the_database_is_silent() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let pool = pool(&database, 1, short_timeouts()).await;
    open_connections(&pool, 1).await;
    wire.set_silent(true);
    let cancelled = time::timeout(ANSWER_TIMEOUT / 5, sqlx::query("select 1").execute(&pool)).await;
    wire.set_silent(false);
    cancelled.expect_err("no answer");
    eventually("another connection", async || run_concurrently(&pool, 1).await).await;
}

#[tokio::test]
async fn uses_the_connection_of_a_cancelled_statement_again() {
    let Some(database) = database().await else { return };
    let pool = pool(&database, 1, generous_timeouts()).await;
    let process = async || sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&pool).await.unwrap();
    let before = process().await;
    let sleep = sqlx::query("select pg_sleep(0.2)").execute(&pool);
    time::timeout(Duration::from_millis(20), sleep).await.expect_err("it sleeps longer");
    assert_eq!(process().await, before);
}

#[tokio::test]
async fn closes_all_idle_connections_when_one_is_dead() {
    let Some(database) = database().await else { return };
    let pool = pool(&database, 10, generous_timeouts()).await;
    open_connections(&pool, 10).await;
    let mut admin = database.connect().await.unwrap();
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                     where application_name = 'tiny' and datname = current_database()";
    sqlx::query(terminate).execute(&mut admin).await.unwrap();
    while !sqlx::query(terminate).fetch_all(&mut admin).await.unwrap().is_empty() {}
    let _ = sqlx::query("select 1").execute(&pool).await; // fails, unless the connection was idle for so long that it is pinged
    sqlx::query("select 1").execute(&pool).await.expect("a new connection");
}

/// A retry on another connection then does not wait for the locks of the failed attempt. The rollback here takes long.
#[tokio::test]
async fn reports_a_failed_statement_after_its_rollback() {
    let Some(database) = database().await else { return };
    let pool = open(&database, &generous_timeouts(), &migrations(&[THINGS])).await.unwrap();
    sqlx::query("insert into things values (0)").execute(&pool).await.unwrap();
    let fail = "do $$ begin
        update things set id = 0;
        for n in 1..10000 loop
            begin insert into things values (n); exception when unique_violation then null; end;
        end loop;
        raise 'it fails';
    end $$";
    for _ in 0..10 {
        sqlx::query(fail).execute(&pool).await.expect_err("it raises");
        sqlx::query("select id from things for update nowait").execute(&pool).await.expect("no lock is held");
    }
}

#[tokio::test]
async fn pings_while_all_connections_are_busy() {
    let Some(database) = database().await else { return };
    let pool = pool(&database, 1, generous_timeouts()).await;
    let _busy = pool.connections.acquire().await.unwrap();
    assert!(pool.connections.acquire().now_or_never().is_none(), "all connections are busy");
    pool.ping().await.unwrap();
}

#[tokio::test]
async fn fails_every_step_until_the_database_is_open() {
    let Some(database) = database().await else { return };
    let pool = Pool::new("tiny", &database, &generous_timeouts(), &migrations(&[]));
    pool.ping().await.expect_err("it is not open");
    assert!(!run_concurrently(&pool, 1).await);
    pool.open().await.unwrap();
    pool.ping().await.unwrap();
    assert!(run_concurrently(&pool, 1).await);
}

#[tokio::test]
async fn needs_no_lock_when_nothing_is_to_be_migrated() {
    let Some(database) = database().await else { return };
    let things = migrations(&[THINGS]);
    open(&database, &generous_timeouts(), &things).await.unwrap();
    let mut other = database.connect().await.unwrap();
    sqlx::query("begin").execute(&mut other).await.unwrap();
    sqlx::query("lock table _sqlx_migrations in share update exclusive mode").execute(&mut other).await.unwrap();
    open(&database, &generous_timeouts(), &things).await.unwrap();
}

/// Earlier releases hold the lock of sqlx while they migrate.
#[tokio::test]
async fn waits_while_a_replica_of_an_earlier_release_migrates() {
    let Some(database) = database().await else { return };
    let (settings, things) = (generous_timeouts(), migrations(&[THINGS]));
    let mut earlier = database.connect().await.unwrap();
    sqlx::migrate::Migrate::lock(&mut earlier).await.unwrap();
    let opened = open(&database, &settings, &things);
    tokio::pin!(opened);
    time::timeout(Duration::from_millis(500), opened.as_mut()).await.expect_err("the lock is held");
    sqlx::migrate::Migrate::unlock(&mut earlier).await.unwrap();
    opened.await.unwrap();
}

#[tokio::test]
async fn refuses_a_database_that_grants_advisory_locks_without_holding_them() {
    const PRETENDER: &str =
        "create schema pretender; create function pretender.pg_try_advisory_xact_lock(bigint) returns boolean
        language sql as 'select true'";
    let Some(database) = database().await else { return };
    sqlx::raw_sql(PRETENDER).execute(&mut database.connect().await.unwrap()).await.unwrap();
    let pretends = database.clone().options([("search_path", "pretender,pg_catalog")]);
    let refused = open(&pretends, &generous_timeouts(), &migrations(&[THINGS])).await.unwrap_err();
    assert!(refused.contains("pg_locks does not show them") && refused.contains("not PostgreSQL "), "{refused}");
    open(&database, &generous_timeouts(), &migrations(&[THINGS])).await.unwrap();
}

/// Returns addresses of new databases behind PgBouncer: with the defaults of Debian, which refuse the parameters of a session,
/// and with the setting that many use, which drops them. Empty without PgBouncer.
async fn pooled_databases() -> Vec<PgConnectOptions> {
    let mut databases = Vec::new();
    for settings in ["", "ignore_startup_parameters = extra_float_digits,options,search_path"] {
        let Some(database) = database().await else { continue };
        databases.extend(behind_pgbouncer(&database, settings));
    }
    databases
}

#[tokio::test]
async fn keeps_every_time_limit_behind_pgbouncer() {
    for database in pooled_databases().await {
        let pool = open(&database, &generous_timeouts(), &migrations(&[THINGS])).await.unwrap();
        sqlx::query("insert into things values (1)").execute(&pool).await.unwrap();
        for (pool, lock_timeout) in [(&pool, "24s"), (&pool.short_lock_timeout(), "10ms")] {
            for (limit, value) in
                [("statement_timeout", "1min"), ("lock_timeout", lock_timeout), ("enable_seqscan", "off")]
            {
                let setting = sqlx::query_scalar::<_, String>("select current_setting($1)").bind(limit);
                assert_eq!(setting.fetch_one(pool).await.unwrap(), value, "{limit}");
            }
        }
        let mut other = database.port(5432).connect().await.unwrap(); // not through PgBouncer
        sqlx::raw_sql("begin; update things set id = 1").execute(&mut other).await.unwrap();
        let locked = sqlx::query("update things set id = $1").bind(1_i64).execute(&pool.short_lock_timeout()).await;
        assert_eq!(sql_state(&locked.unwrap_err()).as_deref(), Some("55P03"), "lock_timeout");
        pool.ping().await.unwrap();
    }
}

#[tokio::test]
async fn migrates_once_when_replicas_start_together_behind_pgbouncer() {
    for database in pooled_databases().await {
        let (settings, things) = (generous_timeouts(), migrations(&[THINGS]));
        let opened = join_all((0..5).map(|_| open(&database, &settings, &things))).await;
        for pool in opened {
            sqlx::query("select id from things where id > $1").bind(0_i64).execute(&pool.unwrap()).await.unwrap();
        }
        // A later release finds what sqlx has left on the connections of the pooler.
        let later = migrations(&[THINGS, "alter table things add column name text"]);
        open(&database, &settings, &later).await.unwrap();
    }
}

#[tokio::test]
async fn leaves_no_transaction_open_behind_pgbouncer_when_statements_are_cancelled() {
    for database in pooled_databases().await {
        let pool = open(&database, &generous_timeouts(), &migrations(&[THINGS])).await.unwrap();
        for n in 0..20 {
            let insert = sqlx::query("insert into things select $1 from pg_sleep(0.05)").bind(n).execute(&pool);
            let _ = time::timeout(Duration::from_millis(5 * n as u64), insert).await;
        }
        let idle = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
        let none_is_open = async || sqlx::query_scalar::<_, i64>(idle).fetch_one(&pool).await.unwrap() == 0;
        eventually("no open transaction", none_is_open).await;
        assert!(run_concurrently(&pool, 30).await, "more statements than connections to the server");
    }
}
