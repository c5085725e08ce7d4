//! Parses `DATABASE_URL`.
//!
//! sqlx ignores a parameter that it does not know, so a misspelt `sslmode` would turn TLS off. It also logs the value, which may
//! be a password whose name is misspelt.

use std::fs;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::config::{DatabaseSettings, DatabaseUrl};

/// The parameters that sqlx knows, each with the other names that it accepts.
const PARAMETERS: [&[&str]; 13] = [
    &["sslmode", "ssl-mode"],
    &["sslrootcert", "ssl-root-cert", "ssl-ca"],
    &["sslcert", "ssl-cert"],
    &["sslkey", "ssl-key"],
    &["statement-cache-capacity"],
    &["host"],
    &["hostaddr"],
    &["port"],
    &["dbname"],
    &["user"],
    &["password"],
    &["application_name"],
    &["options"],
];

impl DatabaseSettings {
    /// Returns the options to connect to the database; `None` for a store in memory.
    ///
    /// # Errors
    /// If `DATABASE_URL` is not the URL of a PostgreSQL database, or one of its parameters is unknown, is given twice, or has an
    /// invalid value. The error repeats no value: it may be a password.
    pub fn url(&self) -> Result<Option<PgConnectOptions>, String> {
        self.database_url.as_ref().map(|DatabaseUrl(text)| parse(text)).transpose()
    }
}

fn parse(text: &str) -> Result<PgConnectOptions, String> {
    let malformed = || "DATABASE_URL must be postgres://name:password@host/database".to_owned();
    let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    let url = Url::parse(text).ok().filter(|_| is_postgres).ok_or_else(malformed)?;
    // After such a character in a password, the rest would be parsed as a parameter, and the error below would repeat it.
    if url.fragment().is_some() || url.query().is_some_and(|query| query.contains('@')) {
        return Err("DATABASE_URL must have #, ? and @ in its password or parameters as %23, %3F and %40".to_owned());
    }
    let mut names: Vec<String> = Vec::new();
    for (name, value) in url.query_pairs() {
        let aliases = PARAMETERS.iter().find(|aliases| aliases.contains(&&*name));
        let is_setting = name.strip_prefix("options[").is_some_and(|setting| setting.ends_with(']'));
        let name = match aliases {
            Some(aliases) => aliases[0].to_owned(),
            None if is_setting => name.into_owned(),
            None => return Err(format!("DATABASE_URL has the parameter {name:?}, which does not exist")),
        };
        if names.contains(&name) {
            return Err(format!("DATABASE_URL has the parameter {name:?} twice"));
        }
        check(&name, &value).map_err(|reason| format!("the parameter {name:?} of DATABASE_URL {reason}"))?;
        names.push(name);
    }
    let has = |name: &str| names.iter().any(|known| known == name);
    if has("sslcert") != has("sslkey") {
        return Err("DATABASE_URL must have both of the parameters \"sslcert\" and \"sslkey\", or none".to_owned());
    }
    let options: PgConnectOptions = text.parse().map_err(|_| malformed())?;
    // libpq does the following two; sqlx does not.
    let is_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    Ok(match options.get_ssl_mode() {
        _ if is_socket => options.ssl_mode(PgSslMode::Disable),
        PgSslMode::Require if has("sslrootcert") => options.ssl_mode(PgSslMode::VerifyCa),
        _ => options,
    })
}

