//! Measures the three services with wrk: release builds in memory with default settings, on the same machine as wrk. Writes a
//! table and two plots into docs/.

mod plot;

use std::fmt::Write as _;
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{env, fs};

use system_tests::System;
use system_tests::wrk::{self, Figures, Kind};

const CONNECTIONS: [u32; 5] = [1, 4, 16, 64, 256];
/// Not measured.
const WARM_UP: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

const KINDS: [Kind; 5] = [
    Kind { name: "GET a user", service: |system| &system.users, line: ["GET", "/users/{1-2000}"], body: None },
    Kind {
        name: "GET a page of 50 users",
        service: |system| &system.users,
        line: ["GET", "/users?limit=50&after={1-1900}"],
        body: None,
    },
    Kind {
        name: "POST a user",
        service: |system| &system.users,
        line: ["POST", "/users"],
        body: Some(r#"{"name":"User {new}","email":"user{new}@example.com"}"#),
    },
    Kind {
        name: "GET users through product-service",
        service: |system| &system.products,
        line: ["GET", "/users?limit=50&after={1-1900}"],
        body: None,
    },
    wrk::ORDER,
];

/// The results of one window.
struct Window {
    connections: u32,
    figures: Figures,
    /// Requests per second of processor time, summed over the three services.
    per_processor_second: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match bench().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<(), String> {
    let system = wrk::system(|launch| launch).await?;
    let mut table = head();
    let mut orders = Vec::new();
    for kind in &KINDS {
        let mut windows = Vec::new();
        for connections in CONNECTIONS {
            let window = window(&system, kind, connections).await?;
            table += &row(kind, &window);
            println!("{}", table.lines().last().unwrap_or_default());
            windows.push(window);
        }
        orders = windows; // the last kind is plotted
    }
    write("bench.md", &table)?;
    write("bench.svg", &plot::svg(&orders, &plot::LIGHT))?;
    write("bench-dark.svg", &plot::svg(&orders, &plot::DARK))
}

/// # Errors
/// If wrk or any request fails: a failed request would count as a fast one.
async fn window(system: &System, kind: &Kind, connections: u32) -> Result<Window, String> {
    wrk::load(system, kind, connections, WARM_UP).await?;
    let before = system.processor_seconds().await;
    let figures = wrk::load(system, kind, connections, WINDOW).await?;
    let seconds = system.processor_seconds().await - before;
    if figures.failed > 0 {
        return Err(format!("{} of {} failed: {}", figures.failed, figures.requests, kind.name));
    }
    Ok(Window { connections, per_processor_second: figures.requests as f64 / seconds, figures })
}

fn head() -> String {
    let mut head = format!("By `make bench`, {}.\n\n", machine());
    head += "| | connections | requests/s | p50 ms | p99 ms | p99.9 ms | per second of processor time |\n";
    head + "|---|--:|--:|--:|--:|--:|--:|\n"
}

fn row(kind: &Kind, window: &Window) -> String {
    let Figures { rate, p50_p99_p999, .. } = &window.figures;
    let mut row = format!("| {:<33} | {:>3} | {rate:>6.0} |", kind.name, window.connections);
    for time in p50_p99_p999 {
        let _ = write!(row, " {:>6.2} |", time.as_secs_f64() * 1_000.0); // writing to a String cannot fail
    }
    row + &format!(" {:>6.0} |\n", window.per_processor_second)
}

/// Describes the machine.
fn machine() -> String {
    let output_of = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("processor unknown");
    let wrk =
        output_of("wrk", "-v").lines().next().unwrap_or_default().split(" [").next().unwrap_or_default().to_owned();
    let rustc = output_of("rustc", "--version");
    format!("{}, {} cores ({cpu}), {rustc}, {wrk}", output_of("date", "+%-d %B %Y"), output_of("nproc", "--all"))
}

fn write(file: &str, text: &str) -> Result<(), String> {
    let path = format!("{DOCS}/{file}");
    fs::write(&path, text).map_err(|error| format!("{path}: {error}"))
}
