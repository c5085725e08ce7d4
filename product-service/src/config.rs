//! The settings of this service.

use std::path::PathBuf;

use chassis::config::{DatabaseSettings, PeerSettings, Settings, peer_url};
use clap::Parser;
use clap::builder::BoolishValueParser;
use url::Url;

/// product-service: products, their stock, and the reservations on it.
#[derive(Debug, Parser)]
#[command(version = chassis::VERSION)]
pub struct Config {
    /// Port to listen on; 0 chooses a free port
    #[arg(long, env, default_value_t = 3002)]
    pub port: u16,

    /// Adds two products to a store in memory at the start
    #[arg(long, env, default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub seed: bool,

    /// URL of user-service; a path in it is kept
    #[arg(long, env, default_value = "http://127.0.0.1:3001", value_parser = peer_url)]
    pub user_service_url: Url,

    /// File with the public keys of order-service (PEM, Ed25519). While sign-in is on, its tokens are verified with them
    #[arg(long, env)]
    pub service_keys_file: Option<PathBuf>,

    /// The settings for calls to peers.
    #[command(flatten)]
    pub peers: PeerSettings,

    /// The settings of the store.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// The settings that every service has.
    #[command(flatten)]
    pub settings: Settings,
}
