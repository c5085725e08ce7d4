//! What clients do to a connection, over real connections.

use std::time::Duration;

use axum::http::StatusCode;
use chassis::config::Settings;
use testing::{eventually, with_timeout};

use crate::raw_http::{Connection, Server};
use crate::sample_service::{self, settings};

const SHORT: Duration = Duration::from_millis(200);
const ECHO: &str = "POST /echo HTTP/1.1\r\nhost: test\r\n";

async fn start() -> Server {
    start_with(settings()).await
}

async fn start_with(settings: Settings) -> Server {
    Server::start(sample_service::service(&settings).0).await
}

/// Returns a keep-alive connection that has already received a response.
async fn reused(server: &Server) -> Connection {
    let mut connection = server.connect().await;
    connection.get("/numbers/1").await.expect(200);
    connection
}

#[tokio::test]
async fn answers_pipelined_requests_in_order() {
    let server = start().await;
    let mut connection = server.connect().await;
    let requests = (0..100).map(|n| match n % 2 {
        0 => format!("GET /numbers/{n} HTTP/1.1\r\nhost: test\r\n\r\n"),
        _ => format!("{ECHO}content-length: {}\r\n\r\n{n}", n.to_string().len()),
    });
    connection.send(requests.collect::<String>()).await;
    for n in 0..100 {
        assert_eq!(connection.response().await.expect(200).body, n.to_string());
    }
}

#[tokio::test]
async fn responds_before_the_next_pipelined_request_is_complete() {
    let server = start().await;
    let mut connection = server.connect().await;
    connection.send("GET /numbers/1 HTTP/1.1\r\nhost: test\r\n\r\nGET /numbers/2 HTTP/1.1\r\nho").await;
    assert_eq!(connection.response().await.expect(200).body, "1");
    connection.send("st: test\r\n\r\n").await;
    assert_eq!(connection.response().await.expect(200).body, "2");
}

#[tokio::test]
async fn closes_a_silent_connection() {
    let server = start_with(Settings { header_timeout: SHORT, ..settings() }).await;
    server.connect().await.closed().await;
    reused(&server).await.closed().await;
}

#[tokio::test]
async fn closes_a_connection_with_half_a_header() {
    let server = start_with(Settings { header_timeout: SHORT, ..settings() }).await;
    for mut connection in [server.connect().await, reused(&server).await] {
        connection.send("GET /numbers/1 HTTP/1.1\r\nhost: te").await;
        connection.closed().await;
    }
}

#[tokio::test]
async fn closes_a_connection_whose_header_arrives_byte_by_byte() {
    let server = start_with(Settings { header_timeout: SHORT, ..settings() }).await;
    let mut connection = server.connect().await;
    connection.send("GET /numbers/1 HTTP/1.1\r\nx-slow: ").await;
    with_timeout("the server to close the connection", async { while connection.send_byte_slowly().await {} }).await;
    connection.closed().await;
}

#[tokio::test]
async fn returns_408_when_the_body_does_not_arrive() {
    let server = start_with(Settings { body_timeout: SHORT, ..settings() }).await;
    for sent in
        ["content-length: 10\r\n\r\n", "content-length: 10\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n1\r\n"]
    {
        let mut connection = server.connect().await;
        connection.send(format!("{ECHO}{sent}")).await;
        connection.response().await.expect_problem(408, "request-timeout");
        connection.closed().await; // the server could not tell the next request from the rest of the body
    }
}

#[tokio::test]
async fn returns_408_when_the_body_arrives_byte_by_byte() {
    let server = start_with(Settings { body_timeout: SHORT, ..settings() }).await;
    let mut connection = server.connect().await;
    connection.send(format!("{ECHO}content-length: 60000\r\n\r\n")).await;
    with_timeout("a response", async { while connection.send_byte_slowly().await {} }).await;
    connection.response().await.expect_problem(408, "request-timeout");
}

#[tokio::test]
async fn does_not_count_the_time_of_the_body_against_the_handler() {
    let server = start_with(Settings { request_timeout: Duration::from_millis(50), ..settings() }).await;
    let mut connection = server.connect().await;
    connection.send(format!("{ECHO}content-length: 5\r\n\r\n")).await;
    for _ in 0..3 {
        assert!(!connection.receives_something().await, "it responded before the body was complete");
    }
    connection.send("hello").await;
    assert_eq!(connection.response().await.expect(200).body, "hello");
}

