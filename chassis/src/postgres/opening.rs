//! Opens the database at the start: connects, checks that it is the right one, and runs the migrations that it lacks.
//!
//! The service listens meanwhile. It waits as long as waiting can help: the database or a grant may come later.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Executor, query_as, query_scalar};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::Pool;
use super::retry::{class_of, is_misconfigured, sql_state, timed_out};
use super::session::Sessions;

/// How long one attempt to connect, or one check, may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the migrations of one attempt may run.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// The shortest pause between two attempts. It doubles with each attempt, up to the longest.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The pause between two attempts to get the lock that another replica holds while it migrates.
const LOCK_INTERVAL: Duration = Duration::from_millis(250);
/// How often the log repeats what the service waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(15);
/// How long [`Pool::open`] waits for a database that does not answer. The database may have been started just before.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a store keeps its rows.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In the memory of the process.
    Memory,
    /// In a PostgreSQL database, which may not be open yet.
    Postgres(Pool),
}

/// For the start-up line.
impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory (a restart forgets everything)",
            Self::Postgres(_) => "PostgreSQL",
        })
    }
}

impl Storage {
    /// Completes when the storage can be used.
    pub(crate) async fn opened(self) {
        if let Self::Postgres(pool) = self {
            pool.opening.opened.cancelled().await;
        }
    }

    /// Opens the storage, and retries without end. It tells `report` what it waits for, in a few words that clients may see.
    ///
    /// # Errors
    /// If another attempt cannot help.
    pub(crate) async fn open(&self, report: impl Fn(&'static str)) -> Result<(), String> {
        match self {
            Self::Memory => Ok(()),
            Self::Postgres(pool) => pool.opening.open(None, &report).await,
        }
    }

    /// Runs the migrations that the database lacks. Waits up to 30 s for a database that does not answer.
    ///
    /// # Errors
    /// If there is no database, or if it cannot be migrated.
    pub(crate) async fn migrate(&self) -> Result<(), String> {
        match self {
            Self::Memory => Err("--migrate-only needs DATABASE_URL: a store in memory has no migrations".to_owned()),
            Self::Postgres(pool) => pool.open().await,
        }
    }
}

/// A database, and what must be done before it can be used.
#[derive(Debug)]
pub(super) struct Opening {
    sessions: Sessions,
    migrations: Migrator,
    /// Cancelled when the database is open.
    opened: CancellationToken,
}

/// Why an attempt to open the database failed.
enum OpenError {
    /// The database does not answer, or not yet.
    Away(String),
    /// An operator must change the database, the role or its password. The next attempt may succeed after that.
    Refused(String),
    /// This database can never be the one of this service.
    Unusable(String),
}

impl OpenError {
    /// Returns the sentence for the log, and the words for clients, which name no user and no host.
    fn describe(&self) -> (&str, &'static str) {
        match self {
            Self::Away(error) => (error, "the database does not answer"),
            Self::Refused(error) => (error, "the database refuses access"),
            Self::Unusable(error) => (error, "the database is unusable"),
        }
    }

