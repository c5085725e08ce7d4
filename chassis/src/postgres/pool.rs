//! The pool that the stores use: an executor of statements with a timeout on every wait, and retries of steps.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, TryStreamExt};
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{ConnectOptions, Either, Error, Execute, Executor, Postgres, Row, SqlStr};
use tokio::sync::Mutex;
use tokio::time::{self, Instant};
use tracing::Instrument;

use super::connections::{ANSWER_TIMEOUT, Connections};
use super::metrics;
use super::opening::{OPEN_TIMEOUT, Opening};
use super::retry::{
    ambiguous, is_constraint_violation, is_too_many_connections, is_transient, not_connected, not_executed, not_open,
    retry_if, timed_out,
};
use super::session::Sessions;
use crate::config::DatabaseSettings;
use crate::telemetry::traces;

/// How long a transaction may stay open between two statements. A safeguard: the stores open no transaction.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);
/// `lock_timeout` as a share of `statement_timeout`. Below one half, so that a statement has time to wait for two row locks.
const LOCK_TIMEOUT_SHARE: f64 = 0.4;
/// The `lock_timeout` of [`Pool::short_lock_timeout`]. Another step can end within it; a lock that is stuck is given up.
const SHORT_LOCK_TIMEOUT: Duration = Duration::from_millis(10);

/// Settings that forbid scans of a whole table or index. PostgreSQL may keep a plan that it made while the table was small, and
/// such a plan is slow when the table has grown. Each statement has an index, so it needs no such scan.
///
/// The stores also rely on them to lock rows by ascending id: with a hash join, statements over the same few rows deadlock.
const AVOIDED_PLANS: [&str; 3] = ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"];

/// Why a service is not ready if its database accepts no changes.
pub const READ_ONLY: &str = "the database is read-only";

/// A pool of connections to the database of the service. It is an [`Executor`], so statements run on it as on sqlx's pool.
///
/// A step is the work of one store call, usually one statement. It is the unit of retries, metrics and traces.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) connections: Arc<Connections>,
    /// The one connection of [`Pool::short_lock_timeout`].
    short_lock_timeout: Arc<Connections>,
    /// The connection of [`Pool::ping`], once it was used, and when it was opened.
    health_connection: Arc<Mutex<Option<(PgConnection, Instant)>>>,
    /// Maximum time of a statement.
    statement_timeout: Duration,
    /// Maximum time of a step, retries included.
    step_timeout: Duration,
    /// Steps fail until the database is open.
    pub(super) opening: Arc<Opening>,
}

impl Pool {
    /// Returns a pool for the database at `url`. Its steps fail until [`crate::run`] or [`Pool::open`] has opened the database.
    pub fn new(service: &str, url: &PgConnectOptions, settings: &DatabaseSettings, migrations: &Migrator) -> Self {
        // The caller of a failed statement logs it.
        let options = url.clone().disable_statement_logging();
        let options =
            if options.get_application_name().is_some() { options } else { options.application_name(service) };
        let sessions = Sessions::new(options);
        let opening = Arc::new(Opening::new(sessions.clone(), migrations));
        let millis = |time: Duration| time.as_millis().max(1).to_string(); // 0 would mean no limit
        let sessions = sessions.with([
            ("statement_timeout", millis(settings.database_statement)),
            ("lock_timeout", millis(settings.database_statement.mul_f64(LOCK_TIMEOUT_SHARE))),
            ("idle_in_transaction_session_timeout", millis(IDLE_IN_TRANSACTION_TIMEOUT)),
        ]);
        let sessions = sessions.with(AVOIDED_PLANS.map(|plan| (plan, "off".to_owned())));
        let short_lock_timeout = sessions.with([("lock_timeout", millis(SHORT_LOCK_TIMEOUT))]);
        let acquire_timeout = settings.database_acquire;
        let statement_timeout = settings.database_statement + ANSWER_TIMEOUT;
        let connections = |sessions, max| Connections::new(sessions, max, acquire_timeout, statement_timeout);
        let pool = Self {
            connections: connections(sessions, settings.database_connections),
            short_lock_timeout: connections(short_lock_timeout, 1),
            health_connection: Arc::default(),
            statement_timeout,
            step_timeout: acquire_timeout + statement_timeout,
            opening,
        };
        metrics::register_pool(Arc::clone(&pool.connections));
        pool
    }

    /// Opens the database: runs the migrations that it lacks.
    ///
    /// # Errors
    /// If the database does not answer for 30 s, refuses access or belongs to another service, or if a migration fails.
    pub async fn open(&self) -> Result<(), String> {
        self.opening.open(Some(OPEN_TIMEOUT), &|_| {}).await
    }

