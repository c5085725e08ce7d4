//! Checks the files in `deploy/`: their settings exist, and the services run with them. `.ci/deploy` builds the images and starts
//! compose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use system_tests::{Launch, ORDERS, PRODUCTS, Service, USERS, order};
use testing::postgres::{Durability, Server};

const PASSWORD: &str = "secret";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the lines below this key of compose.yaml, without their indent.
fn below(lines: &[String], key: &str) -> Vec<String> {
    let lines = lines.iter().skip_while(|line| **line != format!("{key}:")).skip(1);
    lines.map_while(|line| line.strip_prefix("  ").or(line.is_empty().then_some(""))).map(str::to_owned).collect()
}

fn compose(service: &str) -> Vec<String> {
    let anchor = format!(": &{service}");
    let lines: Vec<_> = read("compose.yaml").lines().map(|line| line.replace(&anchor, ":")).collect();
    let section = below(&below(&lines, "services"), service);
    assert!(section.len() > 5, "compose.yaml has {service}");
    section
}

/// Returns the environment of a service in compose.yaml.
fn environment(service: &str) -> BTreeMap<String, String> {
    let variables = below(&compose(service), "environment");
    let variables = variables.iter().filter_map(|line| line.split_once(": "));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns the settings of a service, each with its default.
async fn settings(service: &'static str) -> BTreeMap<String, String> {
    let help = String::from_utf8(Launch::of(service).output(&["--help"]).await.stdout).expect("text");
    let setting = |text: &str| {
        let default =
            text.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']')).map(|(default, _)| default);
        Some((text.split(['=', ']']).next()?.to_owned(), default.unwrap_or_default().to_owned()))
    };
    help.split("[env: ").skip(1).filter_map(setting).collect()
}

