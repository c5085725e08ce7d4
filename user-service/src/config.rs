//! The settings of this service.

use chassis::config::{DatabaseSettings, Settings};
use clap::Parser;
use clap::builder::BoolishValueParser;

/// user-service: who there is.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Port to listen on; 0 takes a free one
    #[arg(long, env, default_value_t = 3001)]
    pub port: u16,

    /// Whether a store in memory starts with two users
    #[arg(long, env, default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub seed: bool,

    /// Passwords hashed at once; 0 is half of the cores
    #[arg(long, env, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    pub password_hashes_at_once: u32,

    /// Passwords waiting to be hashed; beyond it 503 at once
    #[arg(long, env, default_value_t = 32, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub password_hashes_waiting: u32,

    /// Where the users are kept.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// What every service has.
    #[command(flatten)]
    pub settings: Settings,
}
