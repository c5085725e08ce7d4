//! One request through the whole pipeline, in the process.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use chassis::client::Peer;
use chassis::config::{Settings, defaults};
use futures_util::{future, stream};
use serde_json::json;
use testing::{Client, Sending, dead_peer, eventually, stub_peer, with_timeout};
use tokio::time::{self, Instant};
use tracing_subscriber::fmt::MakeWriter;

use crate::sample_service::{self, Dependencies, PANIC, service, settings};

fn client() -> Client {
    client_with(&settings())
}

fn client_with(settings: &Settings) -> Client {
    Client::new(service(settings).0)
}

#[tokio::test]
async fn turns_a_panic_into_a_500_without_its_message_and_serves_the_next_request() {
    let client = client();
    let response = client.get("/panic").await.expect(500);
    assert!(!response.to_string().contains(PANIC), "{response}");
    response.expect_problem(500, "internal");
    client.get("/numbers/7").await.expect(200);
}

#[tokio::test]
async fn logs_the_message_of_a_panic_with_the_request_id() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    client().request("GET", "/panic").header("x-request-id", "the-one").send().await.expect(500);
    let log = log.text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(PANIC)).collect();
    assert!(matches!(lines.as_slice(), [line] if line.contains("the-one") && line.contains("ERROR")), "{log}");
}

#[tokio::test]
async fn returns_503_when_the_handler_takes_too_long() {
    let client = client_with(&Settings { request_timeout: Duration::from_millis(500), ..settings() });
    let problem = with_timeout("the response", client.get("/hang")).await.expect_problem(503, "timed-out");
    assert!(problem["detail"].as_str().unwrap().contains("may have been done"), "{problem}");
    with_timeout("the response", client.get("/late")).await.expect_problem(503, "store-unavailable");
}

#[tokio::test]
async fn routes_options_like_other_methods_unless_it_is_a_preflight() {
    let client = client();
    let response = client.request("OPTIONS", "/numbers/1").send().await;
    assert_eq!(response.header("allow"), "GET,HEAD");
    response.expect_problem(405, "method-not-allowed");
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
    let response = request.header("access-control-request-headers", "authorization,idempotency-key").send().await;
    assert_eq!(response.header("access-control-allow-headers"), "authorization,idempotency-key", "{response}");
    assert_eq!(response.header("access-control-allow-methods"), "PUT", "{response}");
    assert_eq!(response.header("access-control-allow-credentials"), "", "no credentials from every origin: {response}");
    assert_eq!(response.header("x-request-id").len(), 32, "a preflight has a request id too: {response}");
    response.expect(200);
}

#[tokio::test]
async fn allows_credentials_from_the_configured_origins() {
    let origins = vec!["https://shop.example".parse().unwrap()];
    let client = client_with(&Settings { cors_allowed_origins: origins, ..settings() });
    let preflight = client.request("OPTIONS", "/numbers/1").header("access-control-request-method", "PUT");
    let preflight = preflight.header("access-control-request-headers", "authorization");
    for request in [preflight, client.request("GET", "/numbers/1")] {
        let response = request.header("origin", "https://shop.example").send().await.expect(200);
        assert_eq!(response.header("access-control-allow-origin"), "https://shop.example", "{response}");
        assert_eq!(response.header("access-control-allow-credentials"), "true", "{response}");
        let stars = response.headers.iter().filter(|(name, value)| name.as_str() != "vary" && *value == "*");
        assert_eq!(stars.count(), 0, "a star covers nothing in a request with credentials: {response}");
    }
}

#[tokio::test]
async fn sends_cors_headers_only_to_browsers() {
    let response = client().get("/numbers/1").await.expect(200);
    let cors = response.headers.keys().find(|name| name.as_str().starts_with("access-control"));
    assert!(cors.is_none() && !response.headers.contains_key("vary"), "{response}");

    let origins = vec!["https://shop.example".parse().unwrap()];
    let narrowed = client_with(&Settings { cors_allowed_origins: origins, ..settings() });
    let response = narrowed.get("/numbers/1").await.expect(200);
    assert_eq!(response.header("vary"), "origin", "a cache must tell this response from one to a page: {response}");
}

#[tokio::test]
async fn rejects_requests_over_max_in_flight_immediately_but_never_health_checks() {
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
    with_timeout("the rejection", client.get("/id")).await.expect_problem(503, "overloaded");
    for path in ["/livez", "/readyz", "/metrics"] {
        client.get(path).await.expect(200);
    }
    for wait in waiting {
        gate.open();
        with_timeout("the end of the running requests", wait).await.expect("no panic").expect(200);
    }
    client.get("/id").await.expect(200);
}

