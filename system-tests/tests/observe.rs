//! Checks the dashboard and the alerts of `deploy/` with a real Prometheus, the three services and PostgreSQL: every panel
//! and every alert must find data.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::Url;
use serde_json::{Value, json};
use system_tests::durable::Durable;
use system_tests::{DEADLINE, Fault, ORDERS, PRODUCTS, USERS, eventually, order, seed};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{self, Instant};

#[tokio::test]
async fn finds_data_for_every_panel_and_every_alert() {
    let Some(program) = program() else { return };
    let Some(durable) = Durable::start(seed(), |launch| launch).await else { return };
    let system = &durable.system;
    let prometheus = Prometheus::start(
        &program,
        &[&system.users, &system.products, &system.orders]
            .map(|service| (service.name(), service.address().to_string())),
    )
    .await;

    system.add_product("Lamp", 19.99, 1).await;
    system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    system.orders.post("/orders", order(1, 1, 1)).await.expect(201);
    system.orders.post("/orders", order(1, 1, 1)).await.expect_problem(409, "insufficient-stock");
    durable.links.orders_to_products.set(Fault::Refuse);

    let mut queries = prometheus.queries_of_alerts().await;
    queries.extend(queries_of_dashboard());
    assert!(queries.len() > 50, "{queries:?}");
    let mut missing = BTreeMap::new();
    for (place, query) in queries {
        let found = eventually(true, async || {
            system.orders.post("/orders", order(1, 1, 1)).await.expect(503); // failures, retries, and then throttled calls
            prometheus.has_data(&query).await
        })
        .await;
        if !found {
            missing.insert(query, place);
        }
    }
    assert!(missing.is_empty(), "no data for {missing:#?}");
    let failed = format!("job:http_requests_failed:rate5m{{job={ORDERS:?}}} > 0");
    assert!(prometheus.has_data(&failed).await, "failures are counted");

    for service in [&system.users, &system.products, &system.orders] {
        let found = check(service.get("/metrics").await.expect(200).text).await;
        assert_eq!(found, "", "promtool on the metrics of {}", service.name());
    }
}

/// Returns the queries of the dashboard with their panels. A query for one service is returned for each of the three.
fn queries_of_dashboard() -> Vec<(String, String)> {
    let dashboard = fs::read_to_string(deploy("grafana/services.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut queries = Vec::new();
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let metric = variable["query"].as_str().and_then(|query| query.strip_prefix("label_values(")?.split_once(','));
        queries.push((variable["name"].to_string(), metric.expect("label_values(metric, label)").0.to_owned()));
    }
    for panel in dashboard["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("a query").replace("$__rate_interval", "1m");
            let services = if query.contains("$service") { &[USERS, PRODUCTS, ORDERS][..] } else { &[""] };
            queries.extend(
                services
                    .iter()
                    .map(|service| (format!("{} {service}", panel["title"]), query.replace("$service", service))),
            );
        }
    }
    queries
}

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).canonicalize().expect("it is there")
}

/// A Prometheus that scrapes these services, in its own folder. It ends with this value, or with this process, however that
/// ends.
struct Prometheus {
    url: String,
    _process: Child,
}

impl Prometheus {
    async fn start(program: &Path, services: &[(&str, String)]) -> Self {
        let mut config = fs::read_to_string(deploy("prometheus/prometheus.yml")).expect("a configuration");
        let mut replace = |from: &str, to: &str| {
            assert!(config.contains(from), "there is {from} in {config}");
            config = config.replace(from, to);
        };
        replace("_interval: 15s", "_interval: 200ms");
        replace("rules.yml", deploy("prometheus/rules.yml").to_str().expect("a path in UTF-8"));
        for ((service, address), port) in services.iter().zip([3001, 3002, 3003]) {
            replace(&format!("{service}:{port}"), address);
        }
        // The shell kills Prometheus when its stdin closes, which also happens if this process is killed.
        const SCRIPT: &str = r#"
            folder=$(mktemp -d) && cd "$folder" && printf %s "$CONFIG" >prometheus.yml || exit
            "$0" --config.file=prometheus.yml --storage.tsdb.path=data --web.listen-address=127.0.0.1:0 &
            read -r line; kill -s KILL $!; wait; cd / && rm -rf "$folder""#;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).arg(program).env("CONFIG", config).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("sh is installed");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let (mut said, deadline) = (String::new(), Instant::now() + DEADLINE);
        let address = loop {
            let line = time::timeout_at(deadline, lines.next_line()).await;
            let line = line.ok().and_then(|line| line.expect("text"));
            let line = line.unwrap_or_else(|| panic!("it does not start: {said}"));
            if let Some((_, address)) = line.split_once(r#"msg="Listening on" address="#) {
                break address.to_owned();
            }
            said += &format!("\n{line}");
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} }); // a full pipe would block it
        Self { url: format!("http://{address}/api/v1"), _process: process }
    }

    async fn request(&self, what: &str, parameters: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(&format!("{}/{what}", self.url), parameters).expect("a URL");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client without TLS can be built");
        let answer = client.get(url).send().await.expect("it answers");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }

    /// Returns whether it has a value for this query.
    async fn has_data(&self, query: &str) -> bool {
        let data = self.request("query", &[("query", query)]).await;
        data["result"].as_array().is_some_and(|result| !result.is_empty())
    }

    /// Returns the expressions that the alerts compare with a number, with the name of the alert.
    async fn queries_of_alerts(&self) -> Vec<(String, String)> {
        let data = self.request("rules", &[]).await;
        let groups = data["groups"].as_array().expect("groups").iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
        let mut queries = Vec::new();
        for rule in rules.filter(|rule| rule["type"] == "alerting") {
            for condition in rule["query"].as_str().expect("a query").split(" and ") {
                let query = condition.rsplit_once(' ').and_then(|(rest, _number)| rest.rsplit_once(' '));
                let (query, comparison) = query.expect("an expression, a comparison and a number");
                assert!([">", "<", "=="].contains(&comparison), "{condition}");
                queries.push((rule["name"].to_string(), query.to_owned()));
            }
        }
        queries
    }
}

/// Returns what promtool reports about these metrics.
async fn check(metrics: String) -> String {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("promtool comes with Prometheus");
    process.stdin.take().expect("it is piped").write_all(metrics.as_bytes()).await.expect("it reads");
    let output = process.wait_with_output().await.expect("it ends");
    String::from_utf8(output.stderr).expect("text") + if output.status.success() { "" } else { "it failed" }
}

/// Returns the path of Prometheus. Prints SKIPPED and returns `None` where it is not installed, except with
/// `REQUIRE_PROMETHEUS=1` in the environment.
fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join("prometheus")).find(|program| program.exists());
    if found.is_none() {
        assert!(env::var_os("REQUIRE_PROMETHEUS").is_none_or(|value| value != "1"), "prometheus is not installed");
        let _ = writeln!(io::stderr(), "SKIPPED: the tests with Prometheus: prometheus is not installed");
    }
    found
}
