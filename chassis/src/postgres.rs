//! A PostgreSQL database of a service's own: connections on which nothing waits without end, migrations at the start, and
//! which failures may pass.

use std::future::Future;
use std::io;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Error, SqlSafeStr};
use tokio::time::{self, Instant};

use crate::config::DatabaseSettings;

/// How long a service waits for its database at the start, before it gives up: for those who start both at once.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long one try to connect may take.
const START_TRY: Duration = Duration::from_secs(5);
/// Between two looks meanwhile.
const START_PAUSE: Duration = Duration::from_millis(250);
/// How long a transaction may stand open. No step here opens one; this ends those of whoever else is there.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);
/// A connection that nobody used for so long is asked whether it is still one: the database may have been restarted.
const UNUSED: Duration = Duration::from_secs(1);
/// A try that is silent for so long, far longer than the limits that the database itself keeps, is given up: the database
/// is not there to keep them.
const SILENT: Duration = Duration::from_secs(10);
/// How often a step that is safe to repeat is tried, the first included.
const MAX_TRIES: u32 = 4;
/// The first wait between two tries is up to this long, each further one up to twice as long as the last.
const BASE_WAIT: Duration = Duration::from_millis(10);

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
) -> Result<PgPool, String> {
    let options = url.clone().application_name(service).disable_statement_logging(); // a failure has a line at its cause
    migrate(&options.clone().options([("client_min_messages", "warning")]), migrations).await?;
    let limit = |time: Duration| time.as_millis().max(1).to_string(); // 0 would be none
    let options = options.options([
        ("statement_timeout", limit(settings.database_statement)),
        ("idle_in_transaction_session_timeout", limit(IDLE_IN_TRANSACTION)),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(settings.database_connections)
        .acquire_timeout(settings.database_acquire)
        .test_before_acquire(false) // a round trip for each use; instead:
        .before_acquire(|connection, used| {
            Box::pin(async move { Ok(used.idle_for < UNUSED || connection.ping().await.is_ok()) })
        });
    Ok(pool.connect_lazy_with(options))
}

/// On a connection without the limits that [`open`] sets: it may have to wait for another replica to be done.
async fn migrate(options: &PgConnectOptions, migrations: &[(&'static str, &'static str)]) -> Result<(), String> {
    let mut connection = connect(options).await?;
    let numbered = migrations.iter().zip(1..).map(|((about, sql), version)| {
        Migration::new(version, (*about).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(numbered.collect());
    migrator.set_ignore_missing(true); // a newer release may have migrated already: migrations only add
    let migrated = migrator.run_direct(None, &mut connection, false).await;
    migrated.map_err(|error| format!("cannot migrate the database: {error}"))?;
    let _ = connection.close().await; // it has done its work
    Ok(())
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, String> {
    let began = Instant::now();
    loop {
        let connected = time::timeout(START_TRY, options.connect()).await;
        match connected.unwrap_or_else(|_| Err(Error::Io(io::ErrorKind::TimedOut.into()))) {
            Ok(connection) => return Ok(connection),
            Err(error) if began.elapsed() < START_PATIENCE && may_pass(&error) => {
                tracing::warn!(%error, "the database does not answer yet");
                time::sleep(START_PAUSE).await;
            }
            Err(error) => return Err(format!("cannot connect to DATABASE_URL: {error}")),
        }
    }
}

/// Runs a step that is safe to repeat, up to four times as long as it fails in a way that may pass. What became of a try
/// whose connection broke is unknown, so the step must be content to find its work done.
///
/// # Errors
/// As the last try.
pub async fn repeat<T, F: Future<Output = Result<T, Error>>>(step: impl Fn() -> F) -> Result<T, Error> {
    again_if(may_pass, step).await
}

/// The same for a step that is not safe to repeat: it is tried again only after a try that certainly did nothing.
///
/// # Errors
/// As the last try.
pub async fn once<T, F: Future<Output = Result<T, Error>>>(step: impl Fn() -> F) -> Result<T, Error> {
    again_if(was_undone, step).await
}

async fn again_if<T, F: Future<Output = Result<T, Error>>>(
    helps: fn(&Error) -> bool,
    step: impl Fn() -> F,
) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        let tried = time::timeout(SILENT, step()).await;
        match tried.unwrap_or(Err(Error::PoolTimedOut)) {
            Err(error) if tries < MAX_TRIES && helps(&error) => {
                time::sleep((BASE_WAIT * 2_u32.pow(tries - 1)).mul_f64(rand::random())).await;
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the statement was certainly not carried out, for a reason that may pass: the database has said so (SQLSTATE,
/// PostgreSQL's manual, appendix A), or had closed the connection before it was sent.
fn was_undone(error: &Error) -> bool {
    if let Error::Io(error) = error {
        return error.kind() == io::ErrorKind::BrokenPipe;
    }
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| {
        matches!(
            &*code,
            "40001" | "40P01" // two statements in each other's way
            | "57P01" | "57P02" | "57P03" // it is going down, or coming up
            | "53300" // too many connections
        )
    })
}

/// Whether another try may help. A wait that was cut off by its limit has been long enough.
fn may_pass(error: &Error) -> bool {
    was_undone(error) || matches!(error, Error::Io(_) | Error::Protocol(_) | Error::WorkerCrashed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    async fn tries(run: impl AsyncFn(&dyn Fn() -> Result<(), Error>) -> Result<(), Error>, fails: u32) -> (u32, bool) {
        let tries = Cell::new(0);
        let step = || {
            tries.set(tries.get() + 1);
            if tries.get() <= fails { Err(Error::Io(io::ErrorKind::ConnectionReset.into())) } else { Ok(()) }
        };
        let outcome = run(&step).await;
        (tries.get(), outcome.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_safe_to_repeat_outlives_three_broken_connections_and_no_more() {
        assert_eq!(tries(async |step| repeat(|| async { step() }).await, 3).await, (4, true));
        assert_eq!(tries(async |step| repeat(|| async { step() }).await, 4).await, (4, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_safe_to_repeat_is_not_repeated_when_nobody_knows_what_it_did() {
        assert_eq!(tries(async |step| once(|| async { step() }).await, 1).await, (1, false));
    }

    const THINGS: (&str, &str) = ("a table", "create table things (id bigint primary key); select pg_sleep(0.2)");

    #[tokio::test]
    async fn replicas_that_start_together_migrate_once() {
        let Some(database) = crate::testing::postgres::database().await else { return };
        let settings: DatabaseSettings = crate::config::defaults();
        let open = || open("tiny", &database, &settings, &[THINGS]);
        let (one, two, three) = tokio::join!(open(), open(), open());
        for pool in [one.unwrap(), two.unwrap(), three.unwrap()] {
            sqlx::query("select id from things").execute(&pool).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_release_that_is_rolled_back_finds_the_database_ahead_and_starts() {
        let Some(database) = crate::testing::postgres::database().await else { return };
        let settings: DatabaseSettings = crate::config::defaults();
        let newer = [THINGS, ("a column", "alter table things add name text")];
        for migrations in [&newer[..], &newer[..1]] {
            open("tiny", &database, &settings, migrations).await.unwrap();
        }
        let changed = [("another table", "create table others (id bigint primary key)")];
        assert!(open("tiny", &database, &settings, &changed).await.is_err(), "what was released is never changed");
    }
}
