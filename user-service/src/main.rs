//! The process: settings, log, store, app, serve.

use std::process::ExitCode;

use chassis::telemetry;
use clap::Parser;
use user_service::config::Config;
use user_service::{AppState, SERVICE, app, store};

#[tokio::main]
async fn main() -> ExitCode {
    chassis::exit(start(Config::parse()).await)
}

async fn start(config: Config) -> Result<(), String> {
    telemetry::start(&config.settings.rust_log)?;
    let store = store::open(config.seed).await?;
    let about = format!("store: {}, peers: none", store::MEMORY);
    let app = app(AppState::new(store), &config.settings);
    chassis::run(SERVICE, config.port, &about, &app).await
}
