//! Load by [wrk](https://github.com/wg/wrk), for figures: a program of its own that takes little of the machine, where
//! [`load`](crate::load) is handy, and takes more than what it measures.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::load::Caller;
use crate::service::Service;
use crate::system::System;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wrk.lua");
/// Whoever and whatever there is after [`fill`].
const USERS: usize = 2_000;
const PRODUCTS: usize = 1_000;
/// At once while filling.
const AT_ONCE: usize = 50;

/// A kind of request, as src/wrk.lua explains it.
pub struct Kind {
    /// What it does, in words.
    pub what: &'static str,
    /// Which of the services is asked.
    pub of: fn(&System) -> &Service,
    /// How it begins: method and path.
    pub line: [&'static str; 2],
    /// And what it holds.
    pub body: Option<&'static str>,
}

/// What came of a load. The times are those of clients who each send their next request when the last is answered: where
/// there are more of them they wait longer, and a server that stands still is asked less meanwhile.
pub struct Figures {
    /// Requests a second.
    pub rate: f64,
    /// How many were answered.
    pub requests: u64,
    /// How many were not, or with neither 2xx nor 3xx.
    pub failed: u64,
    /// The time within which 50, 99 and 99.9 of 100 were.
    pub p50_p99_p999: [Duration; 3],
}

/// An order of a random user for two random products.
pub const ORDER: Kind = Kind {
    what: "POST an order",
    of: |system| &system.orders,
    line: ["POST", "/orders"],
    body: Some(
        r#"{"userId":{1-2000},"products":[{"productId":{1-500},"quantity":1},{"productId":{501-1000},"quantity":2}]}"#,
    ),
};

/// The three with two thousand users and a thousand products, none of which sells out. What they log is dropped.
///
/// # Errors
/// If one does not start.
///
/// # Panics
/// If one does not take what it is filled with.
pub async fn system() -> Result<System, String> {
    let system = System::start_as(|launch| launch.env("SEED", false).unheard()).await?;
    let user = |n| json!({"name": format!("User {n}"), "email": format!("user{n}@example.com")});
    fill(format!("{}/users", system.users.url()), USERS, user).await;
    let product = |n| json!({"name": format!("Product {n}"), "price": 19.99, "stock": 1_000_000_000});
    fill(format!("{}/products", system.products.url()), PRODUCTS, product).await;
    Ok(system)
}

async fn fill(url: String, count: usize, row: impl Fn(usize) -> Value) {
    let caller = Caller::default();
    for first in (0..count).step_by(AT_ONCE) {
        let added = (first..first + AT_ONCE).map(|n| caller.request("POST", url.clone()).json(&row(n)).send());
        join_all(added).await.into_iter().for_each(|received| drop(received.expect(201)));
    }
}

/// Has wrk send these over so many connections for so long. Half of the cores are wrk's, if it can use them.
///
/// # Errors
/// If there is no wrk, or it fails: what it says.
pub async fn load(system: &System, kind: &Kind, connections: u32, length: Duration) -> Result<Figures, String> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (cores / 2).clamp(1, connections as usize);
    let mut wrk = Command::new("wrk");
    wrk.arg(format!("-t{threads}")).arg(format!("-c{connections}")).arg(format!("-d{}s", length.as_secs()));
    wrk.args(["-s", SCRIPT, &(kind.of)(system).url(), "--"]).args(kind.line).args(kind.body);
    let output = wrk.kill_on_drop(true).output().await.map_err(|error| format!("cannot run wrk: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let told = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    figures(&told.unwrap_or_default()).ok_or_else(|| format!("wrk: {said}{}", String::from_utf8_lossy(&output.stderr)))
}

fn figures(told: &Value) -> Option<Figures> {
    let (seconds, requests) = (told["seconds"].as_f64()?, told["requests"].as_u64()?);
    let time = |n: usize| Some(Duration::from_micros(told["micros"][n].as_u64()?));
    Some(Figures {
        rate: requests as f64 / seconds,
        requests,
        failed: told["failed"].as_u64()?,
        p50_p99_p999: [time(0)?, time(1)?, time(2)?],
    })
}
