//! One request through all the layers, in the process.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chassis::client::Peer;
use chassis::config::{Settings, defaults};
use serde_json::json;
use testing::{Client, dead_peer, eventually, stub_peer, with_timeout};
use tokio::time;
use tracing_subscriber::fmt::MakeWriter;

use crate::tiny::{self, PANIC, World, service, settings};

fn client() -> Client {
    client_with(&settings())
}

fn client_with(settings: &Settings) -> Client {
    Client::new(tiny::service(settings).0)
}

#[tokio::test]
async fn a_panic_is_a_problem_without_its_words_and_costs_one_request() {
    let client = client();
    let answer = client.get("/panic").await.expect(500);
    assert!(!answer.to_string().contains(PANIC), "{answer}");
    answer.expect_problem(500, "internal");
    client.get("/numbers/7").await.expect(200);
}

#[tokio::test]
async fn the_log_has_the_words_of_a_panic_beside_the_id_of_its_request() {
    let log = Log::default();
    let lines = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(lines);
    client().request("GET", "/panic").header("x-request-id", "the-one").send().await.expect(500);
    let log = log.text();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(PANIC)).collect();
    assert!(matches!(told.as_slice(), [line] if line.contains("the-one") && line.contains("ERROR")), "{log}");
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_given_up() {
    let client = client_with(&Settings { request_timeout: Duration::from_millis(50), ..settings() });
    with_timeout("the end of the request", client.get("/hang")).await.expect_problem(503, "overloaded");
}

/// Only a browser's preflight is CORS's to answer; a good one is tested with the services.
#[tokio::test]
async fn options_is_a_method_like_another() {
    let client = client();
    let answer = client.request("OPTIONS", "/numbers/1").send().await;
    assert_eq!(answer.header("allow"), "GET,HEAD");
    answer.expect_problem(405, "method-not-allowed");
    let from_a_page = client.request("OPTIONS", "/numbers/1").header("origin", "https://shop.example").send().await;
    assert_eq!(from_a_page.header("access-control-allow-methods"), "");
    from_a_page.expect_problem(405, "method-not-allowed");
    client.request("OPTIONS", "/nowhere").send().await.expect_problem(404, "not-found");
    client.request("OPTIONS", "/numbers/1").without("host").send().await.expect_problem(400, "invalid-request");
    let preflight = client.request("OPTIONS", "/numbers/1").header("origin", "https://shop.example");
    let preflight = preflight.header("access-control-request-method", "GET").without("host");
    preflight.send().await.expect_problem(400, "invalid-request");
}

#[tokio::test]
async fn names_each_header_that_a_preflight_asks_for() {
    let request = client().request("OPTIONS", "/numbers/1").header("origin", "https://shop.example");
    let request = request.header("access-control-request-method", "PUT");
    let answer = request.header("access-control-request-headers", "authorization,idempotency-key").send().await;
    assert_eq!(answer.header("access-control-allow-headers"), "authorization,idempotency-key", "{answer}");
    assert_eq!(answer.header("x-request-id").len(), 32, "a preflight is a request like others: {answer}");
    answer.expect(200);
}

#[tokio::test]
async fn sends_cors_headers_only_to_browsers() {
    let answer = client().get("/numbers/1").await.expect(200);
    let cors = answer.headers.keys().find(|name| name.as_str().starts_with("access-control"));
    assert!(cors.is_none() && !answer.headers.contains_key("vary"), "{answer}");

    let origins = vec!["https://shop.example".parse().unwrap()];
    let narrowed = client_with(&Settings { cors_allowed_origins: origins, ..settings() });
    let answer = narrowed.get("/numbers/1").await.expect(200);
    assert_eq!(answer.header("vary"), "origin", "a cache must tell this answer from one to a page: {answer}");
}

#[tokio::test]
async fn a_request_too_many_is_refused_at_once_and_health_never() {
    let (app, gate) = service(&Settings { max_in_flight: 2, ..settings() });
    let client = Client::new(app);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/wait").await })
        })
        .collect();
    gate.entered().await;
    gate.entered().await;
    with_timeout("a refusal", client.get("/id")).await.expect_problem(503, "overloaded");
    for path in ["/livez", "/readyz", "/metrics"] {
        client.get(path).await.expect(200);
    }
    for wait in waiting {
        gate.open();
        with_timeout("the end of what was in work", wait).await.expect("no panic").expect(200);
    }
    client.get("/id").await.expect(200);
}

