//! The settings that every service has. Each is a flag and an environment variable of the same name; `--help` lists
//! them all. The only place, with each service's own `config`, that reads the environment (but for `LISTEN_FDS`, which is
//! no setting: [`crate::run`], and what [`crate::fault_injection`] is asked for).

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::Args;
use sqlx::postgres::PgConnectOptions;
use tracing::subscriber::NoSubscriber;
use url::Url;

use crate::telemetry::LogFormat;

/// How a service listens, and what it takes from a client.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Interface to listen on
    #[arg(long, env, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// What to log, as `tracing` filters: `info`, `warn,chassis=debug`
    #[arg(long = "log", env = "RUST_LOG", value_name = "RUST_LOG", default_value = "info")]
    pub rust_log: String,

    /// How log lines look: `text`, `json`, or `auto`, which is text where stdout is a terminal and JSON elsewhere
    #[arg(long, env, default_value = "auto")]
    pub log_format: LogFormat,

    /// Requests that went well for which there is a line in a second; the rest is counted. What failed, or took a second, always
    /// has one
    #[arg(long, env, default_value_t = 100)]
    pub log_requests_per_second: u32,

    /// OpenTelemetry collector that traces are sent to, by OTLP over HTTP: `http://collector:4318`; if not set, nothing is
    /// traced. The other `OTEL_` variables hold too: `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`
    #[arg(long, env, value_parser = peer_url)]
    pub otel_exporter_otlp_endpoint: Option<Url>,

    /// Connections open at once (and no more than three in four of the files that the system lets a process open); further
    /// ones wait to be accepted
    #[arg(long, env, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Requests in work at once; beyond it 503 at once (health and metrics are always answered)
    #[arg(long, env, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_in_flight: u32,

    /// Largest header, in bytes; beyond it 431
    #[arg(long, env, default_value_t = 16 << 10, value_parser = clap::value_parser!(u32).range(1024..=1 << 20))]
    pub max_header_bytes: u32,

    /// Largest body, in bytes; beyond it 413
    #[arg(long, env, default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(1024..=64 << 20))]
    pub max_body_bytes: u32,

    /// Seconds for a header to arrive, for a connection to be idle, and for a client to take nothing of its answer; then
    /// the connection is closed
    #[arg(long = "header-timeout", env = "HEADER_TIMEOUT_SECONDS", value_name = "HEADER_TIMEOUT_SECONDS", default_value = "15", value_parser = seconds)]
    pub header_timeout: Duration,

    /// Seconds for a whole body to arrive; then 408
    #[arg(long = "body-timeout", env = "BODY_TIMEOUT_SECONDS", value_name = "BODY_TIMEOUT_SECONDS", default_value = "10", value_parser = seconds)]
    pub body_timeout: Duration,

    /// Seconds for a request to be answered; then 503
    #[arg(long = "request-timeout", env = "REQUEST_TIMEOUT_SECONDS", value_name = "REQUEST_TIMEOUT_SECONDS", default_value = "10", value_parser = seconds)]
    pub request_timeout: Duration,

    /// Seconds between SIGTERM, when /readyz turns 503, and no longer accepting connections
    #[arg(long = "drain", env = "DRAIN_SECONDS", value_name = "DRAIN_SECONDS", default_value = "2", value_parser = seconds)]
    pub drain: Duration,

    /// Seconds, at the end, for what is half-way in or out: half a request, an answer that its client is slow to take
    #[arg(long = "linger", env = "LINGER_SECONDS", value_name = "LINGER_SECONDS", default_value = "1", value_parser = seconds)]
    pub linger: Duration,

    /// Seconds for all that runs to be finished when the service ends
    #[arg(long = "shutdown", env = "SHUTDOWN_SECONDS", value_name = "SHUTDOWN_SECONDS", default_value = "10", value_parser = seconds)]
    pub shutdown: Duration,

    /// Origins of the browsers' pages that may call: `*`, or a list parted by commas
    #[arg(long, env, default_value = "*", value_delimiter = ',', value_parser = origin)]
    pub cors_allowed_origins: Vec<HeaderValue>,
}

/// How a service calls the others.
#[derive(Args, Clone, Debug)]
pub struct PeerSettings {
    /// Seconds for a connection to a peer to be made
    #[arg(long = "peer-connect-timeout", env = "PEER_CONNECT_TIMEOUT_SECONDS", value_name = "PEER_CONNECT_TIMEOUT_SECONDS", default_value = "1", value_parser = seconds)]
    pub connect_timeout: Duration,

    /// Seconds for a call to a peer, its answer included
    #[arg(long = "peer-timeout", env = "PEER_TIMEOUT_SECONDS", value_name = "PEER_TIMEOUT_SECONDS", default_value = "2", value_parser = seconds)]
    pub timeout: Duration,

    /// Calls waiting for the answers of one peer; beyond it 503 at once
    #[arg(
        id = "peer_max_in_flight",
        long = "peer-max-in-flight",
        env = "PEER_MAX_IN_FLIGHT",
        value_name = "PEER_MAX_IN_FLIGHT",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_in_flight: u32,

    /// Largest answer taken from a peer, in bytes
    #[arg(long = "peer-max-answer-bytes", env = "PEER_MAX_ANSWER_BYTES", value_name = "PEER_MAX_ANSWER_BYTES", default_value_t = 4 << 20)]
    pub max_answer_bytes: usize,
}

