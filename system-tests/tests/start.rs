//! The start of a service whose database is away, is another one than expected, or is to be migrated only.

use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use system_tests::durable::Databases;
use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, System, USERS, eventually, order};
use testing::postgres::{Durability, Server, behind_pgbouncer};

const ALL: [(&str, &str); 3] = [(USERS, "/users"), (PRODUCTS, "/products"), (ORDERS, "/orders")];
/// Much longer than a process takes to end.
const SOON: Duration = Duration::from_secs(5);
/// A database on a port on which nothing listens.
const NOWHERE: &str = "postgres://me:secret@127.0.0.1:1/nothing";

async fn readiness(service: &Service) -> u16 {
    service.request("GET", "/readyz").try_send().await.map_or(0, |answer| answer.status)
}

/// Returns whether a line of its log has this level and contains this text.
fn logged(service: &Service, level: &str, text: &str) -> bool {
    service.log().iter().any(|line| line.contains(level) && line.contains(text))
}

async fn execute(database: &str, sql: &str) {
    let options: PgConnectOptions = database.parse().expect("a database URL");
    let mut connection = options.connect().await.expect("a running server");
    connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[tokio::test]
async fn is_alive_without_its_database_and_ready_when_the_database_comes() {
    let Some(mut postgres) = Server::start(Durability::ProcessOnly) else { return };
    let databases = Databases::create(&postgres).await;
    postgres.kill();
    let mut services = Vec::new();
    for (service, path) in ALL {
        let service = Service::listen(databases.configure(Launch::of(service))).await.unwrap();
        assert!(service.start_up_line().contains("store: PostgreSQL"), "{}", service.start_up_line());
        services.push((service, path));
    }
    for (service, path) in &services {
        for path in ["/livez", "/metrics", "/openapi.json", "/docs/"] {
            service.get(path).await.expect(200);
        }
        let unready = service.get("/readyz").await.expect_problem(503, "store-unavailable");
        assert_eq!(unready["reasons"], serde_json::json!(["starting", "the database does not answer"]));
        service.get(path).await.expect_problem(503, "store-unavailable"); // which has a Retry-After
        assert!(logged(service, "WARN", "the database is away; will retry"), "{:?}", service.log());
    }
    postgres.restart();
    for (service, path) in &services {
        assert_eq!(eventually(200, || readiness(service)).await, 200, "{:?}", service.log());
        service.get(path).await.expect(200);
    }
}

/// Runs `--health` of a service with these variables. Returns its exit code and the sentence that it printed.
async fn health(service: &'static str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let launch = variables.iter().fold(Launch::of(service), |launch, (name, value)| launch.env(name, value));
    let Output { status, stdout, stderr } = launch.output(&["--health"]).await;
    let text = String::from_utf8([stdout, stderr].concat()).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    (status.code(), text.trim_end().to_owned())
}

#[tokio::test]
async fn checks_its_own_health() {
    for (service, _) in ALL {
        for (interface, shown) in [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("127.0.0.1", "127.0.0.1")] {
            let ready = Service::start(Launch::of(service).env("HOST", interface)).await;
            let port = ready.as_ref().expect("it starts").address().port().to_string();
            let (code, said) = health(service, &[("HOST", interface), ("PORT", &port)]).await;
            assert_eq!((code, said), (Some(0), format!("{service} on {shown}:{port} is ready")));
        }
        let starting = Service::listen(Launch::of(service).env("DATABASE_URL", NOWHERE)).await.unwrap();
        let port = starting.address().port().to_string();
        let (code, said) = health(service, &[("DATABASE_URL", NOWHERE), ("PORT", &port)]).await;
        let reason = "is not ready: 503, starting, the database does not answer";
        assert_eq!((code, said), (Some(1), format!("error: {service} on 127.0.0.1:{port} {reason}")));

        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port"); // accepts in its queue, and never answers
        let port = silent.local_addr().expect("it is bound").port().to_string();
        let (code, said) = health(service, &[("PORT", &port)]).await;
        assert!(code == Some(1) && said.ends_with("no answer within 3 s"), "{said}");
        drop(silent);
        let (code, said) = health(service, &[("PORT", &port)]).await;
        assert!(code == Some(1) && said.ends_with("nothing answers there"), "{said}");
        let (code, said) = health(service, &[("PORT", "0")]).await;
        assert!(code == Some(1) && said.ends_with("set PORT"), "{said}");
    }
}

#[tokio::test]
async fn says_its_version_and_commit() {
    for (service, _) in ALL {
        let said = Launch::of(service).output(&["--version"]).await.stdout;
        let said = String::from_utf8(said).expect("text");
        let version = format!("{service} {} (", env!("CARGO_PKG_VERSION"));
        assert!(said.starts_with(&version) && said.ends_with(")\n"), "{said}");
    }
}

#[tokio::test]
async fn exits_with_0_at_a_signal_while_its_database_is_away() {
    for (service, _) in ALL {
        for signal in [Signal::Terminate, Signal::Interrupt] {
            let launch = Launch::of(service).env("DATABASE_URL", NOWHERE).env("DRAIN_SECONDS", 0);
            let mut service = Service::listen(launch).await.unwrap();
            service.signal(signal).await;
            let status = service.ends_within(SOON).await;
            assert!(status.success(), "{signal:?}: {status} {:?}", service.log());
        }
    }
}

#[tokio::test]
async fn logs_a_wrong_password_or_database_and_recovers_when_corrected() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    let url = postgres.create_database_url().await;
    let service = Service::listen(Launch::of(USERS).env("DATABASE_URL", url.replace("test_0", "later"))).await.unwrap();
    let refused = r#"database \"later\" does not exist"#;
    assert!(eventually(true, async || logged(&service, "ERROR", refused)).await, "{:?}", service.log());
    assert_eq!(service.get("/readyz").await.expect(503).json()["reasons"][1], "the database refuses access");
    execute(&url, "create database later").await;
    assert_eq!(eventually(200, || readiness(&service)).await, 200, "{:?}", service.log());
}

