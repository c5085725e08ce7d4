//! The settings that every service has. Each is a flag and an environment variable; `--help` lists both.
//!
//! Only this module and the `config` of each service read the environment, with three exceptions. [`crate::run`] reads
//! `LISTEN_FDS`, libraries read `OTEL_…`, `NO_COLOR` and psql's `PG…`, and [`crate::fault_injection`] reads its own variables.
//!
//! A variable that is empty, or has only white space, counts as unset.

mod auth;

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, ValueEnum};
use ipnet::IpNet;
use url::Url;

pub use self::auth::AuthSettings;

/// How a service listens, what it accepts from clients, and what it logs.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Asks the running service for its /readyz instead of starting one, on HOST and PORT, for at most 3 seconds. Exits with 0 if
    /// it is ready, otherwise with 1
    #[arg(long)]
    pub health: bool,

    /// IP address of the network interface to listen on, such as 127.0.0.1, or 0.0.0.0 for all interfaces
    #[arg(long, env, default_value = "127.0.0.1", value_parser = interface)]
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

    /// Maximum spans that wait for the collector; further ones are lost and counted
    #[arg(long, env, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub otel_bsp_max_queue_size: u32,

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
    #[arg(long = "header-timeout", env = "HEADER_TIMEOUT_SECONDS", value_name = "HEADER_TIMEOUT_SECONDS", default_value = "15", value_parser = timeout)]
    pub header_timeout: Duration,

    /// Maximum seconds for a whole body to arrive; then 408
    #[arg(long = "body-timeout", env = "BODY_TIMEOUT_SECONDS", value_name = "BODY_TIMEOUT_SECONDS", default_value = "10", value_parser = timeout)]
    pub body_timeout: Duration,

    /// Maximum seconds to respond to a request; one that takes longer gets 503, a twentieth earlier
    #[arg(long = "request-timeout", env = "REQUEST_TIMEOUT_SECONDS", value_name = "REQUEST_TIMEOUT_SECONDS", default_value = "10", value_parser = timeout)]
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

    /// Proxies whose `X-Forwarded-For` is believed, for the log and for limits per client: addresses and networks such as `10.0.0.0/8`,
    /// separated by commas. If it is not set, the client is the peer of the connection
    #[arg(long, env, value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,

    /// Origins of the web pages that may call the service: `*`, or a list separated by commas
    #[arg(long, env, default_value = "*", value_delimiter = ',', value_parser = origin)]
    pub cors_allowed_origins: Vec<HeaderValue>,

    /// Sign-in.
    #[command(flatten)]
    pub auth: AuthSettings,
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
    #[arg(long = "peer-connect-timeout", env = "PEER_CONNECT_TIMEOUT_SECONDS", value_name = "PEER_CONNECT_TIMEOUT_SECONDS", default_value = "1", value_parser = timeout)]
    pub connect_timeout: Duration,

    /// Maximum seconds of a call to a peer, its whole response included
    #[arg(long = "peer-timeout", env = "PEER_TIMEOUT_SECONDS", value_name = "PEER_TIMEOUT_SECONDS", default_value = "2", value_parser = timeout)]
    pub timeout: Duration,

    /// Maximum seconds that a connection to a peer is used, up to 25 % less at random. Then new calls open new connections, which
    /// a balancer can lead to new replicas
    #[arg(long = "peer-connection-max-age", env = "PEER_CONNECTION_MAX_AGE_SECONDS", value_name = "PEER_CONNECTION_MAX_AGE_SECONDS", default_value = "30", value_parser = timeout)]
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
    #[arg(
        long = "peer-max-answer-bytes",
        env = "PEER_MAX_ANSWER_BYTES",
        value_name = "PEER_MAX_ANSWER_BYTES",
        default_value_t = 4 << 20,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 30)
    )]
    pub max_answer_bytes: usize,
}

/// Where a service stores its rows.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// PostgreSQL database of this service alone, `postgres://name:password@host/database`. If it is not set, the store is in
    /// memory, and a restart loses all rows
    #[arg(long, env, hide_env_values = true)]
    pub database_url: Option<DatabaseUrl>,

    /// Runs the migrations that the database lacks, and exits. The role needs the privileges to create tables; then the role of
    /// the service needs none
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub migrate_only: bool,

    /// Maximum connections in the pool. Two more are opened when needed: one for the check of /readyz, one to retry statements
    /// whose rows are locked
    #[arg(long, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub database_connections: u32,

    /// Maximum seconds to wait for a free connection; then 503
    #[arg(long = "database-acquire", env = "DATABASE_ACQUIRE_SECONDS", value_name = "DATABASE_ACQUIRE_SECONDS", default_value = "1", value_parser = timeout)]
    pub database_acquire: Duration,

    /// Maximum seconds of a statement, its waits for locks included; then 503. Keep it below the caller's `PEER_TIMEOUT_SECONDS`
    #[arg(long = "database-statement", env = "DATABASE_STATEMENT_SECONDS", value_name = "DATABASE_STATEMENT_SECONDS", default_value = "1", value_parser = timeout)]
    pub database_statement: Duration,
}

