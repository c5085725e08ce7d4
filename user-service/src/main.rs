//! The process: signals, settings, telemetry, store, app, serve.

use chassis::auth::{Authenticator, KeySet};
use chassis::postgres::Storage;
use chassis::{Signals, telemetry};
use mimalloc::MiMalloc;
use user_service::config::Config;
use user_service::issuer::Issuer;
use user_service::password::Hasher;
use user_service::{AppState, ORDER_SERVICE, SERVICE, app, store};

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
    if config.settings.auth.issuer.is_some() && config.service_keys_file.is_none() {
        tracing::warn!("SERVICE_KEYS_FILE is not set; calls of order-service will be rejected");
    }
    let keys = config.service_keys_file.as_deref().map(KeySet::from_pem_file).transpose()?;
    let services = keys.map(|keys| (ORDER_SERVICE, keys)).into_iter().collect();
    let issuer = Issuer::open(&config)?;
    let own_keys = issuer.as_ref().map(Issuer::key_set);
    let authenticator = Authenticator::new(SERVICE, &config.settings.auth, own_keys, services)?;
    let state = AppState::new(store, hasher).with_sign_in(authenticator, issuer);
    let app = app(state.clone(), &config.settings);
    match storage {
        Storage::Memory => state.create_admins().await, // so that the service is ready immediately
        Storage::Postgres(_) => app.spawn_while_serving(&storage, state.create_admins()),
    }
    chassis::run(SERVICE, config.port, &about, &app, &storage, signals).await?;
    telemetry.end().await;
    Ok(())
}
