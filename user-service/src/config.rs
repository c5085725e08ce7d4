//! The settings of this service.

use std::path::PathBuf;

use chassis::config::{DatabaseSettings, Settings};
use clap::Parser;
use clap::builder::BoolishValueParser;

use crate::user;

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

    /// File with the public keys of order-service (PEM, Ed25519). While sign-in is on, its tokens are verified with them
    #[arg(long, env)]
    pub service_keys_file: Option<PathBuf>,

    /// Files with the private keys of access tokens (PEM, PKCS#8, Ed25519), separated by commas. The first signs, all are
    /// published. With them user-service is the issuer; if they are not set, another provider is
    #[arg(long, env, value_delimiter = ',', requires = "auth_issuer", value_parser = file)]
    pub signing_key_files: Vec<PathBuf>,

    /// Usernames that get the role `admin`, separated by commas. Other users cannot take them. Needs SIGNING_KEY_FILES
    #[arg(long, env, value_delimiter = ',', requires = "signing_key_files", value_parser = username)]
    pub auth_admins: Vec<String>,

    /// File with the password of the admins that do not exist yet. They are created at the start
    #[arg(long, env, requires = "auth_admins", value_parser = file)]
    pub auth_admin_password_file: Option<PathBuf>,

    /// The database.
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// The settings that every service has.
    #[command(flatten)]
    pub settings: Settings,
}

/// Parses the path of a file. Blanks around it are not part of it.
fn file(text: &str) -> Result<PathBuf, &'static str> {
    Some(text.trim()).filter(|path| !path.is_empty()).map(PathBuf::from).ok_or("must be the path of a file")
}

/// Parses a username by the rules of an account.
fn username(text: &str) -> Result<String, String> {
    user::username(text.trim().to_owned()).map_err(|detail| detail.to_string())
}
