//! The pool that the stores use: an executor of statements with a timeout on every wait, and retries of steps.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, TryStreamExt};
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{ConnectOptions, Connection, Either, Error, Execute, Executor, Postgres, SqlStr};
use tokio::sync::Mutex;
use tokio::time::{self, Instant};
use tracing::Instrument;

use super::connections::{ANSWER_TIMEOUT, Connections};
use super::metrics;
use super::opening::Opening;
use super::retry::{is_constraint_violation, is_transient, not_executed, not_open, retry_if, timed_out};
use crate::config::DatabaseSettings;
use crate::telemetry::traces;

/// How long a transaction may stay open between two statements. A safeguard: the stores open no transaction.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);
/// `lock_timeout` as a share of `statement_timeout`. Below one half, so that a statement has time to wait for two row locks.
const LOCK_TIMEOUT_SHARE: f64 = 0.4;
/// The `lock_timeout` of [`Pool::short_lock_timeout`]: enough for another step to end, too short for a lock that is stuck.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(10);

/// A pool of connections to the database of the service. It is an [`Executor`], so statements run on it as on sqlx's pool.
///
/// A step is the work of one store call, usually one statement. It is the unit of retries, metrics and traces.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) connections: Arc<Connections>,
    /// The one connection of [`Pool::short_lock_timeout`].
    short_lock_timeout: Arc<Connections>,
    /// The connection of [`Pool::ping`], once it was used.
    health_connection: Arc<Mutex<Option<PgConnection>>>,
    /// The longest that a statement takes.
    statement_timeout: Duration,
    /// The longest that a step takes, retries included.
    step_timeout: Duration,
    /// Steps fail until the database is open.
    pub(super) opening: Arc<Opening>,
}

impl Pool {
    /// Returns a pool for the database at `url`. Its steps fail until [`crate::run`] or [`Pool::open`] has opened the database.
    pub fn new(service: &str, url: &PgConnectOptions, settings: &DatabaseSettings, migrations: &Migrator) -> Self {
        // The caller of a failed statement logs it.
        let options = url.clone().application_name(service).disable_statement_logging();
        let opening = Arc::new(Opening::new(options.clone(), migrations));
        let millis = |time: Duration| time.as_millis().max(1).to_string(); // 0 would mean no limit
        let options = options.options([
            ("statement_timeout", millis(settings.database_statement)),
            ("lock_timeout", millis(settings.database_statement.mul_f64(LOCK_TIMEOUT_SHARE))),
            ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION_TIMEOUT)),
        ]);
        let short_lock_timeout = options.clone().options([("lock_timeout", millis(SHORT_LOCK_TIMEOUT))]);
        let acquire_timeout = settings.database_acquire;
        let statement_timeout = settings.database_statement + ANSWER_TIMEOUT;
        let connections = |options, max| Arc::new(Connections::new(options, max, acquire_timeout, statement_timeout));
        let pool = Self {
            connections: connections(options, settings.database_connections),
            short_lock_timeout: connections(short_lock_timeout, 1),
            health_connection: Arc::default(),
            statement_timeout,
            step_timeout: acquire_timeout + statement_timeout,
            opening,
        };
        metrics::register_pool(Arc::clone(&pool.connections));
        pool
    }

    /// Opens the database with one attempt: runs the migrations that it lacks.
    ///
    /// # Errors
    /// If the database does not answer, refuses access or belongs to another service, or if a migration fails.
    pub async fn open(&self) -> Result<(), String> {
        self.opening.attempt_once().await
    }

    /// Runs a step that is safe to repeat. Transient failures are retried, up to 4 attempts in all.
    ///
    /// An attempt whose connection broke may have been executed, so the step must accept that its work is already done.
    /// Metrics and traces use `name`.
    ///
    /// # Errors
    /// The error of the last attempt; a timeout when all attempts together exceed the limits for a connection and a statement.
    pub async fn retry_idempotent<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        Ok(self.retry_reporting_ambiguity(name, step).await?.0)
    }

    /// Like [`Pool::retry_idempotent`], and returns whether an earlier attempt may have been executed.
    ///
    /// # Errors
    /// See [`Pool::retry_idempotent`].
    pub async fn retry_reporting_ambiguity<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<(T, bool), Error> {
        self.run_step(name, retry_if(is_transient, step)).await
    }

    /// Runs a step that is not safe to repeat. It is retried only after an attempt that was certainly not executed.
    ///
    /// # Errors
    /// See [`Pool::retry_idempotent`].
    pub async fn retry_if_not_executed<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        Ok(self.run_step(name, retry_if(not_executed, step)).await?.0)
    }

    /// Limits, counts and traces a step.
    async fn run_step<T>(&self, name: &'static str, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        if !self.opening.is_open() {
            return Err(not_open());
        }
        let (started, span) = (Instant::now(), traces::statement_span(name));
        let step = time::timeout(self.step_timeout, step).instrument(span.clone());
        let outcome = step.await.unwrap_or_else(|_| Err(timed_out()));
        // A violated constraint is a result: the name is taken. The database works.
        let failed = outcome.as_ref().is_err_and(|error| !is_constraint_violation(error));
        if failed {
            traces::record_error(&span, "database");
        }
        metrics::record_call(name, failed, started.elapsed());
        outcome
    }

    /// Returns a pool of one connection to the same database that waits for a row lock for at most 10 ms.
    ///
    /// It is for steps that failed as one statement and are then run one by one, to find the row whose lock is stuck. The
    /// other steps must not wait for that lock.
    pub fn short_lock_timeout(&self) -> Self {
        Self { connections: Arc::clone(&self.short_lock_timeout), ..self.clone() }
    }

    /// Checks that the database answers. It uses a connection of its own, because a busy pool is not an outage.
    ///
    /// # Errors
    /// If the database does not answer within the limit of a step.
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = || async {
            let mut health_connection = self.health_connection.lock().await;
            let mut connection = match health_connection.take() {
                Some(connection) => connection,
                None => self.connections.connect_options.connect().await?,
            };
            connection.ping().await?;
            *health_connection = Some(connection);
            Ok(())
        };
        self.retry_idempotent("ping", ping).await
    }

    /// Closes all connections, after the running statements have ended.
    pub async fn close(&self) {
        self.connections.close().await;
        self.short_lock_timeout.close().await;
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
            let mut borrowed = self.connections.acquire().await?;
            let fetched = borrowed.connection().fetch_many(query).try_collect();
            let fetched = time::timeout(self.statement_timeout, fetched).await;
            let fetched: Vec<_> = self.connections.finish(borrowed, fetched).await?;
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
            let mut borrowed = self.connections.acquire().await?;
            let fetched = borrowed.connection().fetch_optional(query);
            let fetched = time::timeout(self.statement_timeout, fetched).await;
            self.connections.finish(borrowed, fetched).await
        };
        fetched.boxed()
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        let prepared = async move {
            let mut borrowed = self.connections.acquire().await?;
            let prepared = borrowed.connection().prepare_with(sql, parameters);
            let prepared = time::timeout(self.statement_timeout, prepared).await;
            self.connections.finish(borrowed, prepared).await
        };
        prepared.boxed()
    }
}
