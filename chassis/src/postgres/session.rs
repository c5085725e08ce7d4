//! The settings of a database session. They hold also behind a pooler that gives each transaction another session.
//!
//! Without a pooler, the settings are parameters of the connection, and prepared statements are kept. PgBouncer in transaction
//! mode refuses such parameters, or drops them, and has no prepared statements. Behind it, each statement is a transaction of
//! its own that begins with the settings.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgStatement};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Error, Execute, Postgres, SqlStr, Transaction, query_scalar};

use super::retry::{not_sent, sql_state};

/// A setting that exists only if the database got the parameters of the connection.
const MARK: &str = "chassis.session";

/// How to open sessions with these settings.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    options: PgConnectOptions,
    settings: Vec<(&'static str, String)>,
    is_pooled: Arc<AtomicBool>,
}

impl Sessions {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        // PgBouncer does not know `extra_float_digits`. It matters only for floating-point numbers as text.
        let options = options.extra_float_digits(None);
        Self { options, settings: Vec::new(), is_pooled: Arc::default() }
    }

    /// Adds settings. A setting with the name of an earlier one replaces it.
    pub(super) fn with(&self, settings: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let mut sessions = self.clone();
        sessions.settings.extend(settings);
        sessions
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        if self.is_pooled() {
            return self.options.connect().await;
        }
        self.options.clone().options(self.settings.iter().cloned()).connect().await
    }

    /// Opens a connection, and finds out whether a pooler is in front of the database.
    pub(super) async fn detect(&self) -> Result<PgConnection, Error> {
        match self.options.clone().options([(MARK, "own")]).connect().await {
            Ok(mut connection) => {
                if got_parameters(&mut connection).await? {
                    self.is_pooled.store(false, Ordering::Relaxed);
                    return Ok(connection);
                }
            }
            // PgBouncer reports everything as 08P01. Other poolers say that the feature is not supported.
            Err(error) if matches!(sql_state(&error).as_deref(), Some("08P01" | "0A000")) => {}
            Err(error) => return Err(error),
        }
        let connection = self.options.connect().await?;
        if !self.is_pooled.swap(true, Ordering::Relaxed) {
            tracing::info!("a pooler is in front of the database; each statement is a transaction of its own");
        }
        Ok(connection)
    }

    fn is_pooled(&self) -> bool {
        self.is_pooled.load(Ordering::Relaxed)
    }

    /// Returns the connection for one statement with the settings. Behind a pooler, begins a transaction that has them.
    pub(super) async fn begin<'c>(&self, connection: &'c mut PgConnection) -> Result<Running<'c>, Error> {
        if !self.is_pooled() {
            return Ok(Running::Plain(connection));
        }
        let settings = self.settings.iter().map(|(name, value)| format!("; set local {name} = '{value}'"));
        let begin = AssertSqlSafe(format!("begin{}", settings.collect::<String>()));
        connection.begin_with(begin).await.map(Running::InTransaction).map_err(not_sent)
    }
}

/// Returns whether the session has the parameters of the connection, which a pooler drops.
async fn got_parameters(connection: &mut PgConnection) -> Result<bool, Error> {
    const SQL: &str = "select current_setting($1, true) is not null";
    let mut transaction = connection.begin().await?; // behind a pooler, one session for all messages of a query
    let is_set = query_scalar(SQL).bind(MARK).persistent(false).fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(is_set)
}

/// A connection on which one statement runs.
pub(super) enum Running<'c> {
    /// In a session that has the settings.
    Plain(&'c mut PgConnection),
    /// In a transaction that has the settings.
    InTransaction(Transaction<'c, Postgres>),
}

impl Running<'_> {
    /// Ends a statement that succeeded. When it is dropped instead, the statement is rolled back.
    pub(super) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::InTransaction(transaction) => transaction.commit().await,
        }
    }

    /// Returns the query as this connection can run it: behind a pooler, a prepared statement has no name.
    pub(super) fn adapt<E>(&self, query: E) -> Adapted<E> {
        Adapted { query, may_persist: matches!(self, Self::Plain(_)) }
    }
}

impl Deref for Running<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Plain(connection) => connection,
            Self::InTransaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Running<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Plain(connection) => connection,
            Self::InTransaction(transaction) => transaction,
        }
    }
}

/// A query that may be kept as a prepared statement only without a pooler.
pub(super) struct Adapted<E> {
    query: E,
    may_persist: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Adapted<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.may_persist && self.query.persistent()
    }
}
