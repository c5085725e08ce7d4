//! The process: settings, telemetry, store, peers, app, serve.

use std::process::ExitCode;

use chassis::telemetry;
use mimalloc::MiMalloc;
use product_service::config::Config;
use product_service::peers::Users;
use product_service::{AppState, SERVICE, app, store};

/// A request allocates about thirty times, and the system allocator takes nearly twice as long.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    chassis::exit(start(chassis::config::parse()).await)
}

async fn start(config: Config) -> Result<(), String> {
    let telemetry = telemetry::start(SERVICE, &config.settings)?;
    let (store, kind) = store::open(&config.database, config.seed).await?;
    let users = Users::new(config.user_service_url.clone(), &config.peers).map_err(|error| error.to_string())?;
    let about = format!("store: {kind}, peers: user-service {}", config.user_service_url);
    let app = app(AppState::new(store, users), &config.settings);
    chassis::run(SERVICE, config.port, &about, &app).await?;
    telemetry.end().await;
    Ok(())
}