    fn new(doing: &str, error: &Error) -> Self {
        let text = format!("{doing}: {}", class_of(error).describe(error));
        if is_away(error) { Self::Away(text) } else { Self::Refused(text) }
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        Self::new("cannot read the database", &error)
    }
}

impl From<MigrateError> for OpenError {
    fn from(failed: MigrateError) -> Self {
        const READ_ONLY: &str = "25006";
        const NO_PRIVILEGE: &str = "42501";
        let text = format!("cannot migrate the database: {failed}");
        let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = &failed else {
            return Self::Unusable(text);
        };
        match sql_state(error).as_deref() {
            _ if is_away(error) => Self::Away(text),
            Some(READ_ONLY) => Self::Refused(text),
            Some(NO_PRIVILEGE) => {
                Self::Refused(format!("{text}; run --migrate-only with a role that may create tables"))
            }
            _ => Self::Unusable(text),
        }
    }
}

/// Returns whether the database does not answer, or cannot serve at the moment.
fn is_away(error: &Error) -> bool {
    // Classes (PostgreSQL manual, appendix A): connections, rollbacks, resources, object state, operator, system.
    const CLASSES: [&str; 6] = ["08", "40", "53", "55", "57", "58"];
    matches!(error, Error::Io(_) | Error::Protocol(_) | Error::WorkerCrashed) && !is_misconfigured(error)
        || sql_state(error).is_some_and(|state| CLASSES.iter().any(|class| state.starts_with(class)))
}

impl Opening {
    pub(super) fn new(sessions: Sessions, migrations: &Migrator) -> Self {
        let mut migrations = Migrator::with_migrations(migrations.iter().cloned().collect());
        // A release that is rolled back finds the migrations of the newer one. It still runs, because migrations only add.
        migrations.set_ignore_missing(true);
        migrations.set_locking(false); // `migrate` has a lock that lasts no longer than its transaction
        Self { sessions, migrations, opened: CancellationToken::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.opened.is_cancelled()
    }

    /// Opens the database. It tells `report` what it waits for.
    ///
    /// With a `limit`, it gives up when the database has not answered for that time, or when the database refuses access.
    pub(super) async fn open(&self, limit: Option<Duration>, report: &impl Fn(&'static str)) -> Result<(), String> {
        let (started, mut pause) = (Instant::now(), MIN_PAUSE);
        let mut logged: Option<(String, Instant)> = None;
        loop {
            let Err(failure) = self.attempt(report).await else { break };
            let (error, reason) = failure.describe();
            report(reason);
            let is_final = match &failure {
                OpenError::Away(_) => limit.is_some_and(|limit| started.elapsed() > limit),
                OpenError::Refused(_) => limit.is_some(),
                OpenError::Unusable(_) => true,
            };
            if is_final {
                tracing::error!(error, "cannot open the database");
                return Err(error.to_owned());
            }
            if logged.as_ref().is_none_or(|(text, at)| text != error || at.elapsed() > REPORT_INTERVAL) {
                match failure {
                    OpenError::Away(_) => tracing::warn!(error, "the database is away; will retry"),
                    _ => tracing::error!(error, "the database refuses access until an operator acts; will retry"),
                }
                logged = Some((error.to_owned(), Instant::now()));
            }
            time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
        if logged.is_some() {
            tracing::info!(seconds = started.elapsed().as_secs_f64(), "the database is open");
        }
        Ok(())
    }

    /// Makes one attempt to open the database.
    async fn attempt(&self, report: &impl Fn(&'static str)) -> Result<(), OpenError> {
        let connected = time::timeout(CHECK_TIMEOUT, self.sessions.detect()).await.unwrap_or_else(|_| Err(timed_out()));
        let mut connection = connected.map_err(|error| OpenError::new("cannot connect to DATABASE_URL", &error))?;
        let (name, is_migrated) = with_timeout(CHECK_TIMEOUT, self.check(&mut connection)).await?;
        // A database that lacks nothing needs neither the lock nor the privileges of a migration.
        if !is_migrated {
            report("the database is being migrated");
            log_progress(with_timeout(MIGRATION_TIMEOUT, self.migrate(&mut connection, &name))).await?;
        }
        let _ = time::timeout(CHECK_TIMEOUT, connection.close()).await; // a failure loses nothing
        self.opened.cancel();
        Ok(())
    }

    /// Returns the name of the database, and whether it has run all migrations.
    async fn check(&self, connection: &mut PgConnection) -> Result<(String, bool), OpenError> {
        let mut transaction = connection.begin().await?; // behind a pooler, one session for all statements
        let name = check_encoding(&mut transaction).await?;
        let is_migrated = self.is_migrated(&mut transaction).await?;
        transaction.rollback().await?;
        Ok((name, is_migrated))
    }

    /// Returns whether the database has run all migrations.
    ///
    /// # Errors
    /// If it has run other migrations under the same numbers.
    async fn is_migrated(&self, connection: &mut PgConnection) -> Result<bool, OpenError> {
        const EXISTS: &str = "select to_regclass('_sqlx_migrations') is not null";
        const APPLIED: &str = "select version, description, checksum from _sqlx_migrations";
        let mut applied: Vec<(i64, String, Vec<u8>)> = Vec::new();
        if query_scalar(EXISTS).persistent(false).fetch_one(&mut *connection).await? {
            applied = query_as(APPLIED).persistent(false).fetch_all(connection).await?;
        }
        let mut is_migrated = true;
        for ours in self.migrations.iter() {
            match applied.iter().find(|(version, ..)| *version == ours.version) {
                None => is_migrated = false,
                Some((.., checksum)) if *checksum == *ours.checksum => {}
                Some((version, theirs, _)) if *theirs != ours.description => {
                    return Err(OpenError::Unusable(format!(
                        "DATABASE_URL names the database of another service: its migration {version} is `{theirs}`, not \
                         `{}`. Each service needs a database of its own",
                        ours.description
                    )));
                }
                Some((version, ..)) => {
                    return Err(OpenError::Unusable(format!(
                        "cannot migrate the database: migration {version} has changed since the database ran it"
                    )));
                }
            }
        }
        Ok(is_migrated)
    }

    /// Runs the migrations that the database lacks, all in one transaction. If another replica runs them, waits for its end.
    ///
    /// The lock ends with the transaction. In a pooler, a lock of the session could outlive the process.
    async fn migrate(&self, connection: &mut PgConnection, database: &str) -> Result<(), OpenError> {
        // Otherwise PostgreSQL sends a notice for each object that exists already, and sqlx logs it.
        const QUIET: &str = "deallocate all; set local client_min_messages = warning";
        // sqlx prepares statements under names that another client of the pooler may have left, or may use later.
        const FORGET: &str = "deallocate all";
        // CockroachDB, for one, grants every advisory lock and keeps none.
        const HELD: &str = "select exists (select from pg_locks where locktype = 'advisory'
            and (classid::bigint << 32 | objid::bigint) = $1), version()";
        let mut is_waiting = false;
        loop {
            let mut transaction = connection.begin().await?;
            let lock = query_scalar("select pg_try_advisory_xact_lock($1)").bind(lock_id(database)).persistent(false);
            if lock.fetch_one(&mut *transaction).await? {
                let (is_held, version): (bool, String) =
                    query_as(HELD).bind(lock_id(database)).persistent(false).fetch_one(&mut *transaction).await?;
                if !is_held {
                    return Err(OpenError::Unusable(format!(
                        "the database grants advisory locks, but pg_locks does not show them. So two replicas could migrate it at the \
                         same time. Use PostgreSQL, not {version}"
                    )));
                }
                if !self.is_migrated(&mut transaction).await? {
                    transaction.execute(QUIET).await?;
                    self.migrations.run(&mut *transaction).await?;
                    transaction.execute(FORGET).await?;
                }
                return Ok(transaction.commit().await?);
            }
            transaction.rollback().await?;
            if !is_waiting {
                tracing::warn!("another replica migrates the database; will wait");
                is_waiting = true;
            }
            time::sleep(LOCK_INTERVAL).await;
        }
    }
}

/// Returns the name of the database.
///
/// # Errors
/// If its encoding is not UTF-8, because then it cannot store every text.
async fn check_encoding(connection: &mut PgConnection) -> Result<String, OpenError> {
    const SQL: &str = "select current_database()::text, current_setting('server_encoding')";
    let (name, encoding): (String, String) = query_as(SQL).persistent(false).fetch_one(connection).await?;
    if encoding == "UTF8" {
        return Ok(name);
    }
    Err(OpenError::Unusable(format!(
        "the encoding of the database {name} is {encoding}, but it must be UTF8: create database … encoding 'UTF8' \
         template template0"
    )))
}

/// Returns the key of the lock. Earlier releases lock through sqlx, which uses the same key.
fn lock_id(database: &str) -> i64 {
    0x3d32_ad9e * i64::from(crc32fast::hash(database.as_bytes()))
}

async fn with_timeout<T, E>(limit: Duration, step: impl Future<Output = Result<T, E>>) -> Result<T, OpenError>
where
    OpenError: From<E>,
{
    Ok(time::timeout(limit, step).await.map_err(|_| timed_out())??)
}

/// Runs `step`, and logs at intervals that it still runs.
async fn log_progress<T>(step: impl Future<Output = T>) -> T {
    let (started, mut step) = (Instant::now(), pin!(step));
    loop {
        match time::timeout(REPORT_INTERVAL, step.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(seconds = started.elapsed().as_secs(), "the database is still being migrated"),
        }
    }
}
