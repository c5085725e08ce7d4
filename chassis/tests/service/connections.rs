//! What clients do to a connection, on real ones.

use std::time::Duration;
use testing::{eventually, with_timeout};

use axum::http::StatusCode;
use chassis::config::Settings;

use crate::tiny::{self, settings};
use crate::wire::{Connection, Served};

const SHORT: Duration = Duration::from_millis(200);
const ECHO: &str = "POST /echo HTTP/1.1\r\nhost: test\r\n";

async fn served() -> Served {
    served_with(settings()).await
}

async fn served_with(settings: Settings) -> Served {
    Served::start(tiny::service(&settings).0).await
}

/// A connection that has had an answer, and is open.
async fn used(served: &Served) -> Connection {
    let mut connection = served.connect().await;
    connection.get("/numbers/1").await.expect(200);
    connection
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_their_order() {
    let served = served().await;
    let mut connection = served.connect().await;
    let requests = (0..100).map(|n| match n % 2 {
        0 => format!("GET /numbers/{n} HTTP/1.1\r\nhost: test\r\n\r\n"),
        _ => format!("{ECHO}content-length: {}\r\n\r\n{n}", n.to_string().len()),
    });
    connection.send(requests.collect::<String>()).await;
    for n in 0..100 {
        assert_eq!(connection.answer().await.expect(200).body, n.to_string());
    }
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_rest_of_the_next_request() {
    let served = served().await;
    let mut connection = served.connect().await;
    connection.send("GET /numbers/1 HTTP/1.1\r\nhost: test\r\n\r\nGET /numbers/2 HTTP/1.1\r\nho").await;
    assert_eq!(connection.answer().await.expect(200).body, "1");
    connection.send("st: test\r\n\r\n").await;
    assert_eq!(connection.answer().await.expect(200).body, "2");
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let served = served_with(Settings { header_timeout: SHORT, ..settings() }).await;
    served.connect().await.closed().await;
    used(&served).await.closed().await;
}

#[tokio::test]
async fn half_a_header_is_not_waited_for() {
    let served = served_with(Settings { header_timeout: SHORT, ..settings() }).await;
    for mut connection in [served.connect().await, used(&served).await] {
        connection.send("GET /numbers/1 HTTP/1.1\r\nhost: te").await;
        connection.closed().await;
    }
}

#[tokio::test]
async fn a_header_that_drips_is_not_waited_for() {
    let served = served_with(Settings { header_timeout: SHORT, ..settings() }).await;
    let mut connection = served.connect().await;
    connection.send("GET /numbers/1 HTTP/1.1\r\nx-drops: ").await;
    with_timeout("the server to hang up", async { while connection.drip().await {} }).await;
    connection.closed().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_so() {
    let served = served_with(Settings { body_timeout: SHORT, ..settings() }).await;
    for sent in
        ["content-length: 10\r\n\r\n", "content-length: 10\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n1\r\n"]
    {
        let mut connection = served.connect().await;
        connection.send(format!("{ECHO}{sent}")).await;
        connection.answer().await.expect_problem(408, "request-timeout");
        connection.closed().await; // what follows could not be told from the rest of the body
    }
}

#[tokio::test]
async fn a_body_that_drips_has_no_more_time_than_another() {
    let served = served_with(Settings { body_timeout: SHORT, ..settings() }).await;
    let mut connection = served.connect().await;
    connection.send(format!("{ECHO}content-length: 60000\r\n\r\n")).await;
    with_timeout("an answer", async { while connection.drip().await {} }).await;
    connection.answer().await.expect_problem(408, "request-timeout");
}

/// The time of a body is not taken from the time to answer it.
#[tokio::test]
async fn a_slow_body_leaves_the_handler_its_time() {
    let served = served_with(Settings { request_timeout: Duration::from_millis(50), ..settings() }).await;
    let mut connection = served.connect().await;
    connection.send(format!("{ECHO}content-length: 5\r\n\r\n")).await;
    for _ in 0..3 {
        assert!(!connection.hears_something().await, "it waits for the body");
    }
    connection.send("hello").await;
    assert_eq!(connection.answer().await.expect(200).body, "hello");
}

/// Large answers, asked for without end and never read, fill every buffer on the way.
#[tokio::test]
async fn a_client_that_never_reads_loses_its_place() {
    let served = served_with(Settings { header_timeout: SHORT, max_connections: 1, ..settings() }).await;
    let body = "x".repeat(60_000);
    let request = format!("{ECHO}content-length: {}\r\n\r\n{body}", body.len());
    served.connect().await.send(request.repeat(500)).await; // until the server hangs up
    served.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_told_so() {
    let served = served_with(Settings { max_body_bytes: 2000, ..settings() }).await;
    let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
    for (body, why) in [
        ("content-length: 2001\r\n\r\n".to_owned(), "announced, and nothing sent"),
        (format!("content-length: 5000\r\n\r\n{}", "x".repeat(5000)), "announced, and all sent"),
        (
            format!("content-length: 900000\r\n\r\n{}", "x".repeat(900_000)),
            "announced, and sent before anything is read",
        ),
        ("expect: 100-continue\r\ncontent-length: 2001\r\n\r\n".to_owned(), "announced, and asked whether to send it"),
        (format!("transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(3)), "chunked, without an end"),
    ] {
        let mut connection = served.connect().await;
        connection.send(format!("{ECHO}{body}")).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{why}: {answer}");
        answer.expect_problem(413, "payload-too-large");
    }
}

#[tokio::test]
async fn a_client_that_asks_whether_to_send_a_body_is_told_to() {
    let served = served().await;
    let mut connection = served.connect().await;
    connection.send(format!("{ECHO}expect: 100-continue\r\ncontent-length: 5\r\n\r\n")).await;
    connection.head().await.expect(100);
    connection.send("hello").await;
    assert_eq!(connection.answer().await.expect(200).body, "hello");
}

#[tokio::test]
async fn a_header_over_the_limit_is_told_so() {
    let served = served().await;
    let limit = settings().max_header_bytes as usize;
    let with = |line: String| format!("GET /numbers/1 HTTP/1.1\r\nhost: test\r\n{line}\r\n");
    let mut connection = served.connect().await;
    connection.send(with(format!("x-padding: {}\r\n", "x".repeat(limit)))).await;
    connection.answer().await.expect_problem(431, "headers-too-large");
    // Beyond the buffer, or the number of lines that hyper takes, there is no request yet that could be answered.
    for lines in [format!("x-padding: {}\r\n", "x".repeat(10 * limit)), "x: y\r\n".repeat(1000)] {
        let mut connection = served.connect().await;
        connection.send(with(lines)).await;
        connection.answer().await.expect(431);
    }
}

#[tokio::test]
async fn a_request_names_one_host() {
    let served = served().await;
    for (request, why) in [
        ("GET /numbers/1 HTTP/1.1\r\n\r\n", "none"),
        ("GET /numbers/1 HTTP/1.0\r\n\r\n", "none, in the old way"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "two"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", "the same twice"),
        ("GET /numbers/1 HTTP/1.1\r\nhost:\r\n\r\n", "without a name"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a b\r\n\r\n", "two in one"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a/b\r\n\r\n", "with a path"),
        ("GET /numbers/1 HTTP/1.1\r\nhost: a@b\r\n\r\n", "with a user"),
    ] {
        let mut connection = served.connect().await;
        connection.send(request).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{why}: {answer}");
        answer.expect_problem(400, "invalid-request");
    }
}

#[tokio::test]
async fn a_host_may_be_a_name_or_an_address_with_a_port() {
    let served = served().await;
    for host in ["a", "a.example:80", "127.0.0.1:3001", "[::1]:3001", "caf%C3%A9"] {
        let mut connection = served.connect().await;
        connection.send(format!("GET /numbers/1 HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        connection.answer().await.expect(200);
    }
}

#[tokio::test]
async fn a_body_that_was_coded_is_not_taken_for_one_that_was_not() {
    let served = served().await;
    let chunked = "transfer-encoding: chunked\r\n";
    for (lines, status) in [
        (chunked, 200),
        ("transfer-encoding: Chunked\r\n", 200),
        (&chunked.repeat(2), 400),
        ("transfer-encoding: chunked, chunked\r\n", 400),
        ("transfer-encoding: gzip, chunked\r\n", 400),
    ] {
        let mut connection = served.connect().await;
        connection.send(format!("{ECHO}{lines}\r\n5\r\nhello\r\n0\r\n\r\n")).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, status, "{lines}: {answer}");
    }
}

#[tokio::test]
async fn what_is_no_http_costs_its_connection_and_nothing_else() {
    let served = served().await;
    for bytes in [
        "\0\u{1}\u{2}\u{3}\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: test\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: -1\r\n\r\n",
    ] {
        let mut connection = served.connect().await;
        connection.send(bytes).await;
        connection.answer().await.expect(400);
        connection.closed().await;
    }
    served.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn a_chunk_that_is_none_is_a_problem() {
    let served = served().await;
    let mut connection = served.connect().await;
    connection.send(format!("{ECHO}transfer-encoding: chunked\r\n\r\nzz\r\n")).await;
    connection.answer().await.expect_problem(400, "invalid-request");
}

#[tokio::test]
async fn the_answer_to_head_has_no_body() {
    let served = served().await;
    let mut connection = served.connect().await;
    for (path, status) in [("/numbers/123", 200), ("/nowhere", 404)] {
        connection.send(format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        connection.head().await.expect(status);
    }
    assert_eq!(connection.get("/numbers/5").await.expect(200).body, "5", "nothing was between the answers");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nobody_with_it() {
    let (app, gate) = tiny::service(&settings());
    let served = Served::start(app).await;
    let mut connection = served.connect().await;
    connection.ask("/wait").await;
    gate.entered().await;
    drop(connection);
    eventually("the end of the request", async || {
        served.get("/metrics").await.expect(200).to_string().contains(r#"status="499"} 1"#)
    })
    .await;
    let mut within_a_body = served.connect().await;
    within_a_body.send(format!("{ECHO}content-length: 10\r\n\r\nhalf")).await;
    drop(within_a_body);
    served.get("/numbers/1").await.expect(200);
}

#[tokio::test]
async fn no_more_connections_are_taken_than_there_are_places() {
    let served = served_with(Settings { max_connections: 1, ..settings() }).await;
    let first = used(&served).await;
    let mut second = served.connect().await; // by the kernel
    second.ask("/numbers/2").await;
    assert!(!second.hears_something().await, "it was answered while there was no place");
    drop(first);
    second.answer().await.expect(200);
}
