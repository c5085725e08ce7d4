//! The process: settings, telemetry, store, peers, app, reconciler, serve.

use std::process::ExitCode;

use chassis::telemetry;
use clap::Parser;
use mimalloc::MiMalloc;
use order_service::config::Config;
use order_service::peers::{Products, Users};
use order_service::placement::Placement;
use order_service::{AppState, SERVICE, app, reconciler, store};

/// A request makes about 30 allocations; the system allocator takes nearly twice as long for them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    chassis::exit(start(Config::parse()).await)
}

async fn start(config: Config) -> Result<(), String> {
    let telemetry = telemetry::start(SERVICE, &config.settings)?;
    let (store, kind) = store::open(&config.database).await?;
    let users = Users::new(config.user_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let products =
        Products::new(config.product_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let max_concurrent = config.settings.max_in_flight as usize;
    let placement = Placement::new(store, users, products, config.order_timeout, max_concurrent);
    let state = AppState::new(placement.clone())
        .with_public_urls([config.public_user_service_url, config.public_product_service_url]);
    let app = app(state, &config.settings);
    tokio::spawn(reconciler::run(placement.clone(), config.reconcile));
    let (users, products) = (&config.user_service_url, &config.product_service_url);
    let about = format!("store: {kind}, peers: user-service {users}, product-service {products}");
    let time_left = chassis::run(SERVICE, config.port, &about, &app).await?;
    placement.finish(time_left).await;
    telemetry.end().await;
    Ok(())
}
