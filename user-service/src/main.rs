//! The process: signals, settings, telemetry, store, app, serve.

use chassis::{Signals, telemetry};
use mimalloc::MiMalloc;
use user_service::config::Config;
use user_service::password::Hasher;
use user_service::{AppState, SERVICE, app, store};

/// A request makes about 30 allocations; the system allocator takes nearly twice as long for them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() {
    chassis::exit(start().await)
}

async fn start() -> Result<(), String> {
    let signals = Signals::catch()?;
    let config: Config = chassis::config::parse();
    if config.settings.health {
        return chassis::check_health(SERVICE, &config.settings, config.port).await;
    }
    let telemetry = telemetry::start(SERVICE, &config.settings)?;
    let (store, storage) = store::open(&config.database, config.seed).await?;
    if config.database.migrate_only {
        return chassis::migrate(&storage, signals).await;
    }
    let about = format!("store: {storage}, peers: none");
    let hasher = Hasher::new(config.password_hashes_at_once, config.password_hashes_waiting);
    let app = app(AppState::new(store, hasher), &config.settings);
    chassis::run(SERVICE, config.port, &about, &app, &storage, signals).await?;
    telemetry.end().await;
    Ok(())
}
