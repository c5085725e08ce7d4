//! A PostgreSQL database of a service's own: connections on which nothing waits without end, and migrations at the start.

mod retry;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, TryStreamExt};
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
};
use sqlx::{ConnectOptions, Connection, Either, Error, Execute, Executor, Postgres, SqlSafeStr, SqlStr};
use tokio::time::{self, Instant};
use tracing::Instrument;

pub use self::retry::is_row_error;
use self::retry::{invalidates_connections, is_answer, is_transient, not_executed, retry_if};
use crate::config::DatabaseSettings;
use crate::telemetry::metrics::{self, Counter, Durations, Family, Gauge, Labels};
use crate::telemetry::traces;

/// How long a service waits for its database at the start, before it gives up: for those who start both at once.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long one try to connect may take.
const START_TRY: Duration = Duration::from_secs(5);
/// How long the migrations may take, and to wait for another replica that is at them.
const MIGRATION: Duration = Duration::from_secs(600);
/// Between two looks meanwhile.
const START_PAUSE: Duration = Duration::from_millis(250);
/// How long a transaction may stand open. No step here opens one; this ends those of whoever else is there.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);
/// A connection that nobody used for so long is asked whether it is still one: the database may have been restarted.
const UNUSED: Duration = Duration::from_secs(1);
/// When the database has been silent for so much longer than the limit that it keeps itself, it is not there to keep it.
const SILENT: Duration = Duration::from_millis(250);
/// How much of the limit for a statement it may wait for one row, so that it has time to wait for a second one.
const OF_THE_LIMIT: f64 = 0.4;
/// How long to wait for a row that somebody has held for long: while a step of ours may have it, and not longer.
const SHORTLY: Duration = Duration::from_millis(10);

static CALLS: LazyLock<Family<Labels<2>, Counter>> =
    LazyLock::new(|| metrics::register("store_calls", "Steps in the database", Family::default()));
static DURATIONS: LazyLock<Durations<Labels<1>>> = LazyLock::new(|| {
    metrics::register("store_call_duration_seconds", "Time for a step in the database", metrics::durations())
});

/// Connects to the database at `url`, and brings it to the latest of `migrations`: the SQL of each, in order, with what
/// it is for. Of several replicas that start together one migrates and the others wait (an advisory lock).
///
/// # Errors
/// If the database does not answer for half a minute, or a migration fails.
pub async fn open(
    service: &str,
    url: &PgConnectOptions,
    settings: &DatabaseSettings,
    migrations: &[(&'static str, &'static str)],
) -> Result<Pool, String> {
    let options = url.clone().application_name(service).disable_statement_logging(); // a failure has a line at its cause
    migrate(&options.clone().options([("client_min_messages", "warning")]), migrations).await?;
    let limit = |time: Duration| time.as_millis().max(1).to_string(); // 0 would be none
    let options = options.options([
        ("statement_timeout", limit(settings.database_statement)),
        ("lock_timeout", limit(settings.database_statement.mul_f64(OF_THE_LIMIT))), // which says why
        ("idle_in_transaction_session_timeout", limit(IDLE_IN_TRANSACTION)),
    ]);
    let short_lock_timeout = options.clone().options([("lock_timeout", limit(SHORTLY))]);
    let suspect_since = Arc::new(Mutex::new(Instant::now()));
    let last_doubt = Arc::clone(&suspect_since);
    let connections = PgPoolOptions::new()
        .max_connections(settings.database_connections)
        .acquire_timeout(settings.database_acquire)
        .test_before_acquire(false) // a round trip for each use; instead:
        .before_acquire(move |connection, used| {
            let last_doubt = Arc::clone(&last_doubt);
            Box::pin(async move {
                let doubt = || last_doubt.lock().unwrap_or_else(PoisonError::into_inner);
                if used.idle_for >= doubt().elapsed() {
                    return Ok(false);
                }
                let answers = used.idle_for < UNUSED
                    || time::timeout(SILENT, connection.ping()).await.is_ok_and(|pong| pong.is_ok());
                if !answers {
                    *doubt() = Instant::now();
                }
                Ok(answers)
            })
        });
    let statement = settings.database_statement + SILENT;
    let short_lock_timeout = connections.clone().max_connections(1).connect_lazy_with(short_lock_timeout);
    let connections = connections.connect_lazy_with(options);
    metrics::register_collector(Use(connections.clone()));
    let step = settings.database_acquire + statement;
    Ok(Pool { connections, short_lock_timeout, health_connection: Arc::default(), statement, step, suspect_since })
}