    /// Runs a step that only reads. Transient failures are retried, up to 4 attempts in all. Metrics and traces use `name`.
    ///
    /// # Errors
    /// The error of the last attempt; a timeout when all attempts together exceed the limits for a connection and a statement.
    pub async fn retry_read<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        self.run_step(name, retry_if(is_transient, step)).await.0
    }

    /// Runs a change that is safe to repeat, like [`Pool::retry_read`]. An attempt whose connection broke may have been
    /// executed, so the step must accept that its work is already done.
    ///
    /// # Errors
    /// See [`Pool::retry_read`]. If the change may have been made, [`super::Failure`] says so.
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
        match self.run_step(name, retry_if(is_transient, step)).await {
            (Err(error), true) => Err(ambiguous(error)),
            (outcome, is_ambiguous) => Ok((outcome?, is_ambiguous)),
        }
    }

    /// Runs a change that is not safe to repeat. It is retried only after an attempt that was certainly not executed.
    ///
    /// # Errors
    /// See [`Pool::retry_idempotent`].
    pub async fn retry_if_not_executed<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &'static str,
        step: impl Fn() -> F,
    ) -> Result<T, Error> {
        match self.run_step(name, retry_if(not_executed, step)).await {
            (Err(error), true) => Err(ambiguous(error)),
            (outcome, _) => outcome,
        }
    }

    /// Limits, counts and traces a step. Also returns whether a failed attempt may have been executed.
    async fn run_step<T>(
        &self,
        name: &'static str,
        step: impl Future<Output = (Result<T, Error>, bool)>,
    ) -> (Result<T, Error>, bool) {
        if !self.opening.is_open() {
            return (Err(not_open()), false);
        }
        let (started, span) = (Instant::now(), traces::statement_span(name));
        let step = time::timeout(self.step_timeout, step).instrument(span.clone());
        let (outcome, is_ambiguous) = step.await.unwrap_or_else(|_| (Err(timed_out()), true));
        // A violated constraint is no failure: the name is taken, and the database works.
        let failed = outcome.as_ref().is_err_and(|error| !is_constraint_violation(error));
        if failed {
            traces::record_error(&span, "database");
        }
        metrics::record_call(name, failed, started.elapsed());
        (outcome, is_ambiguous)
    }

    /// Returns a pool of one connection to the same database that waits for a row lock for at most 10 ms.
    ///
    /// It is for steps that failed as one statement and are then run one by one. Only the steps whose row is locked fail; the
    /// others must not wait for that lock.
    pub fn short_lock_timeout(&self) -> Self {
        Self { connections: Arc::clone(&self.short_lock_timeout), ..self.clone() }
    }

    /// Checks that the database answers and accepts changes. It uses a connection of its own, because a busy pool is not an
    /// outage. If the server has no connection left, it waits for one of the pool.
    ///
    /// # Errors
    /// If the database does not answer within the limit of a step, or is [read-only](READ_ONLY).
    pub async fn ping(&self) -> Result<(), Error> {
        let ping = async {
            let mut health_connection = self.health_connection.lock().await;
            let kept = health_connection.take().filter(|(_, opened)| !self.connections.is_given_up(*opened));
            if let Some((mut connection, opened)) = kept {
                if check(&mut connection).await.is_ok() {
                    *health_connection = Some((connection, opened));
                    return Ok(());
                }
                self.connections.give_up_all(opened);
            }
            match self.connections.sessions.connect().await {
                Err(error) if is_too_many_connections(&error) => check(self).await,
                Err(error) => Err(not_connected(error)),
                Ok(mut connection) => {
                    check(&mut connection).await?;
                    *health_connection = Some((connection, Instant::now()));
                    Ok(())
                }
            }
        };
        self.run_step("ping", ping.map(|outcome| (outcome, false))).await.0
    }
}

/// Checks that the database accepts changes. A standby does not, and neither does a server that is being replaced.
async fn check<'c>(executor: impl Executor<'c, Database = Postgres>) -> Result<(), Error> {
    let row = executor.fetch_one("show transaction_read_only").await?;
    match row.try_get_unchecked::<&str, _>(0)? {
        "off" => Ok(()),
        _ => Err(Error::Io(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, READ_ONLY))),
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
            let fetched = async {
                let mut running = self.connections.sessions.begin(borrowed.connection()).await?;
                let query = running.adapt(query);
                let fetched = running.fetch_many(query).try_collect().await?;
                running.commit().await?;
                Ok(fetched)
            };
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
            let fetched = async {
                let mut running = self.connections.sessions.begin(borrowed.connection()).await?;
                let query = running.adapt(query);
                let fetched = running.fetch_optional(query).await?;
                running.commit().await?;
                Ok(fetched)
            };
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
