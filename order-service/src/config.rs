//! The settings of this service.

use std::path::PathBuf;
use std::time::Duration;

use chassis::config::{DatabaseSettings, PeerSettings, Settings, peer_url, timeout};
use clap::Parser;
use url::Url;

/// order-service: places orders.
#[derive(Debug, Parser)]
#[command(version = chassis::VERSION)]
pub struct Config {
    /// TCP port to listen on; 0 picks a free port
    #[arg(long, env, default_value_t = 3003)]
    pub port: u16,

    /// Base URL of user-service; it may have a path
    #[arg(long, env, default_value = "http://127.0.0.1:3001", value_parser = peer_url)]
    pub user_service_url: Url,

    /// Base URL of product-service; it may have a path
    #[arg(long, env, default_value = "http://127.0.0.1:3002", value_parser = peer_url)]
    pub product_service_url: Url,

    /// Base URL of user-service for browsers, on the page at `/`; by default USER_SERVICE_URL
    #[arg(long, env, value_parser = peer_url)]
    pub public_user_service_url: Option<Url>,

    /// Base URL of product-service for browsers, on the page at `/`; by default PRODUCT_SERVICE_URL
    #[arg(long, env, value_parser = peer_url)]
    pub public_product_service_url: Option<Url>,

    /// Maximum seconds to answer an order; calls to peers end after nine tenths of them, with 503
    #[arg(long = "order-timeout", env = "ORDER_TIMEOUT_SECONDS", value_name = "ORDER_TIMEOUT_SECONDS", default_value = "5", value_parser = timeout)]
    pub order_timeout: Duration,

    /// Seconds between two runs of the reconciler, ±50 %
    #[arg(long = "reconcile", env = "RECONCILE_SECONDS", value_name = "RECONCILE_SECONDS", default_value = "1", value_parser = timeout)]
    pub reconcile: Duration,

    /// File with the private key of this service (PEM, PKCS#8, Ed25519), which signs its tokens for the other services; needed with
    /// AUTH_ISSUER
    #[arg(long, env)]
    pub service_key_file: Option<PathBuf>,

    /// The database.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// How peers are called.
    #[command(flatten)]
    pub peers: PeerSettings,

    /// The settings of every service.
    #[command(flatten)]
    pub settings: Settings,
}
