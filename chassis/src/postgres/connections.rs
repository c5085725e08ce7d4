//! Lends connections to the database.
//!
//! sqlx's pool is not used, for three reasons:
//!
//! - When a connection is returned, it waits without limit for a silent database.
//! - While it tries to open a connection, it does not lend those that are returned meanwhile, even if the server has no
//!   connection left.
//! - It cannot give up the connections that were open before a failover.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{self, Instant};

use super::retry::{class_of, is_transient, not_connected, timed_out};
use super::session::Sessions;

/// Maximum time of a ping. Also the time that is added to `statement_timeout` before the service gives a statement up: PostgreSQL
/// enforces that timeout, so a database that answers even later counts as silent.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
/// A connection that was idle for this time is pinged before use, because the database may have been restarted meanwhile.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Idle connections are closed after this time, so that the server has them for others.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Connections are closed after this time, because the memory of a session in the server only grows.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// The pause between two attempts to open a connection.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum time before all connections are given up again. New connections to a read-only database are no better.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum time between two log lines about failed attempts to open a connection.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Lends connections, at most `max_connections` at a time.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) sessions: Sessions,
    max_connections: u32,
    acquire_timeout: Duration,
    /// Maximum time of a statement. After a failed or cancelled statement, its rollback may take the same time again.
    statement_timeout: Duration,
    /// One permit for each lent connection.
    permits: Arc<Semaphore>,
    idle: Mutex<Idle>,
    /// Notified when a connection is returned, closed or opened.
    returned: Notify,
    /// Its count of references is the number of connections that are open or being opened, plus one for this field.
    open: Arc<()>,
}

#[derive(Debug)]
struct Idle {
    /// The idle connections; the most recently used one is the last.
    connections: Vec<Open>,
    /// Connections that were opened earlier are given up.
    suspect_since: Option<Instant>,
    /// No connection is opened before this time, because opening one has just failed.
    connect_after: Instant,
    /// When a failed attempt to open a connection was last logged.
    logged: Option<Instant>,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    connection: PgConnection,
    opened: Instant,
    used: Instant,
    _counted: Arc<()>,
}

impl Connections {
    /// Returns connections that are opened when they are first needed.
    pub(super) fn new(
        sessions: Sessions,
        max_connections: u32,
        acquire_timeout: Duration,
        statement_timeout: Duration,
    ) -> Arc<Self> {
        let now = Instant::now();
        let idle = Idle { connections: Vec::new(), suspect_since: None, connect_after: now, logged: None };
        Arc::new(Self {
            sessions,
            max_connections,
            acquire_timeout,
            statement_timeout,
            permits: Arc::new(Semaphore::new(max_connections as usize)),
            idle: Mutex::new(idle),
            returned: Notify::new(),
            open: Arc::new(()),
        })
    }

    /// Lends a connection.
    ///
    /// # Errors
    /// If no permit is free within the acquire timeout, or no connection is ready within the same time after that. The
    /// statement was not executed.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<Borrowed, Error> {
        let permit = time::timeout(self.acquire_timeout, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.map_err(|_| Error::PoolTimedOut)?.map_err(|_| Error::PoolClosed)?;
        let mut failure = Error::PoolTimedOut;
        match time::timeout(self.acquire_timeout, self.idle_or_new(&mut failure)).await {
            Ok(Some(open)) => Ok(Borrowed { lent: Some((open, permit)), connections: Arc::clone(self) }),
            Ok(None) | Err(Elapsed { .. }) => Err(not_connected(failure)),
        }
    }

    /// Returns a connection as soon as one is idle or opened. Returns `None` if none is open and waiting does not help; then
    /// `failure` is the reason.
    ///
    /// If this is cancelled, a connection that is being opened becomes an idle one.
    async fn idle_or_new(self: &Arc<Self>, failure: &mut Error) -> Option<Open> {
        let mut opening = None;
        loop {
            if let Some(open) = self.idle().await {
                return Some(open);
            }
            opening = opening.or_else(|| self.start_opening());
            let opened = async {
                match &mut opening {
                    Some(opening) => opening.await,
                    None => {
                        time::sleep(CONNECT_INTERVAL).await;
                        Ok(Ok(()))
                    }
                }
            };
            tokio::select! {
                outcome = opened => {
                    opening = None;
                    if let Ok(Err(error)) = outcome {
                        *failure = error;
                        if self.count().0 == 0 && !is_transient(failure) {
                            return None;
                        }
                    }
                }
                () = self.returned.notified() => {}
            }
        }
    }

    /// Returns an idle connection that works.
    async fn idle(&self) -> Option<Open> {
        while let Some(mut open) = self.pop() {
            if open.used.elapsed() < PING_AFTER_IDLE || answers(&mut open.connection, ANSWER_TIMEOUT).await {
                return Some(open);
            }
            self.give_up_all(open.opened);
        }
        None
    }

