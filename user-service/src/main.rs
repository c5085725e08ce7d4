//! The process: settings, telemetry, store, app, serve.

use std::process::ExitCode;

use chassis::telemetry;
use mimalloc::MiMalloc;
use user_service::config::Config;
use user_service::password::Hasher;
use user_service::{AppState, SERVICE, app, store};

/// A request makes about 30 allocations; the system allocator takes nearly twice as long for them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    chassis::exit(start(chassis::config::parse()).await)
}

async fn start(config: Config) -> Result<(), String> {
    let telemetry = telemetry::start(SERVICE, &config.settings)?;
    let (store, kind) = store::open(&config.database, config.seed).await?;
    let about = format!("store: {kind}, peers: none");
    let hasher = Hasher::new(config.password_hashes_at_once, config.password_hashes_waiting);
    let app = app(AppState::new(store, hasher), &config.settings);
    chassis::run(SERVICE, config.port, &about, &app).await?;
    telemetry.end().await;
    Ok(())
}
