//! The PostgreSQL database of a service: migrations at the start, a pool with a timeout on every wait, and retries.

mod connections;
#[cfg(test)]
mod faults;
mod metrics;
mod migrate;
mod pool;
mod retry;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls;
mod url;

use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;

pub use self::pool::{Pool, READ_ONLY};
pub use self::retry::{Failure, is_row_error};
use crate::config::DatabaseSettings;

/// Connects to the database at `url` and runs the `migrations` that it lacks. When several replicas start together, one
/// migrates and the others wait.
///
/// # Errors
/// If the database does not answer for 30 seconds, or a migration fails.
pub async fn open(
    service: &str,
    url: &PgConnectOptions,
    settings: &DatabaseSettings,
    migrations: &Migrator,
) -> Result<Pool, String> {
    // The caller of a failed statement logs it.
    let options = url.clone().disable_statement_logging();
    let options = if options.get_application_name().is_some() { options } else { options.application_name(service) };
    migrate::run(&options, migrations).await?;
    Ok(Pool::new(options, settings))
}
