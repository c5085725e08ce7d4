//! The settings of this service.

use chassis::config::{DatabaseSettings, PeerSettings, Settings, peer_url};
use clap::Parser;
use clap::builder::BoolishValueParser;
use url::Url;

/// product-service: what there is to sell.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Port to listen on; 0 takes a free one
    #[arg(long, env, default_value_t = 3002)]
    pub port: u16,

    /// Whether a store in memory starts with two products
    #[arg(long, env, default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub seed: bool,

    /// Where user-service is; a path in it is kept
    #[arg(long, env, default_value = "http://127.0.0.1:3001", value_parser = peer_url)]
    pub user_service_url: Url,

    /// How peers are called.
    #[command(flatten)]
    pub peers: PeerSettings,

    /// Where products and reservations are kept.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// What every service has.
    #[command(flatten)]
    pub settings: Settings,
}
