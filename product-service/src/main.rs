//! The process: signals, settings, telemetry, store, peers, app, serve.

use chassis::auth::{Authenticator, KeySet};
use chassis::{Signals, telemetry};
use mimalloc::MiMalloc;
use product_service::config::Config;
use product_service::peers::Users;
use product_service::{AppState, ORDER_SERVICE, SERVICE, app, store};

/// A request allocates about thirty times, and the system allocator takes nearly twice as long.
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
    let users = Users::new(config.user_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let about = format!("store: {storage}, peers: user-service {}", config.user_service_url);
    if config.settings.auth.issuer.is_some() && config.service_keys_file.is_none() {
        tracing::warn!("SERVICE_KEYS_FILE is not set; calls of order-service will be rejected");
    }
    let keys = config.service_keys_file.as_deref().map(KeySet::from_pem_file).transpose()?;
    let services = keys.map(|keys| (ORDER_SERVICE, keys)).into_iter().collect();
    let authenticator = Authenticator::new(SERVICE, &config.settings.auth, None, services)?;
    let app = app(AppState::new(store, users).with_sign_in(authenticator), &config.settings);
    chassis::run(SERVICE, config.port, &about, &app, &storage, signals).await?;
    telemetry.end().await;
    Ok(())
}