/// On a connection without the limits that [`open`] sets: it may have to wait for another replica to be done.
async fn migrate(options: &PgConnectOptions, migrations: &[(&'static str, &'static str)]) -> Result<(), String> {
    let mut connection = connect(options).await?;
    let numbered = migrations.iter().zip(1..).map(|((about, sql), version)| {
        Migration::new(version, (*about).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(numbered.collect());
    migrator.set_ignore_missing(true); // a newer release may have migrated already: migrations only add
    let migrated = time::timeout(MIGRATION, migrator.run_direct(None, &mut connection, false)).await;
    let migrated = migrated.map_err(|_| "cannot migrate the database: another is at it, or it is silent".to_owned())?;
    migrated.map_err(|error| format!("cannot migrate the database: {error}"))?;
    let _ = connection.close().await; // it has done its work
    Ok(())
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, String> {
    let began = Instant::now();
    loop {
        let connected = time::timeout(START_TRY, options.connect()).await;
        match connected.unwrap_or_else(|_| Err(silent())) {
            Ok(connection) => return Ok(connection),
            Err(error)
                if began.elapsed() < START_PATIENCE && (is_transient(&error) || matches!(error, Error::Io(_))) =>
            {
                tracing::warn!(%error, "the database does not answer yet");
                time::sleep(START_PAUSE).await;
            }
            Err(error) => return Err(format!("cannot connect to DATABASE_URL: {error}")),
        }
    }
}

/// Connections to a database. For a statement it stands where a pool of sqlx would, which knows no limit for a database that
/// is silent: not for an answer, and not for the ping with which a connection comes back, so that it would lose its places.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// The one of [`Pool::short_lock_timeout`], if it was ever needed.
    short_lock_timeout: PgPool,
    /// The connection of [`Pool::ping`], if it has one.
    health_connection: Arc<tokio::sync::Mutex<Option<PgConnection>>>,
    /// The longest that a statement takes, and a connection to come back.
    statement: Duration,
    /// The longest that a step takes, all its tries.
    step: Duration,
    /// When the database was last found gone or silent: no connection that was idle then is used again.
    suspect_since: Arc<Mutex<Instant>>,
}

impl Pool {
    /// Runs a step that is safe to repeat, up to four times as long as it fails in a way that may pass. What became of a try
    /// whose connection broke is unknown, so the step must be content to find its work done. Metrics and traces call it `name`.
    ///
    /// # Errors
    /// As the last try; or when the limits for a connection and for a statement, one after the other, are over.
    pub async fn retry_idempotent<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        Ok(self.retry_reporting_ambiguity(name, step).await?.0)
    }

    /// The same, and whether an earlier try may have done the work.
    ///
    /// # Errors
    /// As [`Pool::repeat`].
    pub async fn retry_reporting_ambiguity<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<(T, bool), Error> {
        self.watch(name, retry_if(is_transient, step)).await
    }

    /// The same for a step that is not safe to repeat: it is tried again only after a try that certainly did nothing.
    ///
    /// # Errors
    /// As [`Pool::repeat`].
    pub async fn retry_if_not_executed<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        Ok(self.watch(name, retry_if(not_executed, step)).await?.0)
    }

    /// A step within its limit, counted and traced.
    async fn watch<T>(&self, name: &'static str, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (began, span) = (Instant::now(), traces::statement_span(name));
        let done = time::timeout(self.step, step).instrument(span.clone()).await.unwrap_or_else(|_| Err(silent()));
        // That a name is taken is an answer; that there is none is a failure.
        let failed = done.as_ref().is_err_and(|error| !is_answer(error));
        if failed {
            traces::record_error(&span, "database");
        }
        CALLS.get_or_create(&[("step", name), ("outcome", if failed { "failed" } else { "ok" })]).inc();
        DURATIONS.get_or_create(&[("step", name)]).observe(began.elapsed().as_secs_f64());
        done
    }

    /// The same database by one connection apart, on which nobody waits for a row that somebody has held for long. For steps
    /// that failed together and are tried one after the other, to see which of them need it: the others have better to do than
    /// to wait for that.
    pub fn short_lock_timeout(&self) -> Self {
        Self { connections: self.short_lock_timeout.clone(), ..self.clone() }
    }

    /// Whether the database answers. It is asked on a connection apart: that all others are busy is no sign of an outage.
    ///
    /// # Errors
    /// If it does not answer in the time of a step.
    pub async fn ping(&self) -> Result<(), Error> {
        let ask = || async {
            let mut health_connection = self.health_connection.lock().await;
            let mut connection = match health_connection.take() {
                Some(connection) => connection,
                None => self.connections.connect_options().connect().await?,
            };
            connection.ping().await?;
            *health_connection = Some(connection);
            Ok(())
        };
        self.retry_idempotent("ping", ask).await
    }

    /// Closes all connections, once nobody uses them.
    pub async fn close(&self) {
        self.connections.close().await;
        self.short_lock_timeout.close().await;
    }

    async fn acquire(&self) -> Result<Borrowed, Error> {
        let acquired = self.learn(self.connections.acquire().await);
        Ok(Borrowed { connection: acquired?, limit: self.statement })
    }

    async fn with_timeout<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.learn(time::timeout(self.statement, answer).await.unwrap_or_else(|_| Err(silent())))
    }

    fn learn<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if outcome.as_ref().is_err_and(invalidates_connections) {
            *self.suspect_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        outcome
    }
}