#[tokio::test]
async fn exits_with_1_when_the_database_is_unusable() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    let users = postgres.create_database_url().await;
    let migrated = Launch::of(USERS).env("DATABASE_URL", &users).output(&["--migrate-only"]).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    execute(&users, "create database latin encoding 'LATIN1' locale 'C' template template0").await;
    let latin = users.replace("test_0", "latin");
    for (service, url, reason) in [
        (PRODUCTS, &users, "another service: its migration 1 is `users`, not `products`"),
        (ORDERS, &users, "another service: its migration 1 is `users`, not `orders`"),
        (USERS, &latin, "encoding of the database latin is LATIN1"),
        (PRODUCTS, &latin, "encoding of the database latin is LATIN1"),
        (ORDERS, &latin, "encoding of the database latin is LATIN1"),
    ] {
        for arguments in [&[][..], &["--migrate-only"]] {
            let output = Launch::of(service).env("DATABASE_URL", url).output(arguments).await;
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && errors.starts_with("error: "), "{service}: {errors}");
            assert!(errors.contains(reason) && errors.lines().count() == 1, "{service}: {errors}");
        }
    }
}

#[tokio::test]
async fn migrates_as_owner_and_serves_without_the_create_privilege() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    for (service, path) in ALL {
        let owner = postgres.create_database_url().await;
        let role = service.replace('-', "_");
        let limited = owner.replace("postgres@", &format!("{role}@"));
        execute(&owner, &format!("create role {role} login")).await;

        // Before it is migrated, the limited role waits and says what it lacks.
        let waiting = Service::listen(Launch::of(service).env("DATABASE_URL", &limited)).await.unwrap();
        let lacks = "run --migrate-only with a role that may create tables";
        assert!(eventually(true, async || logged(&waiting, "ERROR", lacks)).await, "{:?}", waiting.log());

        let migrate = async |url: &str| {
            let output = Launch::of(service).env("DATABASE_URL", url).output(&["--migrate-only"]).await;
            (output.status.success(), String::from_utf8(output.stderr).unwrap())
        };
        let (migrated, errors) = migrate(&limited).await;
        assert!(!migrated && errors.contains("permission denied"), "{errors}");
        assert_eq!(migrate(&owner).await, (true, String::new()));
        for grant in grants() {
            execute(&owner, &grant.replace(":role", &role)).await;
        }
        assert_eq!(migrate(&limited).await, (true, String::new()), "nothing is left to migrate");
        assert_eq!(eventually(200, || readiness(&waiting)).await, 200, "{:?}", waiting.log());
        waiting.get(path).await.expect(200);
        let body = match service {
            USERS => Some(serde_json::json!({"username": "eve"})),
            PRODUCTS => Some(serde_json::json!({"name": "Lamp", "price": 1, "stock": 5})),
            _ => None,
        };
        if let Some(body) = body {
            waiting.post(path, body).await.expect(201);
        }
    }
}

