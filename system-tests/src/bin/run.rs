//! `make run`: the three services on their default ports, their output side by side, until Ctrl-C. `AUTH=on` turns sign-in on.
//!
//! They inherit the environment (`RUST_LOG=warn make run` prints only warnings). This program alone stops them, callers
//! first: each has its own process group, which a terminal's Ctrl-C does not reach.

use std::env;
use std::io::{self, Write};
use std::net::IpAddr;
use std::pin::pin;
use std::process::ExitCode;

use system_tests::terminal::{Colour, paint, shutdown_signal};
use system_tests::{ADMIN, Launch, PRODUCTS, Service, SignIn, System, USERS, build, eventually};

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the reason is for the user on the terminal")]
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
    if let Some(host) = foreign_host() {
        print(&format!("HOST={host} is not an IP address; the services ignore it and listen on 127.0.0.1."));
    }
    if is_set("DATABASE_URL") {
        return Err("DATABASE_URL would be one database for all three, but each needs its own; \
                    see docs/postgres.md"
            .to_owned());
    }
    let sign_in = sign_in()?;
    print("Building the three services; the first time takes a few minutes.");
    build()?;
    let mut end = pin!(shutdown_signal().map_err(|error| format!("cannot catch signals: {error}"))?);
    let mut system = tokio::select! {
        started = System::start_with(sign_in.as_ref(), visible) => started?,
        () = &mut end => return Ok(()),
    };
    let ended = tokio::select! {
        reason = watch(&mut system, sign_in.as_ref()) => Err(reason),
        () = &mut end => Ok(()),
    };
    print("Stopping.");
    system.stop().await;
    ended
}

/// Returns the keys of sign-in with `AUTH=on`.
fn sign_in() -> Result<Option<SignIn>, String> {
    match env::var("AUTH").unwrap_or_default().trim() {
        "on" => SignIn::new().map(Some),
        "" | "off" => Ok(None),
        _ => Err("AUTH must be `on` or `off`".to_owned()),
    }
}

/// Starts it as a user would, with a prefix for its lines.
fn visible(launch: Launch) -> Launch {
    let colour = match launch.service() {
        USERS => Colour::Blue,
        PRODUCTS => Colour::Magenta,
        _ => Colour::Yellow,
    };
    let prefix = paint(&format!("{:15} | ", launch.service()), colour);
    let mut launch = launch.inherit_environment().show_output(prefix);
    if foreign_host().is_some() {
        launch = launch.env("HOST", "");
    }
    // Their stdout is a pipe, but a person reads it.
    if is_set("LOG_FORMAT") { launch } else { launch.env("LOG_FORMAT", "text") }
}

/// Returns the variable `HOST` if it is no setting of the services: zsh, csh and conda set it to the name of the machine.
fn foreign_host() -> Option<String> {
    let host = env::var_os("HOST").map(|host| host.to_string_lossy().into_owned());
    host.filter(|host| is_set("HOST") && host.parse::<IpAddr>().is_err())
}

/// Returns whether a variable has a value; the services ignore an empty one.
fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.to_string_lossy().trim().is_empty())
}

/// Waits until all are ready, and then until one of them ends. Returns why the others must be stopped.
async fn watch(system: &mut System, sign_in: Option<&SignIn>) -> String {
    for service in [&system.users, &system.products, &system.orders] {
        if !eventually(true, || is_ready(service)).await {
            return format!("{} does not become ready", service.url());
        }
    }
    greet(system, sign_in);
    system.wait_for_end().await
}

/// Prints the URLs, and requests to try.
fn greet(system: &System, sign_in: Option<&SignIn>) {
    let (users, products, orders) = (system.users.url(), system.products.url(), system.orders.url());
    let ready = paint("All three are ready. Ctrl-C stops them; so does the end of one.", Colour::Green);
    if let Some(sign_in) = sign_in {
        let commands = sign_in.commands(system);
        let password = sign_in.password();
        return print(&format!(
            "\n{ready} Open {orders}/ and sign in as {ADMIN} with the password {password}\n\
             Or try in another terminal:\n\n{commands}"
        ));
    }
    print(&format!(
        "\n{ready} Open {orders}/, or try in another terminal:\n\n  \
         curl -s {users}/users\n  \
         curl -s {products}/products\n  \
         curl -s {orders}/orders -H 'content-type: application/json' \\\n    \
         -d '{{\"userId\":1,\"products\":[{{\"productId\":1,\"quantity\":1}}]}}'\n"
    ));
}

/// Prints a line. Ignores that the reader of stdout may be gone.
fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

async fn is_ready(service: &Service) -> bool {
    service.request("GET", "/readyz").try_send().await.is_ok_and(|answer| answer.status == 200)
}
