//! The settings: their defaults, and the errors for bad values.

use std::collections::BTreeSet;

use chassis::config::defaults;
use clap::CommandFactory;
use product_service::config::Config;

#[test]
fn has_the_settings_and_defaults_of_the_contract() {
    let Config { port, seed, user_service_url, database, settings, .. } = defaults();
    assert!(database.database_url.is_none(), "the default store is in memory");
    assert_eq!((port, seed, user_service_url.as_str()), (3002, true, "http://127.0.0.1:3001/"));
    assert_eq!(settings.host.to_string(), "127.0.0.1");
    let command = Config::command();
    let variables: BTreeSet<_> = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    for name in ["PORT", "HOST", "SEED", "DATABASE_URL", "USER_SERVICE_URL", "DRAIN_SECONDS", "CORS_ALLOWED_ORIGINS"] {
        assert!(variables.contains(name), "{name} is missing in {variables:?}");
    }
}

#[test]
fn names_the_setting_with_a_bad_value() {
    let start = |flag: &str, value: &str| {
        let command = Config::command().mut_args(|argument| argument.env(None::<&str>));
        command
            .try_get_matches_from(["product-service", &format!("--{flag}={value}")])
            .map_err(|error| error.to_string())
    };
    for (flag, value) in [("seed", "false"), ("seed", "0"), ("port", "0"), ("user-service-url", "http://users/api")] {
        assert!(start(flag, value).is_ok(), "--{flag}={value}");
    }
    for (flag, value) in [
        ("seed", "maybe"),
        ("port", "65536"),
        ("port", "http"),
        ("user-service-url", "users:3001"),
        ("user-service-url", "ftp://users"),
        ("user-service-url", "http://users?x=1"),
    ] {
        let error = start(flag, value).expect_err(value);
        assert!(error.contains(flag), "{error}");
    }
}
