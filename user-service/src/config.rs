//! The settings of this service.

use chassis::config::{DatabaseSettings, Settings};
use clap::Parser;
use clap::builder::BoolishValueParser;

/// user-service: users and their accounts.
#[derive(Debug, Parser)]
#[command(version = chassis::VERSION)]
pub struct Config {
    /// TCP port to listen on; 0 picks a free port
    #[arg(long, env, default_value_t = 3001)]
    pub port: u16,

    /// Adds two users to a store in memory at the start
    #[arg(long, env, default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub seed: bool,

    /// Maximum passwords hashed concurrently; 0 is half of the cores
    #[arg(long, env, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    pub password_hashes_at_once: u32,

    /// Maximum passwords that wait to be hashed; further requests get 503
    #[arg(long, env, default_value_t = 32, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub password_hashes_waiting: u32,

    /// The database.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// The settings that every service has.
    #[command(flatten)]
    pub settings: Settings,
}
