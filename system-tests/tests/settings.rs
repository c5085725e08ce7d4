//! Settings as an operator gives them to the real binaries: in the environment.

use std::net::TcpListener;

use system_tests::{Launch, ORDERS, PRODUCTS, Service, USERS};

/// Variables that libraries read.
const OF_LIBRARIES: [&str; 16] = [
    "LISTEN_PID",
    "NO_COLOR",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "PGSSLMODE",
];

/// Settings whose 0 has a meaning.
const MAY_BE_ZERO: [&str; 7] = [
    "PORT",
    "LOG_REQUESTS_PER_SECOND",
    "DRAIN_SECONDS",
    "LINGER_SECONDS",
    "SHUTDOWN_SECONDS",
    "PASSWORD_HASHES_AT_ONCE",
    "PASSWORD_HASHES_WAITING",
];

/// Returns the variables of a service with their defaults, from `--help`.
async fn variables(service: &'static str) -> Vec<(String, String)> {
    let help = Launch::of(service).output(&["--help"]).await;
    let help = String::from_utf8(help.stdout).expect("text");
    let variable = |setting: &str| {
        let default = setting.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
        let name = setting.split(['=', ']']).next().expect("a variable");
        (name.to_owned(), default.map_or_else(String::new, |(default, _)| default.to_owned()))
    };
    help.split("[env: ").skip(1).map(variable).collect()
}

/// Returns the error of a start with this variable. The start fails in any case, because of the database.
async fn error(service: &'static str, variable: &str, value: &str) -> String {
    let launch = Launch::of(service).env("DATABASE_URL", "mysql://none").env(variable, value);
    let output = launch.output(&[]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.starts_with("error: "), "{variable}={value}: {error}");
    error
}

#[tokio::test]
async fn treats_an_empty_variable_as_unset() {
    for service in [USERS, PRODUCTS, ORDERS] {
        for empty in ["", " \t"] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let of_libraries = OF_LIBRARIES.map(str::to_owned).into_iter();
            let names = variables(service).await.into_iter().map(|(name, _)| name).chain(of_libraries);
            let launch = names.fold(Launch::of(service).socket(listener), |launch, name| launch.env(&name, empty));
            let started = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
            assert!(started.start_up_line().contains("store: memory"), "{}", started.start_up_line());
            started.get("/livez").await.expect(200);
        }
        let launch = Launch::of(service).env("LISTEN_FDS", "").env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
        let launch = OF_LIBRARIES.iter().fold(launch, |launch, name| launch.env(name, ""));
        Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
    }
}

#[tokio::test]
async fn refuses_a_number_that_breaks_the_service_by_name() {
    for service in [USERS, PRODUCTS, ORDERS] {
        let variables = variables(service).await;
        let numbers = variables.iter().filter(|(_, default)| default.parse::<f64>().is_ok());
        let numbers: Vec<_> = numbers.map(|(name, _)| name.as_str()).collect();
        assert!(numbers.len() > 15 && numbers.contains(&"REQUEST_TIMEOUT_SECONDS"), "{numbers:?}");
        for name in numbers {
            for bad in ["-1", "NaN", "inf", "1e300", "99999999999999999999", "ten"] {
                let error = error(service, name, bad).await;
                assert!(error.contains(name), "{service} accepted {name}={bad}: {error}");
            }
            let error = error(service, name, "0").await;
            assert_eq!(error.contains(name), !MAY_BE_ZERO.contains(&name), "{service} with {name}=0: {error}");
            if name.ends_with("_SECONDS") {
                let error = self::error(service, name, "1e-9").await;
                assert_eq!(error.contains(name), !MAY_BE_ZERO.contains(&name), "{service} with {name}=1e-9: {error}");
            }
        }
    }
}

#[tokio::test]
async fn refuses_bad_values_of_the_variables_of_libraries() {
    for (name, bad) in [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "18446744073709551615"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1"),
        ("PGSSLMODE", "verify_full"),
    ] {
        let error = error(USERS, name, bad).await;
        assert!(error.contains(name), "{name}={bad}: {error}");
    }
    let error = error(USERS, "OTEL_TRACES_SAMPLER_ARG", "0").await;
    assert!(error.contains("DATABASE_URL"), "{error}");
}

#[tokio::test]
async fn says_what_host_is_for() {
    for service in [USERS, PRODUCTS, ORDERS] {
        let error = error(service, "HOST", "mybox").await;
        assert!(error.contains("HOST must be the IP address") && error.contains("unset it"), "{error}");
    }
}