#[tokio::test]
async fn releases_the_permit_of_a_cancelled_request() {
    let (app, gate) = service(&Settings { max_in_flight: 1, ..settings() });
    let client = Client::new(app);
    let cancelled = tokio::spawn({
        let client = client.clone();
        async move { client.get("/wait").await }
    });
    gate.entered().await;
    cancelled.abort();
    assert!(cancelled.await.is_err(), "the request is cancelled");
    client.get("/id").await.expect(200);
}

#[tokio::test]
async fn shortens_the_timeout_to_the_callers_deadline_but_never_extends_it() {
    let long_timeout = client_with(&settings());
    let response = long_timeout.request("GET", "/hang").header("x-deadline-ms", "20").send();
    with_timeout("the caller's deadline", response).await.expect_problem(504, "deadline-exceeded");
    let short_timeout = client_with(&Settings { request_timeout: Duration::from_millis(20), ..settings() });
    let response = short_timeout.request("GET", "/hang").header("x-deadline-ms", "3600000").send();
    with_timeout("the service's timeout", response).await.expect_problem(503, "timed-out");
    for invalid in ["", "-1", "soon", "1.5"] {
        long_timeout.request("GET", "/id").header("x-deadline-ms", invalid).send().await.expect(200);
    }
}

/// A client that waits exactly as long as the limit still gets the answer. On a busy machine a try may take too long.
#[tokio::test]
async fn answers_before_the_time_limit() {
    let limit = Duration::from_millis(200);
    let service = client_with(&Settings { request_timeout: limit, ..settings() });
    let patient = client_with(&settings());
    let half_sent = || Body::from_stream(stream::pending::<Result<Bytes, io::Error>>());
    let with_deadline = |path| patient.request("GET", path).header("x-deadline-ms", "200");
    for (request, status) in [
        (&(|| service.request("GET", "/hang")) as &dyn Fn() -> Sending, 503),
        (&|| with_deadline("/hang"), 504),
        (&|| patient.request("POST", "/echo").header("x-deadline-ms", "200").body(half_sent()), 504),
    ] {
        let in_time = async || {
            let began = Instant::now();
            request().send().await.status == status && began.elapsed() < limit
        };
        eventually("an answer before the limit", in_time).await;
    }
}

#[tokio::test]
async fn does_not_log_a_callers_short_deadline_as_a_failure() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let client = client();
    for (path, ms, detail) in [
        ("/id", "0", "Nothing was done"),
        ("/hang", "20", "may have been done"),
        ("/late", "500", "may have been done"),
    ] {
        let response = client.request("GET", path).header("x-deadline-ms", ms).send();
        let problem = with_timeout("the response", response).await.expect_problem(504, "deadline-exceeded");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{path}: {problem}");
    }
    let log = log.text();
    let lines = log.lines().filter(|line| line.contains("deadline-exceeded") && line.contains(" INFO ")).count();
    assert!(lines == 3 && !log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(log.contains("it was slow"), "the cause of the third: {log}");
}

