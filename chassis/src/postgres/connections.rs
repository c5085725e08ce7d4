//! Lends connections of sqlx's pool, so that a silent database keeps no permit.
//!
//! When a connection is returned, sqlx's pool pings it and waits for the answer without limit. If the database is silent at
//! that moment, the connection never leaves the pool. Therefore the permits are counted here, and a pool with stuck
//! connections is replaced.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;
use tokio::time::error::Elapsed;

use super::retry::{invalidates_connections, timed_out};

/// How long the answer to a ping may take, and how much longer than `statement_timeout` the answer to a statement. The
/// database keeps that limit itself: when its answer is later than this, it is silent.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
/// A connection that was idle for so long is pinged before use, because the database may have been restarted meanwhile.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);

/// Lends connections, at most `max_connections` at a time.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) connect_options: PgConnectOptions,
    pool_options: PgPoolOptions,
    pool: Mutex<PgPool>,
    /// One per lent connection. sqlx's pool has as many, but those of stuck connections do not come back.
    permits: Arc<Semaphore>,
    /// Set when an idle connection did not answer the ping before its use.
    ping_failed: Arc<AtomicBool>,
    /// The longest that a statement may take, and after it the end of a failed or cancelled one.
    statement_timeout: Duration,
}

impl Connections {
    /// Returns connections that are opened when they are first needed.
    pub(super) fn new(
        connect_options: PgConnectOptions,
        max_connections: u32,
        acquire_timeout: Duration,
        statement_timeout: Duration,
    ) -> Self {
        let ping_failed = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&ping_failed);
        let pool_options = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false) // it would cost a round trip per statement
            .before_acquire(move |connection, used| {
                let failed = Arc::clone(&failed);
                Box::pin(async move {
                    let is_usable = used.idle_for < PING_AFTER_IDLE || answers(connection, ANSWER_TIMEOUT).await;
                    if !is_usable {
                        failed.store(true, Ordering::Relaxed);
                    }
                    Ok(is_usable) // `false`: sqlx closes it and opens another one
                })
            });
        Self {
            pool: Mutex::new(pool_options.clone().connect_lazy_with(connect_options.clone())),
            connect_options,
            pool_options,
            permits: Arc::new(Semaphore::new(max_connections as usize)),
            ping_failed,
            statement_timeout,
        }
    }

    /// Lends a connection.
    ///
    /// # Errors
    /// If no permit is free within the acquire timeout, or no connection is ready within the same time after that.
    pub(super) async fn acquire(&self) -> Result<Borrowed, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned();
        let permit = time::timeout(self.pool_options.get_acquire_timeout(), permit).await;
        let permit = permit.map_err(|_| Error::PoolTimedOut)?.map_err(|_| Error::PoolClosed)?;
        loop {
            let pool = self.pool();
            match pool.acquire().await {
                Err(Error::PoolClosed) if !self.permits.is_closed() => {} // replaced meanwhile
                acquired => {
                    self.check_pool(&pool, &acquired);
                    return Ok(Borrowed { lent: Some((acquired?, permit)), timeout: self.statement_timeout });
                }
            }
        }
    }

    /// Closes or replaces the connections that are probably unusable too.
    fn check_pool(&self, pool: &PgPool, acquired: &Result<PoolConnection<Postgres>, Error>) {
        let ping_failed = self.ping_failed.swap(false, Ordering::Relaxed);
        match acquired {
            // The caller has a permit, so a connection is stuck in its return. If the caller had failed to open a connection,
            // `size` would be smaller: that one is no longer counted.
            Err(Error::PoolTimedOut) if pool.size() == self.max_connections() => self.replace(pool),
            Err(error) if invalidates_connections(error) => self.close_idle(),
            _ if ping_failed => self.close_idle(),
            _ => {}
        }
    }

    /// Returns a connection after its statement, or closes it if it broke. Passes the outcome of the statement on.
    ///
    /// # Errors
    /// The error of the statement, or a timeout.
    pub(super) async fn finish<T>(
        &self,
        mut borrowed: Borrowed,
        outcome: Result<Result<T, Error>, Elapsed>,
    ) -> Result<T, Error> {
        let outcome = outcome.unwrap_or_else(|_| Err(timed_out()));
        let is_usable = match &outcome {
            Ok(_) => true,
            Err(error) if invalidates_connections(error) => {
                self.close_idle();
                false
            }
            // PostgreSQL reports a failure before it rolls back and releases the locks. A retry on another connection would
            // wait for them. The answer to a ping comes after the rollback.
            Err(_) => answers(borrowed.connection(), self.statement_timeout).await,
        };
        if let Some((connection, _permit)) = borrowed.lent.take() {
            give_back(connection, is_usable);
        }
        outcome
    }

    fn close_idle(&self) {
        let pool = self.pool();
        while let Some(idle) = pool.try_acquire() {
            drop(idle.detach());
        }
    }

    fn replace(&self, stuck: &PgPool) {
        let mut pool = self.lock();
        if !stuck.is_closed() {
            drop(stuck.close()); // marks it as closed, so that no connection goes back to it
            *pool = self.pool_options.clone().connect_lazy_with(self.connect_options.clone());
        }
    }

    /// Closes all connections, after the running statements have ended.
    pub(super) async fn close(&self) {
        self.permits.close();
        // A stuck connection does not end.
        let _ = time::timeout(self.statement_timeout, self.pool().close()).await;
    }

    pub(super) fn max_connections(&self) -> u32 {
        self.pool_options.get_max_connections()
    }

    /// Returns the numbers of open and of idle connections.
    pub(super) fn count(&self) -> (u32, u32) {
        let pool = self.pool();
        (pool.size(), pool.num_idle() as u32)
    }

    fn pool(&self) -> PgPool {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, PgPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use, and its permit.
///
/// When it is dropped in the middle of a statement, the connection is returned after the statement has ended. If that takes
/// too long, it is closed.
pub(super) struct Borrowed {
    lent: Option<(PoolConnection<Postgres>, OwnedSemaphorePermit)>,
    timeout: Duration,
}

impl Borrowed {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        let (connection, _) = self.lent.as_mut().expect("only `finish` and `drop` take it");
        connection
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let timeout = self.timeout;
        if let Some((mut connection, permit)) = self.lent.take() {
            tokio::spawn(async move {
                let is_usable = answers(&mut connection, timeout).await;
                give_back(connection, is_usable);
                drop(permit);
            });
        }
    }
}

fn give_back(connection: PoolConnection<Postgres>, is_usable: bool) {
    if is_usable {
        drop(connection);
    } else {
        // `close` would first write to the connection, and may wait for that without limit.
        drop(connection.detach());
    }
}

async fn answers(connection: &mut PgConnection, limit: Duration) -> bool {
    time::timeout(limit, connection.ping()).await.is_ok_and(|pong| pong.is_ok())
}
