//! What it costs to be seen: requests a second of the services' processor time, with log lines and metrics as they are by
//! themselves, against the same without either, in turns. Fails if it is more than [`MOST`] of what could be done.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use system_tests::load::{Caller, closed};
use system_tests::{Launch, System, order};

/// Of the requests that could be answered.
const MOST: f64 = 0.10;
const CLIENTS: u32 = 32;
/// They take turns so often, each time for so long; and only what one turn has is compared, for the machine is noisy.
const TURNS: usize = 21;
const TURN: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    let unseen = start(|launch| launch.env("MISTAKE", "nothing is counted").env("RUST_LOG", "off")).await;
    let seen = start(|launch| launch).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"); // who never answers
    let collector = format!("http://{}", nobody.local_addr().expect("it is bound"));
    let traced = start(|launch| launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector)).await;
    let systems = [&unseen, &seen, &traced];
    let read = compare(systems, "a product read", 200, |system, caller| {
        caller.request("GET", format!("{}/products/1", system.products.url()))
    });
    let read = read.await;
    let placed = compare(systems, "an order placed", 201, |system, caller| {
        caller.request("POST", format!("{}/orders", system.orders.url())).json(&order(1, 3, 1))
    });
    if read.max(placed.await) <= MOST { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The three, with more of a product 3 than can be ordered.
async fn start(prepare: impl Fn(Launch) -> Launch) -> System {
    let system = System::start_as(|launch| prepare(launch.with_fault_injection()))
        .await
        .unwrap_or_else(|reason| panic!("{reason}"));
    let lamp = json!({"name": "Lamp", "price": 19.99, "stock": 1_000_000_000});
    system.products.post("/products", lamp).await.expect(201);
    system
}

/// The share that it costs to be seen. That of being traced is only shown: it is paid by who asks for it.
async fn compare(
    systems: [&System; 3],
    what: &str,
    status: u16,
    request: impl Fn(&System, &Caller) -> system_tests::Sending,
) -> f64 {
    let caller = Caller::default();
    let (mut rates, mut costs) = (Vec::new(), [const { Vec::new() }; 2]);
    for _ in 0..TURNS {
        let mut turn = Vec::new();
        for system in systems {
            let before = system.processor_seconds().await;
            let figures = closed(CLIENTS, TURN, || request(system, &caller).try_send()).await;
            assert!(figures.all(status), "{what}: {figures}");
            turn.push(figures.total() as f64 / (system.processor_seconds().await - before));
        }
        rates.push(turn[0]);
        for (costs, rate) in costs.iter_mut().zip(&turn[1..]) {
            costs.push(1.0 - rate / turn[0]);
        }
    }
    let (unseen, [seen, traced]) = (median(rates), costs.map(median));
    println!(
        "observing: {what}: {unseen:.0} a second of processor time unseen; logged and counted costs {:.1} %, traced as well {:.1} %",
        100.0 * seen,
        100.0 * traced
    );
    seen
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