#[tokio::test]
async fn turns_error_responses_of_libraries_into_problems() {
    client().get("/bare").await.expect_problem(500, "internal");
    client().get("/nowhere").await.expect_problem(404, "not-found");
    let response = client().delete("/echo").await;
    assert_eq!(response.header("allow"), "POST");
    response.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn accepts_a_body_up_to_the_limit() {
    let limit = 2000;
    let client = client_with(&Settings { max_body_bytes: limit, ..settings() });
    let echo =
        async |size: u32| client.request("POST", "/echo").bytes("text/plain", vec![b'x'; size as usize]).send().await;
    assert_eq!(echo(limit).await.expect(200).body.len(), limit as usize);
    echo(limit + 1).await.expect_problem(413, "payload-too-large");
    let declared = client.request("POST", "/echo").header("content-length", "2001").bytes("text/plain", "short");
    declared.send().await.expect_problem(413, "payload-too-large");
}

#[tokio::test]
async fn rejects_the_query_of_a_call_that_has_none() {
    let client = client();
    for (method, path) in [("GET", "/numbers/1?x=2"), ("GET", "/api/numbers/1?limit"), ("HEAD", "/numbers/1?ids[]=2&x")]
    {
        let response = client.request(method, path).send().await.expect(400);
        if method == "GET" {
            let problem = response.expect_problem(400, "invalid-request");
            let detail = problem["errors"][0]["detail"].as_str().unwrap();
            assert_eq!(detail, "is unknown; this call has no parameters", "{path}");
        }
    }
    for path in ["/numbers/1?", "/livez?x", "/readyz?x", "/metrics?x", "/openapi.json?x", "/docs/?x"] {
        client.get(path).await.expect(200);
    }
    client.get("/nowhere?x").await.expect_problem(404, "not-found");
    client.delete("/numbers/1?x").await.expect_problem(405, "method-not-allowed");
}

#[tokio::test]
async fn accepts_a_header_up_to_the_limit() {
    let client = client_with(&Settings { max_header_bytes: 2000, ..settings() });
    let padded = |length: usize| client.request("GET", "/numbers/1").header("x-padding", &"x".repeat(length));
    padded(1900).send().await.expect(200);
    padded(2000).send().await.expect_problem(431, "headers-too-large");
    client.get(&format!("/numbers/{}", "1".repeat(2000))).await.expect_problem(431, "headers-too-large");
}

#[tokio::test]
async fn sends_the_request_id_that_the_handler_saw() {
    let response = client().request("GET", "/id").header("x-request-id", "abc-1").send().await;
    assert_eq!((response.header("x-request-id"), &response.body[..]), ("abc-1", &b"abc-1"[..]));
    let response = client().get("/id").await;
    assert_eq!(response.header("x-request-id").as_bytes(), &response.body[..], "it is generated");
    assert_eq!(response.body.len(), 32, "{response}");
}

#[tokio::test]
async fn serves_both_path_families_but_health_only_at_the_root() {
    let client = client();
    for path in ["/numbers/7", "/api/numbers/7", "/livez", "/readyz", "/metrics", "/openapi.json"] {
        client.get(path).await.expect(200);
    }
    client.get("/api/livez").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn sends_identity_to_a_client_that_refuses_every_encoding() {
    for refusal in ["identity;q=0", "*;q=0", "br, *;q=0", "identity;q=0, *;q=0", "*;q=0, identity;q=0"] {
        let response = client().request("GET", "/numbers/7").header("accept-encoding", refusal).send().await;
        assert_eq!(&response.expect(200).body[..], b"7", "{refusal}");
    }
}

#[tokio::test]
async fn is_alive_but_not_ready_without_its_store() {
    let dependencies = Dependencies { store: Err("connection refused by 10.0.0.7".to_owned()), peers: Vec::new() };
    let client = Client::new(sample_service::service_with(dependencies, &settings()).0);
    let response = client.get("/readyz").await;
    assert!(!response.to_string().contains("10.0.0.7"), "the cause must only be logged: {response}");
    assert_eq!(response.expect_problem(503, "store-unavailable")["reasons"], json!(["the store does not answer"]));
    assert_eq!(client.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
}

/// A peer that responds, even with 500, is up.
#[tokio::test]
async fn is_ready_when_a_peer_is_down_and_reports_it() {
    let peer = |name, url| Peer::new(name, url, &defaults()).unwrap();
    let failing = axum::Router::new().fallback(async || axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let peers = vec![peer("failing", stub_peer(failing).await), peer("dead", dead_peer().await)];
    let client = Client::new(sample_service::service_with(Dependencies { store: Ok(()), peers }, &settings()).0);
    let ready = json!({"status": "ready", "peers": {"failing": "up", "dead": "down"}});
    let is_ready = async || client.get("/readyz").await.expect(200).json() == ready;
    eventually(&ready.to_string(), is_ready).await; // a ping may time out on a busy machine
}

/// A flood of checks must not take down the database and the peers. The checks of a client that has gone are used, too.
#[tokio::test]
async fn shares_the_checks_of_readyz_for_half_a_second() {
    let probes = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&probes);
    let peer = axum::Router::new().fallback(async move || {
        counter.fetch_add(1, Ordering::Relaxed);
        time::sleep(Duration::from_millis(50)).await;
    });
    let peers = vec![Peer::new("counting", stub_peer(peer).await, &defaults()).unwrap()];
    let client = Client::new(sample_service::service_with(Dependencies { store: Ok(()), peers }, &settings()).0);
    let began = Instant::now();
    for _ in 0..10 {
        let impatient = client.request("GET", "/readyz").header("x-deadline-ms", "1").send();
        with_timeout("the response", impatient).await;
    }
    let checks = (0..100).map(|_| client.get("/readyz"));
    for response in with_timeout("the responses", future::join_all(checks)).await {
        response.expect(200);
    }
    client.get("/readyz").await.expect(200);
    let most = 1 + began.elapsed().as_millis() as usize / 500;
    let made = probes.load(Ordering::Relaxed);
    assert!((1..=most).contains(&made), "{made} checks, at most {most}");

    let again = async || {
        client.get("/readyz").await.expect(200);
        probes.load(Ordering::Relaxed) > made
    };
    eventually("a new check", again).await;
}

#[tokio::test]
async fn does_not_delay_readyz_when_a_peer_is_silent() {
    let silent = stub_peer(axum::Router::new().fallback(async || std::future::pending::<()>().await)).await;
    let peers = vec![Peer::new("silent", silent, &defaults()).unwrap()];
    let client = Client::new(sample_service::service_with(Dependencies { store: Ok(()), peers }, &settings()).0);
    let ready = with_timeout("the response", client.get("/readyz")).await.expect(200).json();
    assert_eq!(ready["peers"]["silent"], "down");
}

#[tokio::test]
async fn counts_requests_by_route_template_and_not_by_path() {
    let client = client();
    for path in ["/numbers/4000000071", "/api/numbers/4000000071", "/numbers/4000000071x", "/secret-path"] {
        client.get(path).await;
    }
    for n in 0..1000 {
        client.get(&format!("/secret-path/{n}")).await.expect(404);
    }
    client.request("BREW", "/numbers/4000000071").send().await.expect(405);
    let response = client.get("/metrics").await.expect(200);
    assert!(response.header("content-type").starts_with("text/plain; version=0.0.4"), "{response}");
    let page = String::from_utf8(response.body.to_vec()).unwrap();
    for line in [
        r#"http_requests_total{method="GET",route="/numbers/{n}",status="200"} 1"#,
        r#"http_requests_total{method="GET",route="/api/numbers/{n}",status="200"} 1"#,
        r#"http_requests_total{method="GET",route="/numbers/{n}",status="400"} 1"#,
        r#"http_requests_total{method="GET",route="(none)",status="404"} 1001"#,
        r#"http_requests_total{method="OTHER",route="/numbers/{n}",status="405"} 1"#,
        r#"http_request_duration_seconds_count{method="GET",route="/numbers/{n}",status="2xx"} 1"#,
        "http_requests_in_flight 1",
    ] {
        assert!(page.lines().any(|counted| counted == line), "no {line} in:\n{page}");
    }
    assert!(!page.contains("4000000071") && !page.contains("secret-path") && !page.contains("BREW"), "{page}");
}

#[tokio::test]
async fn counts_a_cancelled_request_as_499_and_no_longer_in_flight() {
    let (app, gate) = service(&settings());
    let client = Client::new(app);
    let cancelled = client.request("GET", "/wait").send();
    tokio::select! {
        _ = cancelled => panic!("the gate is closed"),
        () = gate.entered() => {}
    }
    eventually("the metrics of the cancelled request", async || {
        let page = client.get("/metrics").await.to_string();
        page.contains(r#"status="499"} 1"#) && page.contains("http_requests_in_flight 1")
    })
    .await;
}

#[tokio::test]
async fn serves_its_openapi_document() {
    let (app, _) = service(&settings());
    let served = Client::new(app.clone()).get("/openapi.json").await.expect(200).json();
    assert_eq!(served, serde_json::to_value(app.document()).unwrap());
    assert!(served["openapi"].as_str().unwrap().starts_with("3.1"), "{served}");
    assert_eq!(served["info"]["title"], "sample");
    let responses = &served["paths"]["/numbers/{n}"]["get"]["responses"];
    assert_eq!(responses["400"]["$ref"], "#/components/responses/Problem", "{responses}");
    assert_eq!(responses["200"]["description"], "OK", "a response without a description");
}

#[tokio::test]
async fn never_extends_the_deadline_of_a_context() {
    use chassis::context::RequestContext;
    let hour = Duration::from_secs(3600);
    let context = RequestContext::background(hour);
    let shorter = context.with_timeout(Duration::from_secs(60));
    assert!(shorter.time_left() <= Duration::from_secs(60) && shorter.request_id() == context.request_id());
    assert!(shorter.with_timeout(hour).time_left() <= Duration::from_secs(60), "the deadline was extended");
    let expired = context.with_timeout(Duration::ZERO);
    time::sleep(Duration::from_millis(1)).await;
    assert_eq!(expired.time_left(), Duration::ZERO);
}

/// A log in memory.
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
