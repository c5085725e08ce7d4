//! The settings of this service.

use std::time::Duration;

use chassis::config::{DatabaseSettings, PeerSettings, Settings, peer_url, seconds};
use clap::Parser;
use url::Url;

/// order-service: what was bought.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Port to listen on; 0 takes a free one
    #[arg(long, env, default_value_t = 3003)]
    pub port: u16,

    /// Where user-service is; a path in it is kept
    #[arg(long, env, default_value = "http://127.0.0.1:3001", value_parser = peer_url)]
    pub user_service_url: Url,

    /// Where product-service is; a path in it is kept
    #[arg(long, env, default_value = "http://127.0.0.1:3002", value_parser = peer_url)]
    pub product_service_url: Url,

    /// Seconds for an order to be placed; then 503, and nothing is sold
    #[arg(long = "order-timeout", env = "ORDER_TIMEOUT_SECONDS", value_name = "ORDER_TIMEOUT_SECONDS", default_value = "5", value_parser = seconds)]
    pub order_timeout: Duration,

    /// Seconds between two looks for what was left half done, give or take a half
    #[arg(long = "reconcile", env = "RECONCILE_SECONDS", value_name = "RECONCILE_SECONDS", default_value = "1", value_parser = seconds)]
    pub reconcile: Duration,

    /// Where orders are kept.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// How peers are called.
    #[command(flatten)]
    pub peers: PeerSettings,

    /// What every service has.
    #[command(flatten)]
    pub settings: Settings,
}
