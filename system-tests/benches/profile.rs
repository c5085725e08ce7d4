//! Writes a flame graph of order-service under load to `target/profiling`.

use std::process::ExitCode;
use std::time::Duration;

use system_tests::wrk;
use tokio::process::Command;

const CONNECTIONS: u32 = 64;
const WARM_UP: Duration = Duration::from_secs(2);
const LOAD: Duration = Duration::from_secs(14);
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/profiling");
/// The steps of the profiler. All of them run during the load.
const RECORD: &str = r#"set -e; folder=$1
perf record --quiet -F 999 -g -p "$0" -o "$folder/perf.data" -- sleep 10
perf script -i "$folder/perf.data" 2>"$folder/perf.log" | inferno-collapse-perf --quiet >"$folder/order-service.folded"
inferno-flamegraph --title "order-service, orders over 64 connections" "$folder/order-service.folded" >"$folder/order-service.svg""#;

#[tokio::main]
async fn main() -> ExitCode {
    match profile().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("profile: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn profile() -> Result<(), String> {
    let system = wrk::system(|launch| launch).await?;
    wrk::load(&system, &wrk::ORDER, CONNECTIONS, WARM_UP).await?;
    let mut record = Command::new("sh");
    record.args(["-c", RECORD, &system.orders.pid().to_string()]).arg(FOLDER).kill_on_drop(true);
    let (figures, recorded) = tokio::join!(wrk::load(&system, &wrk::ORDER, CONNECTIONS, LOAD), record.status());
    if !recorded.is_ok_and(|status| status.success()) {
        return Err(format!("perf or inferno failed, see {FOLDER}/perf.log"));
    }
    println!("profile: {:.0} orders per second; target/profiling/order-service.svg", figures?.rate);
    Ok(())
}
