//! The settings: their defaults, and the errors for invalid ones.

use std::collections::BTreeSet;

use chassis::config::defaults;
use clap::CommandFactory;
use user_service::config::Config;

#[test]
fn has_the_settings_and_defaults_of_the_contract() {
    let Config { port, seed, database, settings, .. } = defaults();
    assert!(database.database_url.is_none(), "by default the store is in memory");
    assert_eq!((port, seed, settings.host.to_string().as_str()), (3001, true, "127.0.0.1"));
    let command = Config::command();
    let variables: BTreeSet<_> = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    for name in ["PORT", "HOST", "SEED", "DATABASE_URL", "DRAIN_SECONDS", "CORS_ALLOWED_ORIGINS"] {
        assert!(variables.contains(name), "{name} is not in {variables:?}");
    }
}

#[test]
fn names_an_invalid_setting() {
    let parse = |flag: &str, value: &str| {
        let command = Config::command().mut_args(|argument| argument.env(None::<&str>));
        command.try_get_matches_from(["user-service", &format!("--{flag}={value}")]).map_err(|error| error.to_string())
    };
    for (flag, value) in [("seed", "false"), ("seed", "0"), ("port", "0"), ("password-hashes-waiting", "0")] {
        assert!(parse(flag, value).is_ok(), "--{flag}={value}");
    }
    for (flag, value) in [
        ("seed", "maybe"),
        ("port", "65536"),
        ("port", "http"),
        ("password-hashes-at-once", "1025"),
        ("password-hashes-waiting", "-1"),
    ] {
        let error = parse(flag, value).expect_err(value);
        assert!(error.contains(flag), "{error}");
    }
}