#[tokio::test]
async fn logs_that_it_waits_for_the_migrations_of_another_replica() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    for (service, _) in ALL {
        let url = postgres.create_database_url().await;
        let mut other = url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap();
        sqlx::migrate::Migrate::lock(&mut other).await.unwrap();
        let service = Service::listen(Launch::of(service).env("DATABASE_URL", url)).await.unwrap();
        let waits = "another replica migrates the database; will wait";
        assert!(eventually(true, async || logged(&service, "WARN", waits)).await, "{:?}", service.log());
        assert_eq!(service.get("/readyz").await.expect(503).json()["reasons"][1], "the database is being migrated");
        sqlx::migrate::Migrate::unlock(&mut other).await.unwrap();
        assert_eq!(eventually(200, || readiness(&service)).await, 200, "{:?}", service.log());
    }
}

/// Returns the `grant` statements of the documentation.
fn grants() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/postgres.md");
    let page = std::fs::read_to_string(page).expect("a page");
    let grants: Vec<_> = page.lines().filter(|line| line.starts_with("grant ")).map(str::to_owned).collect();
    assert!(grants.len() >= 2, "{grants:?}");
    grants
}

/// Once as PgBouncer refuses the parameters of a connection, and once as it drops them.
#[tokio::test]
async fn places_an_order_behind_pgbouncer() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    for settings in ["", "ignore_startup_parameters = extra_float_digits,options"] {
        let mut urls = std::collections::BTreeMap::new();
        for (service, _) in ALL {
            let database = postgres.create_database().await;
            let Some(pooled) = behind_pgbouncer(&database, settings) else { return };
            let (name, port) = (pooled.get_database().unwrap(), pooled.get_port());
            let folder = pooled.get_socket().unwrap().display().to_string();
            urls.insert(service, format!("postgres://postgres@localhost:{port}/{name}?host={folder}"));
        }
        let launch = |launch: Launch| {
            let url = &urls[launch.service()];
            launch.env("DATABASE_URL", url)
        };
        let system = System::start_as(launch).await.unwrap();
        for service in [&system.users, &system.products, &system.orders] {
            assert!(logged(service, "INFO", "a pooler is in front of the database"), "{:?}", service.log());
        }
        system.users.post("/users", serde_json::json!({"name": "Eve"})).await.expect(201);
        let product = system.add_product("Lamp", 19.99, 5).await;
        let placed = system.orders.post("/orders", order(1, product, 2)).await.expect(201);
        let cancel = serde_json::json!({"status": "cancelled"});
        system.orders.patch(placed.header("location"), cancel).await.expect(200);
        assert_eq!(eventually(5, || system.stock(product)).await, 5);
        system.stop().await;
    }
}

#[tokio::test]
async fn says_that_there_is_nothing_to_migrate_without_a_database() {
    for (service, _) in ALL {
        let output = Launch::of(service).output(&["--migrate-only"]).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("needs DATABASE_URL"), "{service}: {errors}");
    }
}
