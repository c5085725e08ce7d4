//! The cost of observability: requests per second of processor time with default logs and metrics, compared with a build
//! that has neither. The systems take turns. Fails if the cost is more than [`MAX_COST`].
//!
//! `make observing` builds the variant without metrics from a patch, and passes its folder in `VARIANT_BINARIES`.

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use system_tests::load::{Client, closed_loop};
use system_tests::{Launch, System, order};

/// The highest allowed share of the throughput.
const MAX_COST: f64 = 0.10;
const CLIENTS: u32 = 32;
/// The systems take this many turns of this length. Only figures of the same turn are compared, because the machine is noisy.
const TURNS: usize = 21;
const TURN: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    let Some(variant) = env::var_os("VARIANT_BINARIES") else {
        println!("observing: VARIANT_BINARIES is not set; run `make observing`");
        return ExitCode::FAILURE;
    };
    let plain = start(|launch| launch.binaries(&variant).env("RUST_LOG", "off")).await;
    let observed = start(|launch| launch).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"); // a collector that never answers
    let collector = format!("http://{}", silent.local_addr().expect("it is bound"));
    let traced = start(|launch| launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)).await;
    let systems = [&plain, &observed, &traced];
    let read = compare(systems, "a product read", 200, |system, client| {
        client.request("GET", format!("{}/products/1", system.products.url()))
    });
    let read = read.await;
    let placed = compare(systems, "an order placed", 201, |system, client| {
        client.request("POST", format!("{}/orders", system.orders.url())).json(&order(1, 3, 1))
    });
    if read.max(placed.await) <= MAX_COST { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts the three services, with a product 3 that cannot sell out.
async fn start(prepare: impl Fn(Launch) -> Launch) -> System {
    let system = System::start_as(prepare).await.unwrap_or_else(|reason| panic!("{reason}"));
    let lamp = json!({"name": "Lamp", "price": 19.99, "stock": 1_000_000_000});
    system.products.post("/products", lamp).await.expect(201);
    system
}

/// Returns the cost of logs and metrics as a share. The cost of traces is only printed: they are off by default.
async fn compare(
    systems: [&System; 3],
    what: &str,
    status: u16,
    request: impl Fn(&System, &Client) -> system_tests::Request,
) -> f64 {
    let client = Client::default();
    let (mut rates, mut costs) = (Vec::new(), [const { Vec::new() }; 2]);
    for _ in 0..TURNS {
        let mut turn = Vec::new();
        for system in systems {
            let before = system.processor_seconds().await;
            let figures = closed_loop(CLIENTS, TURN, || request(system, &client).try_send()).await;
            assert!(figures.all(status), "{what}: {figures}");
            turn.push(figures.total() as f64 / (system.processor_seconds().await - before));
        }
        rates.push(turn[0]);
        for (costs, rate) in costs.iter_mut().zip(&turn[1..]) {
            costs.push(1.0 - rate / turn[0]);
        }
    }
    let (plain, [observed, traced]) = (median(rates), costs.map(median));
    println!(
        "observing: {what}: {plain:.0} per second of processor time without logs and metrics; they cost {:.1} %, with traces {:.1} %",
        100.0 * observed,
        100.0 * traced
    );
    observed
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
