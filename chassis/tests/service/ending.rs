//! The orderly end of a service.

use std::time::Duration;
use testing::eventually;

use chassis::Shutdown;
use chassis::config::Settings;
use serde_json::json;

use crate::tiny::{self, Gate, settings};
use crate::wire::Served;

async fn served(settings: Settings) -> (Served, Gate) {
    let (app, gate) = tiny::service(&settings);
    (Served::start(app).await, gate)
}

/// Settings without the grace time after SIGTERM.
fn no_drain() -> Settings {
    Settings { drain: Duration::ZERO, ..settings() }
}

#[tokio::test]
async fn at_first_a_service_says_that_it_is_going_and_still_takes_requests() {
    let (mut served, _) = served(settings()).await;
    let mut open = served.connect().await;
    let before = open.get("/readyz").await.expect(200);
    assert_eq!(before.header("connection"), "", "it is kept open");
    served.stop(Shutdown::Drain);
    eventually("/readyz to know", async || served.get("/readyz").await.status == 503).await;

    let answer = open.get("/readyz").await;
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(answer.expect_problem(503, "draining")["reasons"], json!(["draining"]));
    open.closed().await;
    let answer = served.get("/numbers/1").await.expect(200);
    assert_eq!(answer.header("connection"), "close", "a new connection is for one request");
    served.get("/livez").await.expect(200);
}

#[tokio::test]
async fn then_nothing_is_accepted_and_what_runs_is_finished() {
    let (mut served, gate) = served(no_drain()).await;
    let mut running = served.connect().await;
    running.ask("/wait").await;
    gate.entered().await;
    let mut half = served.connect().await;
    half.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhel").await;
    eventually("the half request", async || served.get("/metrics").await.to_string().contains("in_flight 3")).await;

    served.stop(Shutdown::Drain);
    eventually("the end of the listener", async || !served.listens().await).await;
    assert!(!served.ends().await, "it has ended while requests are running");
    gate.open();
    assert_eq!(running.answer().await.expect(200).body, "through");
    running.closed().await;
    half.send("lo").await;
    assert_eq!(half.answer().await.expect(200).body, "hello");
    served.ended().await;
}

#[tokio::test]
async fn after_the_grace_time_it_ends_by_itself() {
    let (mut served, _) = served(Settings { drain: Duration::from_millis(50), ..settings() }).await;
    served.stop(Shutdown::Drain);
    served.ended().await;
}

#[tokio::test]
async fn ctrl_c_does_not_wait_for_anyone_to_learn_of_it() {
    let (mut served, _) = served(settings()).await; // which has a grace time of an hour
    served.stop(Shutdown::Immediate);
    served.ended().await;
}

#[tokio::test]
async fn connections_without_a_request_do_not_hold_up_the_end() {
    let (mut served, _) = served(no_drain()).await;
    let silent = served.connect().await;
    let mut idle = served.connect().await;
    idle.get("/numbers/1").await.expect(200);
    served.stop(Shutdown::Immediate);
    served.ended().await;
    silent.closed().await;
    idle.closed().await;
}

#[tokio::test]
async fn a_handler_that_hangs_holds_up_the_end_only_so_long() {
    let (mut served, _) = served(Settings { shutdown: Duration::from_millis(100), ..no_drain() }).await;
    let mut hanging = served.connect().await;
    hanging.ask("/hang").await;
    eventually("the request", async || served.get("/metrics").await.to_string().contains("in_flight 2")).await;
    served.stop(Shutdown::Drain);
    served.ended().await;
}

#[tokio::test]
async fn who_was_let_in_last_is_still_served() {
    // He has a minute to ask, and the end does not wait for more than his answer.
    let (mut served, _) = served(Settings { linger: Duration::from_secs(60), ..no_drain() }).await;
    let mut last = served.connect().await;
    served.get("/numbers/1").await.expect(200); // whoever came before has been let in too
    served.stop(Shutdown::Drain);
    eventually("the end of the listener", async || !served.listens().await).await;
    let answer = last.get("/numbers/2").await.expect(200);
    assert_eq!(answer.header("connection"), "close");
    served.ended().await;
}

/// The limit for what runs is an hour here: what hangs does not count as running.
#[tokio::test]
async fn clients_that_hang_do_not_hold_up_the_end() {
    let (mut served, _) = served(no_drain()).await;
    let mut half_a_header = served.connect().await;
    half_a_header.send("GET /numbers/1 HTTP/1.1\r\nhost: te").await;
    let mut half_a_body = served.connect().await;
    half_a_body.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhel").await;
    eventually("the half body", async || served.get("/metrics").await.to_string().contains("in_flight 2")).await;
    let mut never_reads = served.connect().await;
    let request = format!("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\n{}", "x".repeat(60_000));
    tokio::spawn(async move { never_reads.send(request.repeat(500)).await });
    served.stop(Shutdown::Drain);
    served.ended().await;
}