/// How much of a pool is in use, for the metrics.
#[derive(Debug)]
struct Use(PgPool);

impl Collector for Use {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (open, idle) = (i64::from(self.0.size()), self.0.num_idle() as i64);
        let by_state = Family::<Labels<1>, Gauge>::default();
        for (state, connections) in [("idle", idle), ("used", open - idle)] {
            by_state.get_or_create(&[("state", state)]).set(connections.max(0));
        }
        let help = "Connections to the database";
        by_state.encode(encoder.encode_descriptor("store_connections", help, None, by_state.metric_type())?)?;
        let most = ConstGauge::new(i64::from(self.0.options().get_max_connections()));
        let help = "Connections to the database that there may be";
        most.encode(encoder.encode_descriptor("store_connections_max", help, None, most.metric_type())?)
    }
}

fn silent() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database is silent"))
}

/// A connection in use. It goes back when it is dropped, also in the midst of a statement; if the database does not say within
/// the limit that it is done with that, the connection is closed and another may take its place.
struct Borrowed {
    connection: PoolConnection<Postgres>,
    limit: Duration,
}

impl Borrowed {
    /// What became of a statement, told when a failed one has let go of its rows: PostgreSQL says first that it fails. Who tries
    /// again at once, on another connection, would meet with his own.
    async fn wait_for_rollback<T>(&mut self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Database(_)) = outcome {
            let _ = time::timeout(self.limit, self.connection.ping()).await; // it answers when it is done
        }
        outcome
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        tokio::spawn(time::timeout(self.limit, self.connection.return_to_pool()));
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E: 'q + Execute<'q, Postgres>>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
    {
        let fetched = async move {
            let mut borrowed = self.acquire().await?;
            let fetched = self.with_timeout(borrowed.connection.fetch_many(query).try_collect()).await;
            let fetched: Vec<_> = borrowed.wait_for_rollback(fetched).await?;
            Ok(stream::iter(fetched.into_iter().map(Ok)))
        };
        fetched.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E: 'q + Execute<'q, Postgres>>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
    {
        let fetched = async move {
            let mut borrowed = self.acquire().await?;
            let fetched = self.with_timeout(borrowed.connection.fetch_optional(query)).await;
            borrowed.wait_for_rollback(fetched).await
        };
        fetched.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        let prepared = async move {
            let mut borrowed = self.acquire().await?;
            let prepared = self.with_timeout(borrowed.connection.prepare_with(sql, parameters)).await;
            borrowed.wait_for_rollback(prepared).await
        };
        prepared.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::eventually;

    /// As `testing::postgres::generous_timeouts`, which returns the type of the chassis that `testing` links.
    fn generous_timeouts() -> DatabaseSettings {
        const MINUTE: Duration = Duration::from_secs(60);
        DatabaseSettings { database_acquire: MINUTE, database_statement: MINUTE, ..crate::config::defaults() }
    }

    #[tokio::test]
    async fn a_statement_has_time_to_wait_for_two_rows_and_a_hurried_one_waits_for_less() {
        let Some(database) = testing::postgres::database().await else { return };
        let pool = pool(&database, 1, generous_timeouts()).await;
        let waits = async |pool: &Pool| -> (bool, bool) {
            let limit = |name| format!("extract(epoch from current_setting('{name}')::interval)");
            let (lock, statement) = (limit("lock_timeout"), limit("statement_timeout"));
            let sql = format!("select 2 * {lock} < {statement}, {lock} < 0.05");
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap()
        };
        assert_eq!(waits(&pool).await, (true, false));
        assert_eq!(waits(&pool.short_lock_timeout()).await, (true, true));
    }

    const THINGS: (&str, &str) = ("a table", "create table things (id bigint primary key); select pg_sleep(0.2)");

    #[tokio::test]
    async fn replicas_that_start_together_migrate_once() {
        let Some(database) = testing::postgres::database().await else { return };
        let settings = generous_timeouts();
        let open = || open("tiny", &database, &settings, &[THINGS]);
        let (one, two, three) = tokio::join!(open(), open(), open());
        for pool in [one.unwrap(), two.unwrap(), three.unwrap()] {
            sqlx::query("select id from things").execute(&pool).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_release_that_is_rolled_back_finds_the_database_ahead_and_starts() {
        let Some(database) = testing::postgres::database().await else { return };
        let settings = generous_timeouts();
        let newer = [THINGS, ("a column", "alter table things add name text")];
        for migrations in [&newer[..], &newer[..1]] {
            open("tiny", &database, &settings, migrations).await.unwrap();
        }
        let changed = [("another table", "create table others (id bigint primary key)")];
        assert!(open("tiny", &database, &settings, &changed).await.is_err(), "what was released is never changed");
    }

    /// So many connections to `database`, and as much time as these settings give.
    async fn pool(database: &PgConnectOptions, connections: u32, settings: DatabaseSettings) -> Pool {
        let settings = DatabaseSettings { database_connections: connections, ..settings };
        open("tiny", database, &settings, &[]).await.unwrap()
    }

    fn hasty() -> DatabaseSettings {
        DatabaseSettings { database_acquire: SILENT, database_statement: SILENT, ..generous_timeouts() }
    }

    /// Steps that keep so many connections busy at once; whether all of them succeed.
    async fn crowd(pool: &Pool, crowd: usize) -> bool {
        let sleep = || pool.retry_idempotent("test", || sqlx::query("select pg_sleep(0.05)").execute(pool));
        futures_util::future::join_all((0..crowd).map(|_| sleep())).await.iter().all(Result::is_ok)
    }

    #[tokio::test]
    async fn a_silent_database_ends_a_step_and_keeps_no_connection() {
        let Some(database) = testing::postgres::database().await else { return };
        let (database, wire) = testing::postgres::behind_a_faulty_connection(&database).await;
        let pool = pool(&database, 2, hasty()).await;
        eventually("two connections", async || crowd(&pool, 2).await).await;
        wire.set_silent(true);
        let silent = time::timeout(Duration::from_secs(30), async { (crowd(&pool, 4).await, pool.ping().await) });
        let (answered, pinged) = silent.await.expect("the end of each step");
        assert!(!answered && pinged.is_err());
        wire.set_silent(false);
        eventually("as many connections as before", async || crowd(&pool, 2).await && pool.ping().await.is_ok()).await;
    }

    #[tokio::test]
    async fn one_dead_connection_is_enough_to_know_of_the_others() {
        let Some(database) = testing::postgres::database().await else { return };
        let pool = pool(&database, 10, generous_timeouts()).await;
        eventually("ten idle connections", async || {
            crowd(&pool, 10).await;
            eventually("all to be back", async || pool.connections.num_idle() == pool.connections.size() as usize)
                .await;
            pool.connections.size() == 10
        })
        .await;
        let mut admin = database.connect().await.unwrap();
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where application_name = 'tiny' and datname = current_database()";
        sqlx::query(end).execute(&mut admin).await.unwrap();
        while !sqlx::query(end).fetch_all(&mut admin).await.unwrap().is_empty() {}
        let _ = sqlx::query("select 1").execute(&pool).await; // fails, unless a second has gone by
        sqlx::query("select 1").execute(&pool).await.expect("a new one");
    }

    /// Who tries the same at once, elsewhere, need not wait for what he had himself. So much is undone here that it takes time.
    #[tokio::test]
    async fn a_statement_has_let_go_of_its_rows_when_its_failure_is_told() {
        let Some(database) = testing::postgres::database().await else { return };
        let pool = open("tiny", &database, &generous_timeouts(), &[THINGS]).await.unwrap();
        sqlx::query("insert into things values (0)").execute(&pool).await.unwrap();
        let fail = "do $$ begin
            update things set id = 0;
            for n in 1..10000 loop
                begin insert into things values (n); exception when unique_violation then null; end;
            end loop;
            raise 'it fails';
        end $$";
        for _ in 0..10 {
            sqlx::query(fail).execute(&pool).await.expect_err("it fails");
            sqlx::query("select id from things for update nowait").execute(&pool).await.expect("nobody has it");
        }
    }

    #[tokio::test]
    async fn the_database_is_there_though_all_connections_are_busy() {
        let Some(database) = testing::postgres::database().await else { return };
        let pool = pool(&database, 1, generous_timeouts()).await;
        let _busy = pool.acquire().await.unwrap();
        assert!(pool.acquire().now_or_never().is_none(), "all connections are busy");
        pool.ping().await.unwrap();
    }
}
