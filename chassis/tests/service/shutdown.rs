//! Graceful shutdown.

use std::time::Duration;

use chassis::Shutdown;
use chassis::config::Settings;
use serde_json::json;
use testing::{eventually, with_timeout};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::raw_http::{Connection, Server};
use crate::sample_service::{self, Gate, settings};

async fn start(settings: Settings) -> (Server, Gate) {
    let (app, gate) = sample_service::service(&settings);
    (Server::start(app).await, gate)
}

/// Settings with a drain time of zero.
fn no_drain() -> Settings {
    Settings { drain: Duration::ZERO, ..settings() }
}

#[tokio::test]
async fn reports_draining_and_still_accepts_requests_after_sigterm() {
    let (mut server, _) = start(settings()).await;
    let mut open = server.connect().await;
    let before = open.get("/readyz").await.expect(200);
    assert_eq!(before.header("connection"), "", "it is kept open");
    server.request_shutdown(Shutdown::Drain);
    eventually("/readyz to return 503", async || server.get("/readyz").await.status == 503).await;

    let response = open.get("/readyz").await;
    assert_eq!(response.header("connection"), "close");
    assert_eq!(response.expect_problem(503, "draining")["reasons"], json!(["draining"]));
    open.closed().await;
    let response = server.get("/numbers/1").await.expect(200);
    assert_eq!(response.header("connection"), "close", "a new connection is for one request");
    server.get("/livez").await.expect(200);
}

#[tokio::test]
async fn closes_the_listener_after_the_drain_and_finishes_running_requests() {
    let (mut server, gate) = start(no_drain()).await;
    let mut running = server.connect().await;
    running.send_get("/wait").await;
    gate.entered().await;
    let mut half_sent = server.connect().await;
    half_sent.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhel").await;
    eventually("the half-sent request", async || server.get("/metrics").await.to_string().contains("in_flight 3"))
        .await;

    server.request_shutdown(Shutdown::Drain);
    eventually("the listener to close", async || !server.is_listening().await).await;
    assert!(!server.stops_soon().await, "it stopped while requests were running");
    gate.open();
    assert_eq!(running.response().await.expect(200).body, "through");
    running.closed().await;
    half_sent.send("lo").await;
    assert_eq!(half_sent.response().await.expect(200).body, "hello");
    server.stopped().await;
}

#[tokio::test]
async fn stops_when_the_drain_time_is_over() {
    let (mut server, _) = start(Settings { drain: Duration::from_millis(50), ..settings() }).await;
    server.request_shutdown(Shutdown::Drain);
    server.stopped().await;
}

#[tokio::test]
async fn skips_the_drain_after_ctrl_c() {
    let (mut server, _) = start(settings()).await; // with a drain time of an hour
    server.request_shutdown(Shutdown::Immediate);
    server.stopped().await;
}

#[tokio::test]
async fn does_not_wait_for_connections_without_a_request() {
    let (mut server, _) = start(no_drain()).await;
    let silent = server.connect().await;
    let mut idle = server.connect().await;
    idle.get("/numbers/1").await.expect(200);
    server.request_shutdown(Shutdown::Immediate);
    server.stopped().await;
    silent.closed().await;
    idle.closed().await;
}

#[tokio::test]
async fn waits_for_a_hanging_handler_only_until_the_shutdown_timeout() {
    let (mut server, _) = start(Settings { shutdown: Duration::from_millis(100), ..no_drain() }).await;
    let mut hanging = server.connect().await;
    hanging.send_get("/hang").await;
    eventually("the request", async || server.get("/metrics").await.to_string().contains("in_flight 2")).await;
    server.request_shutdown(Shutdown::Drain);
    server.stopped().await;
}

#[tokio::test]
async fn serves_one_request_of_the_last_accepted_connection() {
    // The client has a minute to send its request. The server does not wait longer than for its response.
    let (mut server, _) = start(Settings { linger: Duration::from_secs(60), ..no_drain() }).await;
    let mut last = server.connect().await;
    server.get("/numbers/1").await.expect(200); // connections are accepted in order, so `last` is accepted now
    server.request_shutdown(Shutdown::Drain);
    eventually("the listener to close", async || !server.is_listening().await).await;
    let response = last.get("/numbers/2").await.expect(200);
    assert_eq!(response.header("connection"), "close");
    server.stopped().await;
}

/// The kernel has accepted these connections, and resets them if the listener closes without the service accepting them.
#[tokio::test]
async fn serves_the_connections_in_the_queue_when_the_listener_closes() {
    let settings = Settings { linger: Duration::from_secs(60), ..no_drain() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    let (sender, queued) = oneshot::channel();
    // They connect in the same step in which the shutdown begins, so the accept loop does not see them.
    let shutdown = async move {
        let connect = |_| std::net::TcpStream::connect(address).expect("it listens");
        sender.send((0..20).map(connect).collect::<Vec<_>>()).expect("the test waits");
        Shutdown::Drain
    };
    let (app, _) = sample_service::service(&settings);
    let server = tokio::spawn(async move { chassis::serve(listener, &app, shutdown).await });
    for stream in queued.await.expect("the connections") {
        Connection::from_std(stream).get("/numbers/2").await.expect(200);
    }
    with_timeout("the end of the server", server).await.expect("it stops without a panic");
}

/// The shutdown timeout is an hour here: a hanging client does not count as a running request.
#[tokio::test]
async fn does_not_wait_for_hanging_clients() {
    let (mut server, _) = start(no_drain()).await;
    let mut half_a_header = server.connect().await;
    half_a_header.send("GET /numbers/1 HTTP/1.1\r\nhost: te").await;
    let mut half_a_body = server.connect().await;
    half_a_body.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhel").await;
    eventually("the half-sent body", async || server.get("/metrics").await.to_string().contains("in_flight 2")).await;
    let mut never_reads = server.connect().await;
    let request = format!("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\n{}", "x".repeat(60_000));
    tokio::spawn(async move { never_reads.send(request.repeat(500)).await });
    server.request_shutdown(Shutdown::Drain);
    server.stopped().await;
}
