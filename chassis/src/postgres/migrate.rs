//! Waits for the database at the start, and runs the migrations.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Error};
use tokio::time::{self, Instant};

use super::retry::{is_misconfigured, is_transient, timed_out};

/// How long a service waits for its database at the start. Both may be started together.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two attempts to connect.
const CONNECT_INTERVAL: Duration = Duration::from_millis(250);
/// How long the migrations may take, including the wait for another replica that runs them.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs the migrations that the database lacks. An advisory lock makes other replicas wait.
///
/// It needs a connection of its own: those of the pool have statement and lock timeouts, which may be too short here.
pub(super) async fn run(options: &PgConnectOptions, migrations: &Migrator) -> Result<(), String> {
    // Otherwise PostgreSQL sends a notice for each object that exists already, and sqlx logs it.
    let mut connection = connect(&options.clone().options([("client_min_messages", "warning")])).await?;
    let mut migrator = Migrator::with_migrations(migrations.iter().cloned().collect());
    // A release that is rolled back finds the migrations of the newer one. It still runs, because migrations only add.
    migrator.set_ignore_missing(true);
    let migrated = time::timeout(MIGRATION_TIMEOUT, migrator.run(&mut connection)).await;
    let migrated = migrated.map_err(|_| {
        "cannot migrate the database: timed out; another replica may be migrating, or the database does not answer"
            .to_owned()
    })?;
    migrated.map_err(|error| format!("cannot migrate the database: {error}"))?;
    let _ = connection.close().await; // a failure changes nothing: the migrations are committed
    Ok(())
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, String> {
    let started = Instant::now();
    loop {
        let connected = time::timeout(CONNECT_TIMEOUT, options.connect()).await;
        match connected.unwrap_or_else(|_| Err(timed_out())) {
            Ok(connection) => return Ok(connection),
            Err(error)
                if started.elapsed() < START_TIMEOUT
                    && !is_misconfigured(&error)
                    && (is_transient(&error) || matches!(error, Error::Io(_))) =>
            {
                tracing::warn!(%error, "connecting to the database failed; will retry");
                time::sleep(CONNECT_INTERVAL).await;
            }
            Err(error) => return Err(format!("cannot connect to DATABASE_URL: {error}")),
        }
    }
}