/// Where a service keeps what it knows.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL database of this service alone, `postgres://name:password@host/database`; if not set, the store is in
    /// memory, and a restart forgets everything
    #[arg(long, env, hide_env_values = true)]
    pub database_url: Option<DatabaseUrl>,

    /// Connections to the database, besides one by which /readyz asks for it and one for steps that rows are kept from
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub database_connections: u32,

    /// Seconds to wait for one of them to be free; then 503
    #[arg(long = "database-acquire", env = "DATABASE_ACQUIRE_SECONDS", value_name = "DATABASE_ACQUIRE_SECONDS", default_value = "1", value_parser = seconds)]
    pub database_acquire: Duration,

    /// Seconds for a statement, what it waits for included; then 503. (Less than another service waits for the answer.)
    #[arg(long = "database-statement", env = "DATABASE_STATEMENT_SECONDS", value_name = "DATABASE_STATEMENT_SECONDS", default_value = "1", value_parser = seconds)]
    pub database_statement: Duration,
}

/// The address of a database. It may hold a password, so nothing shows it: not `Debug`, and not clap, which would repeat
/// one that it cannot read; so it is read later.
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
    /// Where the database is; `None` for a store in memory.
    ///
    /// # Errors
    /// If that is no address of a PostgreSQL database.
    pub fn url(&self) -> Result<Option<PgConnectOptions>, String> {
        let Some(DatabaseUrl(text)) = &self.database_url else { return Ok(None) };
        let known = text.starts_with("postgres://") || text.starts_with("postgresql://");
        // sqlx writes a parameter that it does not know to the log, and its value: a misspelt password's too.
        let parsed = tracing::subscriber::with_default(NoSubscriber::new(), || text.parse());
        let options = parsed.ok().filter(|_| known);
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

/// Reads a time in seconds, fractions allowed: 0 to a day.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be a number of seconds from 0 to 86400".to_owned())
}

/// Reads the address of a peer. Its path is kept: `http://users.internal/api` is asked at `/api/users/1`.
pub fn peer_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.scheme() != "http" || url.host().is_none() {
        return Err("must start with http:// and name a host (TLS is a proxy's work here)".to_owned());
    }
    let named = !url.username().is_empty() || url.password().is_some();
    if url.query().is_some() || url.fragment().is_some() || named {
        return Err("must be no more than a host, a port and a path".to_owned());
    }
    Ok(url)
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let sane = text == "*" || Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    let value = HeaderValue::from_str(text).ok().filter(|_| sane);
    value.ok_or_else(|| "must be `*` or an origin like https://shop.example".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::sync::Mutex;

    use clap::FromArgMatches;

    use super::*;

    /// What `--flag value` makes of the settings, or why not.
    fn given(flag: &str, value: &str) -> Result<Settings, String> {
        let command = Settings::augment_args(clap::Command::new("tiny")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(["tiny", &format!("--{flag}={value}")]);
        matches.and_then(|matches| Settings::from_arg_matches(&matches)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_bounds_of_the_contract_are_the_defaults() {
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

    /// As psql has it, which finds the socket by itself as well.
    #[test]
    fn the_address_of_a_database_names_nobody_and_means_who_runs_the_service() {
        let me = std::process::Command::new("id").arg("-un").output().expect("there is an id").stdout;
        let me = std::env::var("PGUSER").unwrap_or_else(|_| String::from_utf8_lossy(&me).trim().to_owned());
        let database_url = Some(DatabaseUrl("postgres:///users".to_owned()));
        let url = DatabaseSettings { database_url, ..defaults() }.url().expect("an address").expect("not memory");
        assert_eq!((url.get_username(), url.get_database()), (&*me, Some("users")));
    }

    #[test]
    fn a_bad_setting_is_named() {
        for (flag, bad) in [
            ("host", "localhost"),
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
            let refused = given(flag, bad).err().unwrap_or_else(|| panic!("--{flag}={bad} was taken"));
            assert!(refused.contains(flag), "{refused}");
        }
    }

    #[test]
    fn times_may_have_fractions_and_origins_may_be_several() {
        assert_eq!(given("drain", "0.25").unwrap().drain, Duration::from_millis(250));
        let origins = given("cors-allowed-origins", "https://a.example,http://localhost:8080").unwrap();
        assert_eq!(origins.cors_allowed_origins, ["https://a.example", "http://localhost:8080"]);
    }

    #[test]
    fn a_bad_address_of_a_database_is_refused_without_being_repeated() {
        let settings = |url: &str| DatabaseSettings { database_url: url.parse().ok(), ..defaults() };
        for good in ["postgres://me:secret@db.example/users", "postgresql://db.example/users"] {
            assert!(settings(good).url().unwrap().is_some());
        }
        for bad in ["", "users", "mysql://me:secret@db.example/users", "postgres://me:secret@db.example:port/users"] {
            let refused = settings(bad).url().expect_err(bad);
            assert!(refused.contains("DATABASE_URL") && !refused.contains("secret"), "{refused}");
            assert!(!format!("{:?}", settings(bad)).contains("secret"));
        }
    }

    #[test]
    fn nothing_of_the_address_of_a_database_is_logged() {
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
    fn the_address_of_a_peer_is_a_host_and_perhaps_a_path() {
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