/// Large responses that the client never reads fill all buffers between server and client.
#[tokio::test]
async fn closes_the_connection_of_a_client_that_never_reads() {
    let server = start_with(Settings { header_timeout: SHORT, max_connections: 1, ..settings() }).await;
    let body = "x".repeat(60_000);
    let request = format!("{ECHO}content-length: {}\r\n\r\n{body}", body.len());
    server.connect().await.send(request.repeat(500)).await; // until the server closes the connection
    server.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn returns_413_when_the_body_is_over_the_limit() {
    let server = start_with(Settings { max_body_bytes: 2000, ..settings() }).await;
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    for (body, why) in [
        ("content-length: 2001\r\n\r\n".to_owned(), "declared, and nothing sent"),
        (format!("content-length: 5000\r\n\r\n{}", "x".repeat(5000)), "declared, and all sent"),
        (
            format!("content-length: 900000\r\n\r\n{}", "x".repeat(900_000)),
            "declared, and sent before anything is read",
        ),
        ("expect: 100-continue\r\ncontent-length: 2001\r\n\r\n".to_owned(), "declared, with Expect"),
        (format!("transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(3)), "chunked, without an end"),
    ] {
        let mut connection = server.connect().await;
        connection.send(format!("{ECHO}{body}")).await;
        let response = connection.response().await;
        assert_eq!(response.status, StatusCode::PAYLOAD_TOO_LARGE, "{why}: {response}");
        response.expect_problem(413, "payload-too-large");
    }
}

#[tokio::test]
async fn sends_100_continue_to_a_client_that_expects_it() {
    let server = start().await;
    let mut connection = server.connect().await;
    connection.send(format!("{ECHO}expect: 100-continue\r\ncontent-length: 5\r\n\r\n")).await;
    connection.response_head().await.expect(100);
    connection.send("hello").await;
    assert_eq!(connection.response().await.expect(200).body, "hello");
}

#[tokio::test]
async fn returns_431_when_the_header_is_over_the_limit() {
    let server = start().await;
    let limit = settings().max_header_bytes as usize;
    let with = |lines: String| format!("GET /numbers/1 HTTP/1.1\r\nhost: test\r\n{lines}\r\n");
    let mut connection = server.connect().await;
    connection.send(with(format!("x-padding: {}\r\n", "x".repeat(limit)))).await;
    connection.response().await.expect_problem(431, "headers-too-large");
    // Over hyper's limits (buffer, number of lines) the response is hyper's own, without a body.
    for lines in [format!("x-padding: {}\r\n", "x".repeat(10 * limit)), "x: y\r\n".repeat(1000)] {
        let mut connection = server.connect().await;
        connection.send(with(lines)).await;
        connection.response().await.expect(431);
    }
}

#[tokio::test]
async fn rejects_a_request_without_exactly_one_host() {
    let server = start().await;
    for (request, why) in [
        ("GET /numbers/1 HTTP/1.1\r\n\r\n", "none"),
        ("GET /numbers/1 HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", "two, HTTP/1.0"),
        ("GET /numbers/1 HTTP/1.0\r\nhost: a b\r\n\r\n", "two in one, HTTP/1.0"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "two"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "the same twice"),
        ("GET /numbers/1 HTTP/1.1\r\nhost:\r\n\r\n", "without a name"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a b\r\n\r\n", "two in one"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a/b\r\n\r\n", "with a path"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a@b\r\n\r\n", "with a user"),
    ] {
        let mut connection = server.connect().await;
        connection.send(request).await;
        let response = connection.response().await;
        assert_eq!(response.status, StatusCode::BAD_REQUEST, "{why}: {response}");
        response.expect_problem(400, "invalid-request");
    }
}

/// Health checks of load balancers are such requests.
#[tokio::test]
async fn accepts_http_1_0_without_a_host() {
    let server = start().await;
    for path in ["/numbers/1", "/readyz"] {
        let mut connection = server.connect().await;
        connection.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        connection.response().await.expect(200);
        connection.closed().await;
    }
}

#[tokio::test]
async fn accepts_a_host_name_or_address_with_or_without_a_port() {
    let server = start().await;
    for host in ["a", "a.example:80", "127.0.0.1:3001", "[::1]:3001", "caf%C3%A9"] {
        let mut connection = server.connect().await;
        connection.send(format!("GET /numbers/1 HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        connection.response().await.expect(200);
    }
}

#[tokio::test]
async fn rejects_every_transfer_coding_but_one_chunked() {
    let server = start().await;
    let chunked = "transfer-encoding: chunked\r\n";
    for (lines, status) in [
        (chunked, 200),
        ("transfer-encoding: Chunked\r\n", 200),
        (&chunked.repeat(2), 400),
        ("transfer-encoding: chunked, chunked\r\n", 400),
        ("transfer-encoding: gzip, chunked\r\n", 400),
    ] {
        let mut connection = server.connect().await;
        connection.send(format!("{ECHO}{lines}\r\n5\r\nhello\r\n0\r\n\r\n")).await;
        let response = connection.response().await;
        assert_eq!(response.status, status, "{lines}: {response}");
    }
}

#[tokio::test]
async fn responds_400_to_bytes_that_are_not_http_and_serves_other_connections() {
    let server = start().await;
    for bytes in [
        "\0\u{1}\u{2}\u{3}\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: test\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: -1\r\n\r\n",
    ] {
        let mut connection = server.connect().await;
        connection.send(bytes).await;
        connection.response().await.expect(400);
        connection.closed().await;
    }
    server.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn returns_400_when_a_chunk_is_malformed() {
    let server = start().await;
    let mut connection = server.connect().await;
    connection.send(format!("{ECHO}transfer-encoding: chunked\r\n\r\nzz\r\n")).await;
    connection.response().await.expect_problem(400, "invalid-request");
}

#[tokio::test]
async fn sends_no_body_in_the_response_to_head() {
    let server = start().await;
    let mut connection = server.connect().await;
    for (path, status) in [("/numbers/123", 200), ("/nowhere", 404)] {
        connection.send(format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        connection.response_head().await.expect(status);
    }
    assert_eq!(connection.get("/numbers/5").await.expect(200).body, "5", "there were bytes between the responses");
}

#[tokio::test]
async fn answers_a_client_that_closes_its_sending_side() {
    let (app, gate) = sample_service::service(&settings());
    let server = Server::start(app).await;
    let mut running = server.connect().await;
    running.send_get("/wait").await;
    gate.entered().await;
    running.close_sending_side().await;
    assert!(!running.receives_something().await, "the server closed the connection of a running request");
    gate.open();
    assert_eq!(running.response().await.expect(200).body, "through");
    running.closed().await;

    let mut sent = server.connect().await;
    sent.send(format!("{ECHO}content-length: 5\r\n\r\nhello{ECHO}content-length: 2\r\n\r\nho")).await;
    sent.close_sending_side().await;
    for body in ["hello", "ho"] {
        assert_eq!(sent.response().await.expect(200).body, body);
    }
    sent.closed().await;

    let mut half_sent = server.connect().await;
    half_sent.send(format!("{ECHO}content-length: 10\r\n\r\nhalf")).await;
    half_sent.close_sending_side().await;
    half_sent.response().await.expect_problem(400, "invalid-request");
    half_sent.closed().await;
}

/// TCP does not tell a client that disconnects from one that only closes its sending side.
#[tokio::test]
async fn survives_clients_that_disconnect() {
    let (app, gate) = sample_service::service(&settings());
    let server = Server::start(app).await;
    let mut connection = server.connect().await;
    connection.send_get("/wait").await;
    gate.entered().await;
    drop(connection);
    gate.open();
    eventually("the end of the request", async || {
        server.get("/metrics").await.expect(200).to_string().contains("http_requests_in_flight 1")
    })
    .await;
    let mut half_sent = server.connect().await;
    half_sent.send(format!("{ECHO}content-length: 10\r\n\r\nhalf")).await;
    drop(half_sent);
    server.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn accepts_no_more_than_max_connections() {
    let server = start_with(Settings { max_connections: 1, ..settings() }).await;
    let first = reused(&server).await;
    let mut second = server.connect().await; // accepted by the kernel
    second.send_get("/numbers/2").await;
    assert!(!second.receives_something().await, "it was server over the limit");
    drop(first);
    second.response().await.expect(200);
}