/// Checks the value of one parameter. A file is read here, because later its absence would look like a network error.
fn check(name: &str, value: &str) -> Result<(), &'static str> {
    const INVALID: &str = "has an invalid value";
    match name {
        "sslrootcert" | "sslcert" | "sslkey" => {
            let pem = if value.contains("-----BEGIN") { Ok(value.to_owned()) } else { fs::read_to_string(value) };
            let pem = pem.map_err(|_| "names a file that cannot be read")?;
            let block = if name == "sslkey" { "PRIVATE KEY-----" } else { "-----BEGIN CERTIFICATE-----" };
            if !pem.contains(block) || pem.contains("ENCRYPTED") {
                return Err("names a file without a PEM block, or with an encrypted one");
            }
        }
        "port" if value == "0" => return Err(INVALID),
        "options" | "password" => {}
        _ if value.is_empty() => return Err(INVALID),
        _ => {
            let mut alone = Url::parse("postgres://localhost").map_err(|_| INVALID)?;
            alone.query_pairs_mut().append_pair(name, value);
            alone.as_str().parse::<PgConnectOptions>().map_err(|_| INVALID)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::sync::Mutex;

    use super::*;
    use crate::config::defaults;

    fn settings(url: &str) -> DatabaseSettings {
        DatabaseSettings { database_url: url.parse().ok(), ..defaults() }
    }

    /// As psql does.
    #[test]
    fn connects_as_the_user_of_the_process_if_the_url_names_none() {
        let me = std::process::Command::new("id").arg("-un").output().expect("there is an id").stdout;
        let me = std::env::var("PGUSER").unwrap_or_else(|_| String::from_utf8_lossy(&me).trim().to_owned());
        let url = settings("postgres:///users").url().expect("a valid URL").expect("a database");
        assert_eq!((url.get_username(), url.get_database()), (&*me, Some("users")));
    }

    #[test]
    fn accepts_every_parameter_that_sqlx_knows() {
        for good in [
            "postgres://me:s3cret@db.example/users",
            "postgresql://db.example/users",
            "postgres://db.example/users?sslmode=require",
            "postgres://db.example/users?ssl-mode=verify-full&statement-cache-capacity=7",
            "postgres:///?host=db.example&port=5433&dbname=users&user=me&password=s3cret&application_name=mine",
            "postgres:///users?hostaddr=127.0.0.1&options=-c%20work_mem%3D1MB&options[search_path]=shop&options[jit]=off",
            "postgres:///users?host=/run/postgresql&password=",
        ] {
            assert!(settings(good).url().expect(good).is_some());
        }
    }

    #[test]
    fn rejects_a_bad_url_without_repeating_it() {
        for (bad, named) in [
            ("", ""),
            ("users", ""),
            ("mysql://me:s3cret@db.example/users", ""),
            ("postgres://me:s3cret@db.example:port/users", ""),
            ("postgres://me:1?s3cret@db.example/users", "%3F"),
            ("postgres://me:1#s3cret@db.example/users", "%23"),
            ("postgres://me@db.example/users?pasword=s3cret", "pasword"),
            ("postgres://me@db.example/users?sslmod=s3cret", "sslmod"),
            ("postgres://me@db.example/users?SSLMODE=s3cret", "SSLMODE"),
            ("postgres://me@db.example/users?connect_timeout=s3cret", "connect_timeout"),
            ("postgres://me@db.example/users?options[jit=s3cret", "options[jit"),
            ("postgres://me@db.example/users?sslmode=s3cret", "sslmode"),
            ("postgres://me@db.example/users?sslmode=", "sslmode"),
            ("postgres://me@db.example/users?sslmode=require&ssl-mode=disable", "sslmode"),
            ("postgres://me@db.example/users?options[jit]=on&options[jit]=s3cret", "options[jit]"),
            ("postgres://me@db.example/users?port=s3cret", "port"),
            ("postgres://me@db.example/users?port=0", "port"),
            ("postgres://me@db.example/users?hostaddr=s3cret", "hostaddr"),
            ("postgres://me@db.example/users?statement-cache-capacity=s3cret", "statement-cache-capacity"),
            ("postgres://me@db.example/users?sslrootcert=/s3cret", "sslrootcert"),
            ("postgres://me@db.example/users?ssl-ca=/dev/null", "sslrootcert"),
            ("postgres://me@db.example/users?sslcert=-----BEGIN%20CERTIFICATE-----s3cret-----", "sslkey"),
        ] {
            let error = settings(bad).url().expect_err(bad);
            assert!(error.contains("DATABASE_URL") && error.contains(named), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
            assert!(!format!("{:?}", settings(bad)).contains("s3cret"));
        }
    }

    #[test]
    fn uses_tls_as_libpq_does() {
        let root = "-----BEGIN%20CERTIFICATE-----x-----END%20CERTIFICATE-----";
        for (parameters, wanted) in [
            (String::new(), "Prefer"),
            ("sslmode=require".to_owned(), "Require"),
            (format!("sslmode=require&sslrootcert={root}"), "VerifyCa"),
            (format!("sslmode=verify-full&sslrootcert={root}"), "VerifyFull"),
            ("sslmode=require&host=/run/postgresql".to_owned(), "Disable"),
        ] {
            let url = settings(&format!("postgres://me@db.example/users?{parameters}")).url().unwrap().unwrap();
            assert_eq!(format!("{:?}", url.get_ssl_mode()), wanted, "{parameters}");
        }
    }

    #[test]
    fn logs_nothing_of_the_url() {
        let (mut log, writer) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, || {
            for url in ["pasword=s3cret", "sslmode=s3cret", "password=s3cret", "options[jit=s3cret"] {
                let _ = settings(&format!("postgres://me@db.example/users?{url}")).url();
            }
        });
        let mut logged = String::new();
        log.read_to_string(&mut logged).unwrap();
        assert_eq!(logged, "");
    }
}
