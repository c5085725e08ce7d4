//! The settings that every service has. Each is a flag and an environment variable of the same name, listed by `--help`.
//!
//! Only this module and the `config` of each service read the environment, with three exceptions. [`crate::run`] reads
//! `LISTEN_FDS`, libraries read `OTEL_…` and `NO_COLOR`, and [`crate::fault_injection`] reads its own variables.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};
use sqlx::postgres::PgConnectOptions;
use tracing::subscriber::NoSubscriber;
use url::Url;

/// How a service listens, what it accepts from clients, and what it logs.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address of the network interface to listen on
    #[arg(long, env, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// Which events to log, as a `tracing` filter such as `info` or `warn,chassis=debug`
    #[arg(long = "log", env = "RUST_LOG", value_name = "RUST_LOG", default_value = "info")]
    pub rust_log: String,

    /// Format of log lines
    #[arg(long, env, default_value = "auto")]
    pub log_format: LogFormat,

    /// Maximum successful requests logged per second; the rest are counted. Requests that fail or take a second or more are
    /// always logged
    #[arg(long, env, default_value_t = 100)]
    pub log_requests_per_second: u32,

    /// URL of the OpenTelemetry collector that gets the traces, by OTLP over HTTP: `http://collector:4318`. If it is not set,
    /// nothing is traced. Other `OTEL_` variables apply too, such as `OTEL_SERVICE_NAME` and `OTEL_TRACES_SAMPLER`
    #[arg(long, env, value_parser = peer_url)]
    pub otel_exporter_otlp_endpoint: Option<Url>,

    /// Maximum open connections, and at most three quarters of the process's file limit; further ones wait to be accepted
    #[arg(long, env, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Maximum requests in flight; further ones get 503 immediately. Health checks and metrics are always answered
    #[arg(long, env, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_in_flight: u32,

    /// Maximum size of a request's header in bytes; then 431
    #[arg(long, env, default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(1024..=1 << 20))]
    pub max_header_bytes: u32,

    /// Maximum size of a request's body in bytes; then 413
    #[arg(long, env, default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(1024..=64 << 20))]
    pub max_body_bytes: u32,

    /// Maximum seconds for a header to arrive, for a connection to be idle, and for a client to read nothing of its response;
    /// then the connection is closed
    #[arg(long = "header-timeout", env = "HEADER_TIMEOUT_SECONDS", value_name = "HEADER_TIMEOUT_SECONDS", default_value = "15", value_parser = seconds)]
    pub header_timeout: Duration,

    /// Maximum seconds for a whole body to arrive; then 408
    #[arg(long = "body-timeout", env = "BODY_TIMEOUT_SECONDS", value_name = "BODY_TIMEOUT_SECONDS", default_value = "10", value_parser = seconds)]
    pub body_timeout: Duration,

    /// Maximum seconds to respond to a request; one that takes longer gets 503, a twentieth earlier
    #[arg(long = "request-timeout", env = "REQUEST_TIMEOUT_SECONDS", value_name = "REQUEST_TIMEOUT_SECONDS", default_value = "10", value_parser = seconds)]
    pub request_timeout: Duration,

    /// Seconds between SIGTERM, when /readyz turns 503, and the end of accepting connections
    #[arg(long = "drain", env = "DRAIN_SECONDS", value_name = "DRAIN_SECONDS", default_value = "2", value_parser = seconds)]
    pub drain: Duration,

    /// Seconds, during shutdown, for a half-sent request to arrive and for a client to read its response
    #[arg(long = "linger", env = "LINGER_SECONDS", value_name = "LINGER_SECONDS", default_value = "1", value_parser = seconds)]
    pub linger: Duration,

    /// Maximum seconds, during shutdown, to finish all work in flight
    #[arg(long = "shutdown", env = "SHUTDOWN_SECONDS", value_name = "SHUTDOWN_SECONDS", default_value = "10", value_parser = seconds)]
    pub shutdown: Duration,

    /// Origins of the web pages that may call the service: `*`, or a list separated by commas
    #[arg(long, env, default_value = "*", value_delimiter = ',', value_parser = origin)]
    pub cors_allowed_origins: Vec<HeaderValue>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text if stdout is a terminal, otherwise JSON
    Auto,
    /// Text for people
    Text,
    /// One JSON object a line, for programs
    Json,
}

/// How a service calls its peers.
#[derive(Args, Clone, Debug)]
pub struct PeerSettings {
    /// Maximum seconds to connect to a peer
    #[arg(long = "peer-connect-timeout", env = "PEER_CONNECT_TIMEOUT_SECONDS", value_name = "PEER_CONNECT_TIMEOUT_SECONDS", default_value = "1", value_parser = seconds)]
    pub connect_timeout: Duration,

