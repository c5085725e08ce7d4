//! Tests of what operators do to a database while a service runs: failover, DDL, limits, timeouts.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Error, Executor, query, query_scalar};
use testing::eventually;
use testing::postgres::{Durability, Server, behind_a_faulty_connection, database};
use tokio::time;

use super::retry::sql_state;
use super::tests::{generous_timeouts, open_connections, pool};
use super::{Failure, Pool, READ_ONLY};
use crate::config::DatabaseSettings;

async fn admin(database: &PgConnectOptions) -> PgConnection {
    database.connect().await.unwrap()
}

/// Runs SQL in a session of its own.
async fn run(database: &PgConnectOptions, sql: &str) {
    admin(database).await.execute(AssertSqlSafe(sql.to_owned())).await.expect(sql);
}

/// Returns a pool of 5 open connections that have prepared the statements of [`read`] and [`write`].
async fn busy_pool(database: &PgConnectOptions) -> Pool {
    run(database, "create table things (id bigserial primary key, name text)").await;
    let pool = pool(database, 5, generous_timeouts()).await;
    open_connections(&pool, 5).await;
    on_each_connection(&pool, "select").await;
    expect_steps(&pool, "the start").await;
    pool
}

/// Runs SQL on each of the 5 connections, and prepares the statements of [`read`] and [`write`] there.
async fn on_each_connection(pool: &Pool, sql: &'static str) {
    let mut borrowed = Vec::new();
    for _ in 0..5 {
        borrowed.push(pool.connections.acquire().await.unwrap());
    }
    for mut borrowed in borrowed {
        query(READ).fetch_all(borrowed.connection()).await.unwrap();
        query(WRITE).fetch_all(borrowed.connection()).await.unwrap();
        borrowed.connection().execute(sql).await.unwrap();
        pool.connections.finish(borrowed, Ok(Ok(()))).await.unwrap();
    }
}

const READ: &str = "select name from things where id > 0";
const WRITE: &str = "insert into things (name) values ('x') returning name";

async fn read(pool: &Pool) -> Result<(), Error> {
    pool.retry_read("read", || query(READ).fetch_all(pool)).await.map(drop)
}

/// A change that must not be repeated.
async fn write(pool: &Pool) -> Result<(), Error> {
    pool.retry_if_not_executed("write", || query(WRITE).fetch_all(pool)).await.map(drop)
}

/// Expects that each of 10 concurrent reads and writes succeeds, and that the service is ready.
async fn expect_steps(pool: &Pool, after: &str) {
    for outcome in join_all((0..10).map(|_| async { write(pool).await.and(read(pool).await) })).await {
        outcome.expect(after);
    }
    pool.ping().await.expect(after);
}

/// Nothing of this fails a single step, not even a change that is not safe to repeat.
#[tokio::test]
async fn fails_no_step_when_an_operator_changes_or_ends_the_sessions() {
    let Some(database) = database().await else { return };
    let pool = busy_pool(&database).await;
    const TERMINATE: &str = "select pg_terminate_backend(pid, 10000) from pg_stat_activity \
                             where datname = current_database() and pid <> pg_backend_pid()";
    for sql in [
        "alter table things alter column name type varchar(50)",
        "alter table things alter column name type text",
        "alter table things add column more text",
        "create index things_name on things (name)",
        "drop index things_name",
        "drop table things; create table things (id bigserial primary key, name text)",
        "vacuum full things",
        TERMINATE,
    ] {
        run(&database, sql).await;
        expect_steps(&pool, sql).await;
    }
    for sql in [
        "deallocate all",
        "discard all",
        "set default_transaction_read_only = on",
        "begin",
        "set idle_session_timeout = '50ms'",
    ] {
        on_each_connection(&pool, sql).await;
        time::sleep(Duration::from_millis(100)).await; // the last one ends the sessions meanwhile
        expect_steps(&pool, sql).await;
    }
}

#[tokio::test]
async fn gives_up_every_connection_when_one_turns_out_to_be_read_only() {
    let Some(database) = database().await else { return };
    let pool = busy_pool(&database).await;
    on_each_connection(&pool, "set default_transaction_read_only = on").await;
    write(&pool).await.unwrap();
    let states = (0..5).map(|_| query_scalar("select current_setting('transaction_read_only')").fetch_one(&pool));
    let states: Vec<String> = join_all(states).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(states, ["off"; 5]);
}

#[tokio::test]
async fn is_not_ready_while_new_sessions_are_read_only() {
    let Some(database) = database().await else { return };
    let pool = busy_pool(&database).await;
    pool.ping().await.unwrap();
    let name = database.get_database().unwrap();
    run(&database, &format!("alter database {name} set default_transaction_read_only = on")).await;
    on_each_connection(&pool, "set default_transaction_read_only = on").await;
    let error = write(&pool).await.unwrap_err();
    assert_eq!(sql_state(&error).as_deref(), Some("25006"));
    assert!(matches!(Failure::from(&error), Failure::Unavailable(cause) if cause.contains(READ_ONLY)));
    read(&pool).await.unwrap();
    let error = pool.ping().await.unwrap_err().to_string();
    assert!(error.contains(READ_ONLY), "{error}");
    run(&database.clone().database("postgres"), &format!("alter database {name} reset all")).await;
    expect_steps(&pool, "the end of read-only").await;
}

#[tokio::test]
async fn is_not_ready_over_a_standby_until_it_is_promoted() {
    let Some(mut server) = Server::start(Durability::ProcessOnly) else { return };
    let database = server.create_database().await;
    let pool = busy_pool(&database).await;
    server.write("standby.signal", "");
    server.restart_with(&[]);
    let standby = async || pool.ping().await.is_err_and(|error| error.to_string().contains(READ_ONLY));
    eventually("the standby to be noticed", standby).await;
    read(&pool).await.unwrap();
    assert!(matches!(Failure::from(&write(&pool).await.unwrap_err()), Failure::Unavailable(_)));
    run(&database, "select pg_promote()").await;
    expect_steps(&pool, "the promotion").await;
}