    /// Opens a further connection in the background. `None` if there are enough, or if the last attempt has just failed.
    fn start_opening(self: &Arc<Self>) -> Option<JoinHandle<Result<(), Error>>> {
        let idle = self.lock();
        let (open, max_connections) = (Arc::strong_count(&self.open) - 1, self.max_connections as usize);
        if open >= max_connections || idle.connect_after > Instant::now() {
            return None;
        }
        let (this, counted) = (Arc::clone(self), Arc::clone(&self.open));
        Some(tokio::spawn(async move {
            let opened = Instant::now();
            let connected = time::timeout(this.acquire_timeout, this.sessions.connect()).await;
            let connection = connected.unwrap_or(Err(Error::PoolTimedOut)).inspect_err(|error| this.report(error))?;
            this.take_back(Open { connection, opened, used: opened, _counted: counted }, true);
            Ok(())
        }))
    }

    /// Logs a failed attempt to open a connection, and delays the next one.
    fn report(&self, error: &Error) {
        let (mut idle, now) = (self.lock(), Instant::now());
        idle.connect_after = now + CONNECT_INTERVAL;
        if idle.logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            idle.logged = Some(now);
            let error = class_of(error).describe(error);
            tracing::warn!(error, "opening a connection to the database failed");
        }
    }

    fn pop(&self) -> Option<Open> {
        let mut idle = self.lock();
        let suspect_since = idle.suspect_since;
        idle.connections.retain(|open| {
            Some(open.opened) > suspect_since && open.opened.elapsed() < MAX_AGE && open.used.elapsed() < IDLE_TIMEOUT
        });
        idle.connections.pop()
    }

    /// Takes a connection back after its statement, or closes it if it broke. Returns the outcome of the statement.
    ///
    /// # Errors
    /// The error of the statement, or a timeout.
    pub(super) async fn finish<T>(
        &self,
        mut borrowed: Borrowed,
        outcome: Result<Result<T, Error>, Elapsed>,
    ) -> Result<T, Error> {
        let outcome = outcome.unwrap_or_else(|_| Err(timed_out()));
        let is_usable = match outcome.as_ref().map_err(class_of) {
            Ok(_) => true,
            Err(class) if class.closes_connection() => {
                if class.closes_all_connections() {
                    self.give_up_all(borrowed.open().opened);
                }
                false
            }
            // PostgreSQL reports a failure before it rolls back and releases the locks. A retry on another connection would
            // wait for them. The answer to a ping comes after the rollback.
            Err(_) => answers(borrowed.connection(), self.statement_timeout).await,
        };
        if let Some((open, _permit)) = borrowed.lent.take() {
            self.take_back(open, is_usable);
        }
        outcome
    }

    fn take_back(&self, open: Open, is_usable: bool) {
        if is_usable {
            self.lock().connections.push(Open { used: Instant::now(), ..open });
        } else {
            drop(open); // `close` would write to the connection first, and may wait for that without limit
        }
        self.returned.notify_one();
    }

    /// Gives up all connections that are open now, because the one that was opened at `opened` turned out to be unusable.
    /// Connections in use are closed when their statement has ended.
    pub(super) fn give_up_all(&self, opened: Instant) {
        let mut idle = self.lock();
        let is_news = |since: Instant| opened > since && since.elapsed() > GIVE_UP_INTERVAL;
        if idle.suspect_since.is_none_or(is_news) {
            idle.suspect_since = Some(Instant::now());
            idle.connections.clear();
        }
    }

    /// Returns whether a connection that was opened at this time is given up.
    pub(super) fn is_given_up(&self, opened: Instant) -> bool {
        Some(opened) <= self.lock().suspect_since
    }

    pub(super) fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// Returns the numbers of open and of idle connections.
    pub(super) fn count(&self) -> (u32, u32) {
        let idle = self.lock().connections.len();
        ((Arc::strong_count(&self.open) - 1) as u32, idle as u32)
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use, and its permit.
///
/// If it is dropped in the middle of a statement, the connection is returned when the statement has ended. If that takes too
/// long, the connection is closed.
pub(super) struct Borrowed {
    lent: Option<(Open, OwnedSemaphorePermit)>,
    connections: Arc<Connections>,
}

impl Borrowed {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.open().connection
    }

    fn open(&mut self) -> &mut Open {
        let (open, _) = self.lent.as_mut().expect("only `finish` and `drop` take it");
        open
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some((mut open, permit)) = self.lent.take() {
            let connections = Arc::clone(&self.connections);
            tokio::spawn(async move {
                let is_usable = answers(&mut open.connection, connections.statement_timeout).await;
                connections.take_back(open, is_usable);
                drop(permit);
            });
        }
    }
}

async fn answers(connection: &mut PgConnection, limit: Duration) -> bool {
    time::timeout(limit, connection.ping()).await.is_ok_and(|pong| pong.is_ok())
}
