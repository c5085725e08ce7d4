//! Load by [wrk](https://github.com/wg/wrk), for benchmarks. wrk uses little processor time; the client in
//! [`load`](crate::load) uses more than the services that it measures.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::launch::Launch;
use crate::load::Client;
use crate::service::Service;
use crate::system::System;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wrk.lua");
/// The number of users and products after [`fill`].
const USERS: usize = 2_000;
const PRODUCTS: usize = 1_000;
/// Concurrent requests while filling.
const FILL_CONCURRENCY: usize = 50;

/// A kind of request, in the syntax of src/wrk.lua.
pub struct Kind {
    /// A description.
    pub name: &'static str,
    /// The service that receives it.
    pub service: fn(&System) -> &Service,
    /// Method and path.
    pub line: [&'static str; 2],
    /// The body.
    pub body: Option<&'static str>,
}

/// The results of a load. wrk's clients send their next request when the last one is answered (closed loop). So the times
/// grow with the number of clients, and a stalled server gets fewer requests.
pub struct Figures {
    /// Requests per second.
    pub rate: f64,
    /// The number of responses.
    pub requests: u64,
    /// The number of requests without a response, or with a status other than 2xx and 3xx.
    pub failed: u64,
    /// The percentiles 50, 99 and 99.9 of the response times.
    pub p50_p99_p999: [Duration; 3],
}

/// An order of a random user for two random products.
pub const ORDER: Kind = Kind {
    name: "POST an order",
    service: |system| &system.orders,
    line: ["POST", "/orders"],
    body: Some(
        r#"{"userId":{1-2000},"products":[{"productId":{1-500},"quantity":1},{"productId":{501-1000},"quantity":2}]}"#,
    ),
};

/// Returns the body of a random order, as [`ORDER`] sends it, for other clients than wrk.
pub fn random_order() -> Value {
    let line =
        |products, quantity| json!({"productId": rand::random_range::<usize, _>(products), "quantity": quantity});
    json!({"userId": rand::random_range(1..=USERS), "products": [line(1..=PRODUCTS / 2, 1), line(PRODUCTS / 2 + 1..=PRODUCTS, 2)]})
}

/// Starts the three services with two thousand users and a thousand products that never sell out. Their output is discarded.
/// `prepare` changes how they start.
///
/// # Errors
/// If a service does not start.
///
/// # Panics
/// If a service rejects a user or a product.
pub async fn system(prepare: impl Fn(Launch) -> Launch) -> Result<System, String> {
    let system = System::start_as(|launch| prepare(launch.env("SEED", false).discard_output())).await?;
    let user = |n| json!({"name": format!("User {n}"), "email": format!("user{n}@example.com")});
    fill(format!("{}/users", system.users.url()), USERS, user).await;
    let product = |n| json!({"name": format!("Product {n}"), "price": 19.99, "stock": 1_000_000_000});
    fill(format!("{}/products", system.products.url()), PRODUCTS, product).await;
    Ok(system)
}

async fn fill(url: String, count: usize, body: impl Fn(usize) -> Value) {
    let client = Client::default();
    for first in (0..count).step_by(FILL_CONCURRENCY) {
        let added =
            (first..first + FILL_CONCURRENCY).map(|n| client.request("POST", url.clone()).json(&body(n)).send());
        join_all(added).await.into_iter().for_each(|response| drop(response.expect(201)));
    }
}

/// Runs wrk with this many connections for this long. wrk uses at most half of the cores.
///
/// # Errors
/// If wrk is not installed or fails: its output.
pub async fn load(system: &System, kind: &Kind, connections: u32, length: Duration) -> Result<Figures, String> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (cores / 2).clamp(1, connections as usize);
    let mut wrk = Command::new("wrk");
    wrk.arg(format!("-t{threads}")).arg(format!("-c{connections}")).arg(format!("-d{}s", length.as_secs()));
    wrk.args(["-s", SCRIPT, &(kind.service)(system).url(), "--"]).args(kind.line).args(kind.body);
    let output = wrk.kill_on_drop(true).output().await.map_err(|error| format!("cannot run wrk: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let report = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let report: Value = report.unwrap_or_default();
    figures(&report).ok_or_else(|| format!("wrk: {printed}{}", String::from_utf8_lossy(&output.stderr)))
}

fn figures(report: &Value) -> Option<Figures> {
    let (seconds, requests) = (report["seconds"].as_f64()?, report["requests"].as_u64()?);
    let time = |n: usize| Some(Duration::from_micros(report["micros"][n].as_u64()?));
    Some(Figures {
        rate: requests as f64 / seconds,
        requests,
        failed: report["failed"].as_u64()?,
        p50_p99_p999: [time(0)?, time(1)?, time(2)?],
    })
}