/// Creates a role that may open this many connections.
async fn limited(database: &PgConnectOptions, connections: u32) -> PgConnectOptions {
    let (role, name) = (format!("limited_{connections}"), database.get_database().unwrap());
    run(database, &format!("create role {role} login connection limit {connections}")).await;
    run(database, &format!("alter database {name} owner to {role}")).await;
    database.clone().username(&role)
}

#[tokio::test]
async fn shares_the_connections_that_the_server_allows() {
    let Some(database) = database().await else { return };
    let database = limited(&database, 2).await;
    run(&database, "create table things (id bigserial primary key, name text)").await;
    let pool = pool(&database, 5, generous_timeouts()).await;
    open_connections(&pool, 2).await; // so that the ping gets none of its own
    expect_steps(&pool, "the limit").await;
    // A connection that is being opened counts too, until the server has rejected it.
    eventually("the end of the rejected attempts", async || pool.connections.count().0 == 2).await;
}

#[tokio::test]
async fn reports_in_time_that_the_server_has_is_too_many_connections() {
    let Some(database) = database().await else { return };
    let settings = DatabaseSettings { database_acquire: Duration::from_millis(300), ..generous_timeouts() };
    let limited = limited(&database, 1).await;
    let pool = pool(&limited, 5, settings).await;
    let mut other = eventually_connect(&limited).await;
    let error = query("select 1").execute(&pool).await.unwrap_err();
    assert!(error.to_string().contains("53300"), "{error}");
    assert!(matches!(Failure::from(&error), Failure::Unavailable(_)));
    pool.ping().await.expect_err("no connection is left");
    other.execute("select pg_terminate_backend(pg_backend_pid())").await.unwrap_err();
    eventually("a connection", async || pool.ping().await.is_ok() || query("select 1").execute(&pool).await.is_ok())
        .await;
}

/// The server counts a connection that was closed for a moment longer.
async fn eventually_connect(database: &PgConnectOptions) -> PgConnection {
    loop {
        if let Ok(connection) = database.connect().await {
            return connection;
        }
        time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn keeps_using_open_connections_when_the_role_may_open_no_more() {
    let Some(database) = database().await else { return };
    let role = limited(&database, 7).await;
    let pool = pool(&role, 5, generous_timeouts()).await;
    open_connections(&pool, 1).await;
    pool.ping().await.unwrap();
    run(&database, "alter role limited_7 nologin").await;
    for outcome in join_all((0..5).map(|_| query("select pg_sleep(0.01)").execute(&pool))).await {
        outcome.unwrap();
    }
    run(&database, "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'limited_7'").await;
    let error = pool.retry_read("read", || query("select 1").execute(&pool)).await.unwrap_err().to_string();
    assert!(error.contains("28000: the server rejects the role"), "{error}");
    run(&database, "alter role limited_7 login").await;
    eventually("a connection", async || query("select 1").execute(&pool).await.is_ok()).await;
}

#[tokio::test]
async fn keeps_using_open_connections_while_new_ones_get_no_answer() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    let pool = pool(&database, 5, generous_timeouts()).await;
    open_connections(&pool, 1).await;
    wire.ignore_new();
    let steps = join_all((0..5).map(|_| query("select pg_sleep(0.01)").execute(&pool)));
    let outcomes = time::timeout(Duration::from_secs(30), steps).await.expect("the open connection is used");
    assert!(outcomes.iter().all(Result::is_ok));
}

#[tokio::test]
async fn keeps_the_connection_of_a_statement_that_fails() {
    let Some(database) = database().await else { return };
    let pool = pool(&database, 1, generous_timeouts()).await;
    let process = async || query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&pool).await.unwrap();
    let before = process().await;
    for sql in ["select 1/0", "set statement_timeout = 20; select pg_sleep(1)", "select * from missing"] {
        pool.execute(sql).await.unwrap_err();
        assert_eq!(process().await, before, "{sql}");
    }
}

#[tokio::test]
async fn knows_whether_a_failed_change_may_have_been_made() {
    let Some(database) = database().await else { return };
    let (database, wire) = behind_a_faulty_connection(&database).await;
    run(&database, "create table things (id bigserial primary key, name text)").await;
    let pool =
        pool(&database, 1, DatabaseSettings { database_acquire: Duration::from_millis(300), ..generous_timeouts() })
            .await;
    write(&pool).await.unwrap();
    wire.lose_an_answer();
    let lost = write(&pool).await.unwrap_err();
    assert!(matches!(Failure::from(&lost), Failure::OutcomeUnknown(_)), "{lost}");
    let rejected =
        pool.retry_if_not_executed("write", || query("insert into missing default values").execute(&pool)).await;
    assert!(matches!(Failure::from(&rejected.unwrap_err()), Failure::Unavailable(_)));
    let unreadable = pool.retry_if_not_executed("write", || query_scalar::<_, i32>(WRITE).fetch_one(&pool)).await;
    assert!(matches!(Failure::from(&unreadable.unwrap_err()), Failure::OutcomeUnknown(_)));
    let unreadable = pool.retry_read("read", || query_scalar::<_, i32>(READ).fetch_all(&pool)).await;
    assert!(matches!(Failure::from(&unreadable.unwrap_err()), Failure::Unavailable(_)));
    let _busy = pool.connections.acquire().await.unwrap();
    let not_sent = write(&pool).await.unwrap_err();
    assert!(matches!(Failure::from(&not_sent), Failure::Unavailable(_)), "{not_sent}");
}