/// The URL of a database. It may contain a password, so `Debug` hides it. It is parsed later, because clap repeats a value that it
/// cannot parse.
#[derive(Clone)]
pub struct DatabaseUrl(pub(crate) String);

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

/// Variables that libraries read and do not check. OpenTelemetry's would replace a bad value by its default, keep a core busy, or
/// run out of memory. sqlx would not verify the server.
const LIBRARY_VARIABLES: [LibraryVariable; 7] = {
    const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    const SAMPLERS: [&str; 6] = [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ];
    const MILLISECONDS: fn(&str) -> bool = |text| text.parse().is_ok_and(|ms| (1..=86_400_000).contains(&ms));
    const SPANS: fn(&str) -> bool = |text| text.parse().is_ok_and(|spans| (1..=1_000_000).contains(&spans));
    [
        ("OTEL_TRACES_SAMPLER", |text| SAMPLERS.contains(&text), "a sampler such as parentbased_traceidratio"),
        (
            "OTEL_TRACES_SAMPLER_ARG",
            |text| text.parse().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio)),
            "a number from 0 to 1",
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", MILLISECONDS, "a number of milliseconds from 1 to 86400000"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", MILLISECONDS, "a number of milliseconds from 1 to 86400000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", MILLISECONDS, "a number of milliseconds from 1 to 86400000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", SPANS, "a number of spans from 1 to 1000000"),
        ("PGSSLMODE", |text| SSL_MODES.contains(&text), "an sslmode such as verify-full"),
    ]
};

/// The name of a variable, a function that returns whether a value is valid, and which values are.
type LibraryVariable = (&'static str, fn(&str) -> bool, &'static str);

/// Parses the settings of the process from its arguments and its environment. If one is invalid, the process ends with an error
/// that names it.
pub fn parse<T: Parser>() -> T {
    let is_empty = |value: &OsString| value.to_string_lossy().trim().is_empty();
    let mut command = T::command().mut_args(|arg| match arg.get_env().and_then(env::var_os) {
        Some(value) if is_empty(&value) => arg.env(None::<&str>),
        _ => arg,
    });
    let matches = command.get_matches_mut();
    for (name, is_valid, valid) in LIBRARY_VARIABLES {
        let value = env::var_os(name).filter(|value| !is_empty(value));
        if value.is_some_and(|value| !value.to_str().is_some_and(is_valid)) {
            command.error(ErrorKind::InvalidValue, format!("{name} must be {valid}")).exit();
        }
    }
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
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
    seconds_from("0", text)
}

/// Parses a time limit in seconds: 0.001 to 86400, with fractions. A limit of 0 would fail every request, and PostgreSQL has no
/// unit below a millisecond.
pub fn timeout(text: &str) -> Result<Duration, String> {
    seconds_from("0.001", text)
}

fn seconds_from(least: &str, text: &str) -> Result<Duration, String> {
    let range = least.parse().unwrap_or_default()..=86_400.0;
    let seconds = text.parse().ok().filter(|seconds| range.contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("must be a number of seconds from {least} to 86400"))
}

/// Parses the address of a network interface.
fn interface(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| {
        "HOST must be the IP address of the interface to listen on, such as 127.0.0.1, or 0.0.0.0 for all interfaces. \
         Some shells set HOST to the name of the machine: then unset it"
    })
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

/// Parses an address, or a network in CIDR notation.
fn network(text: &str) -> Result<IpNet, &'static str> {
    let text = text.trim();
    let address = |text: &str| text.parse().map(|address: IpAddr| address.to_canonical().into());
    let network = address(text).or_else(|_| text.parse()).ok();
    let is_mapped =
        |network: &IpNet| matches!(network, IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some());
    network.filter(|network| !is_mapped(network)).ok_or("must be an IP address or a network like 10.0.0.0/8")
}

/// Parses an origin of the header `Origin`, or `*`.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = text == "*" || Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| "must be `*` or an origin like https://shop.example".to_owned())
}

#[cfg(test)]
mod tests {
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
            ("trusted-proxies", "proxy.example"),
            ("trusted-proxies", "10.0.0.0/33"),
            ("trusted-proxies", "10.0.0.1:80"),
            ("trusted-proxies", "::ffff:10.0.0.0/104"),
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
    fn says_what_host_is_for() {
        for host in ["mybox", "localhost", "[::1]", "127.0.0.1:3001"] {
            let error = parse("host", host).expect_err(host);
            assert!(error.contains("HOST must be the IP address") && error.contains("unset it"), "{error}");
        }
        assert!(parse("host", "::1").is_ok());
    }

    #[test]
    fn accepts_fractions_of_seconds_and_lists() {
        assert_eq!(parse("drain", "0.25").unwrap().drain, Duration::from_millis(250));
        let proxies = parse("trusted-proxies", "10.0.0.0/8, ::1, ::ffff:10.0.0.1").unwrap().trusted_proxies;
        assert_eq!(
            proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8", "::1/128", "10.0.0.1/32"]
        );
        let origins = parse("cors-allowed-origins", "https://a.example,http://localhost:8080").unwrap();
        assert_eq!(origins.cors_allowed_origins, ["https://a.example", "http://localhost:8080"]);
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