    /// Maximum seconds of a call to a peer, its whole response included
    #[arg(long = "peer-timeout", env = "PEER_TIMEOUT_SECONDS", value_name = "PEER_TIMEOUT_SECONDS", default_value = "2", value_parser = seconds)]
    pub timeout: Duration,

    /// Maximum seconds that a connection to a peer is used, up to 25 % less at random. Then new calls open new connections, which
    /// a balancer can lead to new replicas
    #[arg(long = "peer-connection-max-age", env = "PEER_CONNECTION_MAX_AGE_SECONDS", value_name = "PEER_CONNECTION_MAX_AGE_SECONDS", default_value = "30", value_parser = seconds)]
    pub connection_max_age: Duration,

    /// Maximum calls that wait for one peer; further ones fail immediately. For a slow peer the limit is lower: what it can answer
    /// in time
    #[arg(
        id = "peer_max_in_flight",
        long = "peer-max-in-flight",
        env = "PEER_MAX_IN_FLIGHT",
        value_name = "PEER_MAX_IN_FLIGHT",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_in_flight: u32,

    /// Maximum size of a peer's response in bytes
    #[arg(long = "peer-max-answer-bytes", env = "PEER_MAX_ANSWER_BYTES", value_name = "PEER_MAX_ANSWER_BYTES", default_value_t = 4 << 20)]
    pub max_answer_bytes: usize,
}

/// Where a service stores its rows.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL database of this service alone, `postgres://name:password@host/database`. If it is not set, the store is in
    /// memory, and a restart loses all rows
    #[arg(long, env, hide_env_values = true)]
    pub database_url: Option<DatabaseUrl>,

    /// Maximum connections in the pool. Two more are opened when needed: one for the check of /readyz, one to retry statements
    /// whose rows are locked
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub database_connections: u32,

    /// Maximum seconds to wait for a free connection; then 503
    #[arg(long = "database-acquire", env = "DATABASE_ACQUIRE_SECONDS", value_name = "DATABASE_ACQUIRE_SECONDS", default_value = "1", value_parser = seconds)]
    pub database_acquire: Duration,

    /// Maximum seconds of a statement, its waits for locks included; then 503. Keep it below the caller's `PEER_TIMEOUT_SECONDS`
    #[arg(long = "database-statement", env = "DATABASE_STATEMENT_SECONDS", value_name = "DATABASE_STATEMENT_SECONDS", default_value = "1", value_parser = seconds)]
    pub database_statement: Duration,
}

/// The URL of a database. It may contain a password, so `Debug` hides it. It is parsed later, because clap repeats a value that it
/// cannot parse.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl FromStr for DatabaseUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://…")
    }
}

impl DatabaseSettings {
    /// Returns the options to connect to the database; `None` for a store in memory.
    ///
    /// # Errors
    /// If `DATABASE_URL` is not the URL of a PostgreSQL database.
    pub fn url(&self) -> Result<Option<PgConnectOptions>, String> {
        let Some(DatabaseUrl(text)) = &self.database_url else { return Ok(None) };
        let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        // sqlx logs a parameter that it does not know with its value. That may be a password whose name is misspelt.
        let parsed = tracing::subscriber::with_default(NoSubscriber::new(), || text.parse());
        let options = parsed.ok().filter(|_| is_postgres);
        options.map(Some).ok_or_else(|| "DATABASE_URL must be postgres://name:password@host/database".to_owned())
    }
}

/// Returns the default settings without reading the environment; tests set what they need themselves.
///
/// # Panics
/// If a setting has no default.
pub fn defaults<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("defaults").no_binary_name(true));
    let command = command.mut_args(|arg| arg.env(None::<&str>));
    T::from_arg_matches(&command.get_matches_from::<_, &str>([])).expect("every setting has a default")
}

/// Parses a time in seconds: 0 to 86400, with fractions.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds from 0 to 86400".to_owned())
}

/// Parses the URL of a peer: `http://`, a host, and optionally a port and a path. The path is kept, so a call to
/// `http://users.internal/api` goes to `/api/users/1`.
pub fn peer_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.scheme() != "http" || url.host().is_none() {
        return Err("must start with http:// and name a host (for TLS use a proxy)".to_owned());
    }
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    if url.query().is_some() || url.fragment().is_some() || has_credentials {
        return Err("must have only a host, a port and a path".to_owned());
    }
    Ok(url)
}