#[tokio::test]
async fn a_request_given_up_leaves_its_place() {
    let (app, gate) = service(&Settings { max_in_flight: 1, ..settings() });
    let client = Client::new(app);
    let gone = tokio::spawn({
        let client = client.clone();
        async move { client.get("/wait").await }
    });
    gate.entered().await;
    gone.abort();
    assert!(gone.await.is_err(), "the client has gone");
    client.get("/id").await.expect(200);
}

#[tokio::test]
async fn a_caller_may_set_a_shorter_limit_and_no_longer_one() {
    let patient = client_with(&settings());
    let told = patient.request("GET", "/hang").header("x-deadline-ms", "20").send();
    with_timeout("the caller's limit", told).await.expect_problem(503, "overloaded");
    let hasty = client_with(&Settings { request_timeout: Duration::from_millis(20), ..settings() });
    let told = hasty.request("GET", "/hang").header("x-deadline-ms", "3600000").send();
    with_timeout("our limit", told).await.expect_problem(503, "overloaded");
    for nonsense in ["", "-1", "soon", "1.5"] {
        patient.request("GET", "/id").header("x-deadline-ms", nonsense).send().await.expect(200);
    }
}

#[tokio::test]
async fn an_error_that_a_library_answered_becomes_a_problem() {
    client().get("/bare").await.expect_problem(500, "internal");
    client().get("/nowhere").await.expect_problem(404, "not-found");
    let answer = client().delete("/echo").await;
    assert_eq!(answer.header("allow"), "POST");
    answer.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn a_body_is_taken_up_to_the_limit() {
    let limit = 2000;
    let client = client_with(&Settings { max_body_bytes: limit, ..settings() });
    let echo =
        async |size: u32| client.request("POST", "/echo").bytes("text/plain", vec![b'x'; size as usize]).send().await;
    assert_eq!(echo(limit).await.expect(200).body.len(), limit as usize);
    echo(limit + 1).await.expect_problem(413, "payload-too-large");
    let announced = client.request("POST", "/echo").header("content-length", "2001").bytes("text/plain", "short");
    announced.send().await.expect_problem(413, "payload-too-large");
}

#[tokio::test]
async fn a_header_is_taken_up_to_the_limit() {
    let client = client_with(&Settings { max_header_bytes: 2000, ..settings() });
    let padded = |length: usize| client.request("GET", "/numbers/1").header("x-padding", &"x".repeat(length));
    padded(1900).send().await.expect(200);
    padded(2000).send().await.expect_problem(431, "headers-too-large");
    client.get(&format!("/numbers/{}", "1".repeat(2000))).await.expect_problem(431, "headers-too-large");
}

#[tokio::test]
async fn every_answer_bears_the_id_by_which_the_handler_knew_its_request() {
    let answer = client().request("GET", "/id").header("x-request-id", "abc-1").send().await;
    assert_eq!((answer.header("x-request-id"), &answer.body[..]), ("abc-1", &b"abc-1"[..]));
    let answer = client().get("/id").await;
    assert_eq!(answer.header("x-request-id").as_bytes(), &answer.body[..], "one was made");
    assert_eq!(answer.body.len(), 32, "{answer}");
}

#[tokio::test]
async fn both_path_families_answer_but_health_has_one() {
    let client = client();
    for path in ["/numbers/7", "/api/numbers/7", "/livez", "/readyz", "/metrics", "/openapi.json"] {
        client.get(path).await.expect(200);
    }
    client.get("/api/livez").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn a_client_that_refuses_every_encoding_gets_the_plain_answer() {
    for refusal in ["identity;q=0", "*;q=0", "br, *;q=0", "identity;q=0, *;q=0", "*;q=0, identity;q=0"] {
        let answer = client().request("GET", "/numbers/7").header("accept-encoding", refusal).send().await;
        assert_eq!(&answer.expect(200).body[..], b"7", "{refusal}");
    }
}

#[tokio::test]
async fn a_service_without_its_store_is_alive_but_not_ready() {
    let world = World { store: Err("connection refused by 10.0.0.7".to_owned()), peers: Vec::new() };
    let client = Client::new(tiny::service_in(world, &settings()).0);
    let answer = client.get("/readyz").await;
    assert!(!answer.to_string().contains("10.0.0.7"), "the cause is for the log: {answer}");
    assert_eq!(answer.expect_problem(503, "store-unavailable")["reasons"], json!(["the store does not answer"]));
    assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
}

#[tokio::test]
async fn a_peer_that_is_away_is_told_of_but_does_not_make_a_service_unready() {
    let peer = |name, url| Peer::new(name, url, &defaults()).unwrap();
    let broken = axum::Router::new().fallback(async || axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let peers = vec![peer("there", stub_peer(broken).await), peer("away", dead_peer().await)];
    let client = Client::new(tiny::service_in(World { store: Ok(()), peers }, &settings()).0);
    let ready = json!({"status": "ready", "peers": {"there": "up", "away": "down"}});
    let is_so = async || client.get("/readyz").await.expect(200).json() == ready;
    eventually(&ready.to_string(), is_so).await; // half a second of silence can also be this machine's fault
}

#[tokio::test]
async fn a_silent_peer_does_not_hold_up_the_answer_of_readyz() {
    let silent = stub_peer(axum::Router::new().fallback(async || std::future::pending::<()>().await)).await;
    let peers = vec![Peer::new("silent", silent, &defaults()).unwrap()];
    let client = Client::new(tiny::service_in(World { store: Ok(()), peers }, &settings()).0);
    let ready = with_timeout("the answer", client.get("/readyz")).await.expect(200).json();
    assert_eq!(ready["peers"]["silent"], "down");
}

#[tokio::test]
async fn requests_are_counted_by_template_and_never_by_path() {
    let client = client();
    for path in ["/numbers/4000000071", "/api/numbers/4000000071", "/numbers/4000000071x", "/secret-path"] {
        client.get(path).await;
    }
    for n in 0..1000 {
        client.get(&format!("/secret-path/{n}")).await.expect(404);
    }
    client.request("BREW", "/numbers/4000000071").send().await.expect(405);
    let answer = client.get("/metrics").await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"), "{answer}");
    let page = String::from_utf8(answer.body.to_vec()).unwrap();
    for line in [
        r#"http_requests_total{method="GET",route="/numbers/{n}",status="200"} 1"#,
        r#"http_requests_total{method="GET",route="/api/numbers/{n}",status="200"} 1"#,
        r#"http_requests_total{method="GET",route="/numbers/{n}",status="400"} 1"#,
        r#"http_requests_total{method="GET",route="(none)",status="404"} 1001"#,
        r#"http_requests_total{method="OTHER",route="/numbers/{n}",status="405"} 1"#,
        r#"http_request_duration_seconds_count{method="GET",route="/numbers/{n}",status="2xx"} 1"#,
        "http_requests_in_flight 1",
    ] {
        assert!(page.lines().any(|told| told == line), "no {line} in:\n{page}");
    }
    assert!(!page.contains("4000000071") && !page.contains("secret-path") && !page.contains("BREW"), "{page}");
}

#[tokio::test]
async fn a_request_that_its_client_gives_up_is_counted_and_no_longer_in_flight() {
    let (app, gate) = tiny::service(&settings());
    let client = Client::new(app);
    let given_up = client.request("GET", "/wait").send();
    tokio::select! {
        _ = given_up => panic!("the gate is closed"),
        () = gate.entered() => {}
    }
    eventually("the figures of a request given up", async || {
        let page = client.get("/metrics").await.to_string();
        page.contains(r#"status="499"} 1"#) && page.contains("http_requests_in_flight 1")
    })
    .await;
}

#[tokio::test]
async fn the_document_is_served_as_it_is() {
    let (app, _) = tiny::service(&settings());
    let served = Client::new(app.clone()).get("/openapi.json").await.expect(200).json();
    assert_eq!(served, serde_json::to_value(app.document()).unwrap());
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"), "{served}");
    assert_eq!(served["info"]["title"], "tiny");
    let responses = &served["paths"]["/numbers/{n}"]["get"]["responses"];
    assert_eq!(responses["400"]["$ref"], "#/components/responses/Problem", "{responses}");
    assert_eq!(responses["200"]["description"], "OK", "every response has a description");
}

#[tokio::test]
async fn the_deadline_of_a_context_only_comes_nearer() {
    use chassis::context::RequestContext;
    let hour = Duration::from_secs(3600);
    let context = RequestContext::background(hour);
    let nearer = context.with_timeout(Duration::from_secs(60));
    assert!(nearer.time_left() <= Duration::from_secs(60) && nearer.request_id() == context.request_id());
    assert!(
        nearer.with_timeout(hour).time_left() <= Duration::from_secs(60),
        "the time of a request is not made longer"
    );
    let over = context.with_timeout(Duration::ZERO);
    time::sleep(Duration::from_millis(1)).await;
    assert_eq!(over.time_left(), Duration::ZERO);
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic while it is written")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while it is written").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
