//! The process: signals, settings, telemetry, store, peers, app, reconciler, serve.

use chassis::{Signals, telemetry};
use mimalloc::MiMalloc;
use order_service::config::Config;
use order_service::peers::{Products, Users};
use order_service::placement::Placement;
use order_service::{AppState, SERVICE, app, reconciler, store};

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
    let (store, storage) = store::open(&config.database)?;
    if config.database.migrate_only {
        return chassis::migrate(&storage, signals).await;
    }
    let users = Users::new(config.user_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let products =
        Products::new(config.product_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let max_concurrent = config.settings.max_in_flight as usize;
    let placement = Placement::new(store, users, products, config.order_timeout, max_concurrent);
    let state = AppState::new(placement.clone())
        .with_public_urls([config.public_user_service_url, config.public_product_service_url]);
    let app = app(state, &config.settings);
    app.spawn_while_serving(&storage, reconciler::run(placement.clone(), config.reconcile));
    let (users, products) = (&config.user_service_url, &config.product_service_url);
    let about = format!("store: {storage}, peers: user-service {users}, product-service {products}");
    let time_left = chassis::run(SERVICE, config.port, &about, &app, &storage, signals).await?;
    placement.finish(time_left).await;
    telemetry.end().await;
    Ok(())
}
