//! `make run`: the three services at their own ports, their lines side by side, until Ctrl-C.
//!
//! They inherit the environment (`RUST_LOG=warn make run` is quiet), and they are stopped by us alone, callers first:
//! each is in a process group of its own, which a terminal's Ctrl-C does not reach.

use std::env;
use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;

use system_tests::terminal::{Colour, asked_to_end, paint};
use system_tests::{Launch, PRODUCTS, Service, System, USERS, build, eventually};

#[tokio::main]
#[expect(clippy::print_stderr, reason = "why it ends is for whoever started it")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    if env::var_os("DATABASE_URL").is_some() {
        return Err("DATABASE_URL would be one database for all three, and each needs one of its own; \
                    see docs/postgres.md"
            .to_owned());
    }
    say("Building the three services; the first time takes a few minutes.");
    build()?;
    let mut end = pin!(asked_to_end().map_err(|error| format!("cannot catch signals: {error}"))?);
    let mut system = tokio::select! {
        started = System::start_as(visible) => started?,
        () = &mut end => return Ok(()),
    };
    let ended = tokio::select! {
        reason = watch(&mut system) => Err(reason),
        () = &mut end => Ok(()),
    };
    say("Stopping.");
    system.stop().await;
    ended
}

/// As a user would start it, but for the prefix of its lines.
fn visible(launch: Launch) -> Launch {
    let colour = match launch.service() {
        USERS => Colour::Blue,
        PRODUCTS => Colour::Magenta,
        _ => Colour::Yellow,
    };
    let prefix = paint(&format!("{:15} | ", launch.service()), colour);
    let launch = launch.inherits().shown(prefix);
    // To them stdout is a pipe, and who looks at it is a person all the same.
    if env::var_os("LOG_FORMAT").is_none() { launch.env("LOG_FORMAT", "text") } else { launch }
}

/// Waits until all are ready, then until one of them ends: why the rest has to be stopped.
async fn watch(system: &mut System) -> String {
    for service in [&system.users, &system.products, &system.orders] {
        if !eventually(true, || is_ready(service)).await {
            return format!("{} does not become ready", service.url());
        }
    }
    greet(system);
    system.one_ended().await
}

/// Says where to look and what to try.
fn greet(system: &System) {
    let (users, products, orders) = (system.users.url(), system.products.url(), system.orders.url());
    say(&format!(
        "\n{} Watch them at {orders}/, or try, in another terminal:\n\n  \
         curl -s {users}/users\n  \
         curl -s {products}/products\n  \
         curl -s {orders}/orders -H 'content-type: application/json' \\\n    \
         -d '{{\"userId\":1,\"products\":[{{\"productId\":1,\"quantity\":1}}]}}'\n",
        paint("All three are ready; Ctrl-C, or the end of one, stops them.", Colour::Green)
    ));
}

/// Says something to whoever is still there to read it.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

async fn is_ready(service: &Service) -> bool {
    service.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 200)
}