/// Parses an origin of the header `Origin`, or `*`.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = text == "*" || Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| "must be `*` or an origin like https://shop.example".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::sync::Mutex;

    use clap::FromArgMatches;

    use super::*;

    /// Parses the settings from one flag.
    fn parse(flag: &str, value: &str) -> Result<Settings, String> {
        let command = Settings::augment_args(clap::Command::new("tiny")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(["tiny", &format!("--{flag}={value}")]);
        matches.and_then(|matches| Settings::from_arg_matches(&matches)).map_err(|error| error.to_string())
    }

    #[test]
    fn has_the_defaults_of_the_contract() {
        let Settings { max_body_bytes, max_header_bytes, header_timeout, body_timeout, request_timeout, drain, .. } =
            defaults();
        assert_eq!((max_body_bytes, max_header_bytes), (65_536, 16_384));
        assert_eq!([header_timeout, body_timeout, request_timeout, drain].map(|time| time.as_secs()), [15, 10, 10, 2]);
        let Settings { host, shutdown, cors_allowed_origins, .. } = defaults();
        assert_eq!(
            (host.to_string(), shutdown.as_secs(), cors_allowed_origins),
            ("127.0.0.1".to_owned(), 10, vec![HeaderValue::from_static("*")])
        );
    }

    /// As psql does.
    #[test]
    fn connects_as_the_user_of_the_process_if_the_url_names_none() {
        let me = std::process::Command::new("id").arg("-un").output().expect("there is an id").stdout;
        let me = std::env::var("PGUSER").unwrap_or_else(|_| String::from_utf8_lossy(&me).trim().to_owned());
        let database_url = Some(DatabaseUrl("postgres:///users".to_owned()));
        let url = DatabaseSettings { database_url, ..defaults() }.url().expect("a valid URL").expect("a database");
        assert_eq!((url.get_username(), url.get_database()), (&*me, Some("users")));
    }

    #[test]
    fn names_the_setting_that_is_invalid() {
        for (flag, bad) in [
            ("host", "localhost"),
            ("log-format", "xml"),
            ("max-connections", "0"),
            ("max-header-bytes", "-1"),
            ("max-body-bytes", "64k"),
            ("header-timeout", "-1"),
            ("body-timeout", "NaN"),
            ("request-timeout", "inf"),
            ("drain", "86401"),
            ("shutdown", ""),
            ("cors-allowed-origins", "shop.example"),
            ("cors-allowed-origins", "https://shop.example/"),
            ("cors-allowed-origins", "https://a.example, https://b.example"),
            ("cors-allowed-origins", ""),
        ] {
            let error = parse(flag, bad).err().unwrap_or_else(|| panic!("--{flag}={bad} was accepted"));
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn accepts_fractions_of_seconds_and_several_origins() {
        assert_eq!(parse("drain", "0.25").unwrap().drain, Duration::from_millis(250));
        let origins = parse("cors-allowed-origins", "https://a.example,http://localhost:8080").unwrap();
        assert_eq!(origins.cors_allowed_origins, ["https://a.example", "http://localhost:8080"]);
    }

    #[test]
    fn rejects_a_bad_database_url_without_repeating_it() {
        let settings = |url: &str| DatabaseSettings { database_url: url.parse().ok(), ..defaults() };
        for good in ["postgres://me:secret@db.example/users", "postgresql://db.example/users"] {
            assert!(settings(good).url().unwrap().is_some());
        }
        for bad in ["", "users", "mysql://me:secret@db.example/users", "postgres://me:secret@db.example:port/users"] {
            let error = settings(bad).url().expect_err(bad);
            assert!(error.contains("DATABASE_URL") && !error.contains("secret"), "{error}");
            assert!(!format!("{:?}", settings(bad)).contains("secret"));
        }
    }

    #[test]
    fn logs_nothing_of_the_database_url() {
        let (mut log, writer) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, || {
            let address = "postgres://me@db.example/users?pasword=secret";
            let settings = DatabaseSettings { database_url: address.parse().ok(), ..defaults() };
            assert!(settings.url().unwrap().is_some());
        });
        let mut logged = String::new();
        log.read_to_string(&mut logged).unwrap();
        assert_eq!(logged, "");
    }

    #[test]
    fn accepts_a_peer_url_of_a_host_and_a_path_only() {
        for good in ["http://users:3001", "http://users.internal/api", "http://[::1]:3001/"] {
            assert!(peer_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "users:3001",
            "//users",
            "https://users",
            "ftp://users",
            "http://",
            "http://users?x=1",
            "http://users#x",
            "http://me@users",
            "http://:secret@users",
        ] {
            assert!(peer_url(bad).is_err(), "{bad}");
        }
    }
}