#[tokio::test]
async fn uses_only_settings_and_ports_of_the_services() {
    let dockerfile = read("Dockerfile");
    let mut known = BTreeSet::from(["POSTGRES_PASSWORD", "DATABASE_PASSWORD", "ADMIN_PASSWORD"].map(str::to_owned));
    for service in [USERS, PRODUCTS, ORDERS] {
        let (settings, lines) = (settings(service).await, compose(service).join("\n"));
        for variable in environment(service).keys() {
            assert!(settings.contains_key(variable), "{service} has no {variable}");
        }
        let port = &environment(service)["PORT"];
        assert_eq!(*port, settings["PORT"], "the port of {service} is its default port");
        for part in [format!(r#""127.0.0.1:{port}:{port}""#), format!("target: {service}\n")] {
            assert!(format!("{lines}\n").contains(&part), "{service} has {part} in compose.yaml: {lines}");
        }
        let (_, stage) = dockerfile.split_once(&format!(" AS {service}\n")).expect("an image of each");
        let stage: Vec<_> = stage.lines().take(4).collect();
        assert_eq!(stage[..2], [format!("COPY --from=build /image/{service} /"), format!("EXPOSE {port}")]);
        assert!(stage[2].ends_with(&format!(r#"CMD ["/{service}", "--health"]"#)), "{}", stage[2]);
        assert_eq!(stage[3], format!(r#"ENTRYPOINT ["/{service}"]"#));
        let seconds = |name: &str| settings[name].parse::<u32>().expect("a number");
        let needed = seconds("DRAIN_SECONDS") + seconds("SHUTDOWN_SECONDS");
        for file in ["compose.yaml", "compose.memory.yaml"] {
            let text = read(file);
            let grace = text.split_once("stop_grace_period: ").and_then(|(_, rest)| rest.split_once('s'));
            let grace: u32 = grace.expect("it is set").0.parse().expect("a number");
            assert!(grace > needed, "{file}: {service} may need {needed} s to shut down");
        }
        known.extend(settings.into_keys());
    }
    let haproxy = read("haproxy.cfg") + &read("gateway.cfg");
    known.extend(
        haproxy.lines().filter_map(|line| line.trim().strip_prefix("presetenv ")?.split(' ').next()).map(str::to_owned),
    );
    known.extend(["REVISION", "SOURCE", "VERSION", "SOURCE_DATE_EPOCH", "RUSTFLAGS"].map(str::to_owned)); // of the build
    let files = ["compose.yaml", "compose.auth.yaml", "compose.memory.yaml", "databases.sh"].map(read);
    for text in files.into_iter().chain([haproxy, dockerfile]) {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_variable = |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        for word in words.filter(is_variable) {
            let is_theirs = word == "ON_ERROR_STOP" || word.starts_with("GF_"); // psql's, Grafana's
            assert!(known.contains(word) || is_theirs, "nothing has {word}");
        }
    }
    let mounts = read("compose.yaml");
    for mount in mounts.lines().filter_map(|line| line.trim().strip_prefix("- ./")) {
        let file = mount.split(':').next().expect("a path");
        assert!(path(file).exists(), "there is no deploy/{file}");
    }
}

#[test]
fn names_the_version_of_each_image() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        read("Dockerfile").contains(&format!("ARG VERSION={version}\n")),
        "the label has the version of the services"
    );
    let kubernetes = ["base/user-service.yaml", "base/product-service.yaml", "base/order-service.yaml"];
    let kubernetes = kubernetes.into_iter().chain(["overlays/postgres/migrations.yaml"]);
    let files = kubernetes.map(|file| format!("kubernetes/{file}"));
    for file in files.chain(["compose.yaml", "compose.auth.yaml", "compose.memory.yaml"].map(str::to_owned)) {
        let text = read(&file);
        let images: Vec<_> =
            text.lines().filter_map(|line| line.trim().strip_prefix("image: ")?.split(' ').next()).collect();
        assert!(!images.is_empty(), "{file}");
        for image in images {
            let (name, tag) = image.split_once(':').unwrap_or_else(|| panic!("{file}: {image} has no version"));
            let is_ours = [USERS, PRODUCTS, ORDERS].contains(&name);
            assert!(tag != "latest" && (!is_ours || tag == version), "{file}: {image}");
        }
    }
}

#[tokio::test]
async fn runs_the_services_over_separate_databases_with_the_settings_of_compose() {
    let Some(postgres) = Server::start(Durability::ProcessOnly) else { return };
    let database = postgres.create_database().await;
    let socket = database.get_socket().expect("it listens on a socket").display().to_string();
    let mut create = Command::new(path("databases.sh"));
    create.env("PGHOST", &socket).env("PGUSER", "postgres").env("DATABASE_PASSWORD", PASSWORD);
    let created = create.output().expect("sh is installed");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));

    let mut running = BTreeMap::<_, Service>::new();
    for service in [USERS, PRODUCTS, ORDERS] {
        let mut launch = Launch::of(service).env("HOST", "0.0.0.0"); // as in the images
        for (variable, value) in environment(service) {
            launch = match variable.as_str() {
                "PORT" => launch,
                "DATABASE_URL" => launch.env(&variable, here(&value, &socket)),
                _ if variable.starts_with("PUBLIC_") => {
                    let service = variable.trim_start_matches("PUBLIC_").trim_end_matches("_URL");
                    let service = service.to_lowercase().replace('_', "-");
                    assert_eq!(value, format!("http://localhost:{}", environment(&service)["PORT"]));
                    launch.env(&variable, value)
                }
                _ if variable.ends_with("_SERVICE_URL") => {
                    let peer = variable.trim_end_matches("_URL").to_lowercase().replace('_', "-");
                    assert_eq!(value, format!("http://gateway:{}", environment(&peer)["PORT"]));
                    launch.env(&variable, running[peer.as_str()].url())
                }
                _ => launch.env(&variable, value),
            };
        }
        running.insert(service, Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}")));
        running[service].get("/readyz").await.expect(200);
    }
    running[USERS].post("/users", json!({"name": "Eve"})).await.expect(201);
    running[PRODUCTS].post("/products", json!({"name": "Lamp", "price": 19.99, "stock": 5})).await.expect(201);
    running[ORDERS].post("/orders", order(1, 1, 1)).await.expect(201);

    let other_database =
        here(&environment(USERS)["DATABASE_URL"], &socket).replace("localhost/users", "localhost/orders");
    let denied = PgConnection::connect(&other_database).await.expect_err("only its own service may use a database");
    assert!(denied.to_string().contains("permission denied"), "{denied}");
}

/// Returns a `DATABASE_URL` of compose.yaml with the password, and for the server of this test.
fn here(url: &str, socket: &str) -> String {
    let (before, rest) = url.split_once("${DATABASE_PASSWORD").expect("the password is not in the file");
    let (_, database) = rest.split_once("}@postgres/").expect("the server is called postgres");
    format!("{before}{PASSWORD}@localhost/{database}?host={socket}")
}
