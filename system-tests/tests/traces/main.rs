//! Traces and logs as an operator gets them: from a collector of traces, and from stdout.

mod collector;
mod sampling;

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use system_tests::durable::Durable;
use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, System, USERS, eventually, order, seed};
use tokio::net::TcpListener;

use self::collector::{Collector, SentSpan, hex, show};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn joins_the_spans_of_the_three_services_in_one_trace() {
    let collector = Collector::start().await;
    let system = System::start_as(|launch| collector.traced(launch)).await.unwrap();
    let placing = system.orders.request("POST", "/orders").header("traceparent", &format!("00-{TRACE}-{CALLER}-01"));
    placing.json(&order(1, 1, 1)).send().await.expect(201);

    let ordered = collector.find(ORDERS, "POST /orders").await;
    assert_eq!((ordered.trace(), hex(&ordered.span.parent_span_id)), (TRACE.to_owned(), CALLER.to_owned()));
    assert_eq!(ordered.span.kind(), SpanKind::Server);
    let expected = [
        ("http.request.method", "POST"),
        ("http.route", "/orders"),
        ("url.path", "/orders"),
        ("http.response.status_code", "201"),
    ];
    for (key, value) in expected {
        assert_eq!(ordered.attribute(key), value, "{key}: {ordered:#?}");
    }
    for (service, name, call) in [
        (USERS, "GET /users/{id}", "GET user-service"),
        (PRODUCTS, "PUT /reservations/{orderId}", "PUT product-service"),
    ] {
        let (calling, answering) = (collector.find(ORDERS, call).await, collector.find(service, name).await);
        assert_eq!((calling.trace(), answering.trace()), (TRACE.to_owned(), TRACE.to_owned()));
        assert_eq!((calling.span.kind(), answering.span.kind()), (SpanKind::Client, SpanKind::Server));
        assert_eq!(hex(&calling.span.parent_span_id), hex(&ordered.span.span_id), "{call} belongs to the order");
        assert_eq!(hex(&answering.span.parent_span_id), hex(&calling.span.span_id), "{name} belongs to the call");
        assert!(calling.attribute("url.full").starts_with("http://127.0.0.1:"), "{calling:#?}");
        assert!(!calling.is_error() && !answering.is_error());
    }
}

#[tokio::test]
async fn keeps_one_trace_per_order_when_orders_share_a_call() {
    let collector = Collector::start().await;
    let prepare = |launch: Launch| {
        collector.traced(launch).with_fault_injection().env("PAUSE_AT", "batch: before collecting:500")
    };
    let system = System::start_as(prepare).await.unwrap();
    let place = || system.orders.request("POST", "/orders").json(&order(1, 1, 1)).send();
    let (one, other) = tokio::join!(place(), place());
    one.expect(201);
    other.expect(201);
    collector.find(PRODUCTS, "POST /reservations").await;
    let named = |service: &str, name: &str| -> Vec<SentSpan> {
        collector.all().into_iter().filter(|sent| sent.service == service && sent.span.name == name).collect()
    };
    let takes = || named(PRODUCTS, "PUT /reservations/{orderId}");
    let both = async || takes().len() == 2 && named(ORDERS, "POST /orders").len() == 2;
    assert!(eventually(true, both).await, "{:#?}", collector.names());
    for ordered in named(ORDERS, "POST /orders") {
        let its = takes().into_iter().filter(|take| take.trace() == ordered.trace()).collect::<Vec<_>>();
        let [take] = its.as_slice() else { panic!("{its:#?}") };
        assert_eq!((&take.span.parent_span_id, take.span.kind()), (&ordered.span.span_id, SpanKind::Server));
    }
}

#[tokio::test]
async fn includes_the_statements_of_a_request_in_its_trace() {
    let collector = Collector::start().await;
    let Some(durable) = Durable::start(seed(), |launch| collector.traced(launch)).await else { return };
    let system = &durable.system;
    system.users.post("/users", json!({"name": "Eve"})).await.expect(201);
    system.add_product("Lamp", 19.99, 50).await;
    system.orders.post("/orders", order(1, 1, 1)).await.expect(201);
    let settled = collector.find(ORDERS, "settle").await;
    let reserved = collector.find(PRODUCTS, "reserve").await;
    let placed = collector.find(ORDERS, "POST /orders").await;
    assert_eq!((settled.trace(), reserved.trace()), (placed.trace(), placed.trace()));
    assert_eq!(settled.span.parent_span_id, placed.span.span_id);
    for step in [&settled, &reserved] {
        assert_eq!(
            (step.span.kind(), &*step.attribute("db.system.name")),
            (SpanKind::Client, "postgresql"),
            "{step:#?}"
        );
    }
    collector.find(USERS, "GET /users/{id}").await;
    let trace: Vec<_> = collector.all().into_iter().filter(|sent| sent.trace() == placed.trace()).collect();
    show(&trace, &placed.span.parent_span_id, 0);
}

#[tokio::test]
async fn marks_failures_but_not_client_errors() {
    let collector = Collector::start().await;
    let mut system = System::start_as(|launch| collector.traced(launch)).await.unwrap();
    system.orders.get("/orders/none").await.expect(400);
    assert!(
        !collector.find(ORDERS, "GET /orders/{id}").await.is_error(),
        "a client error is no failure of the service"
    );
    system.users.kill().await;
    system.orders.post("/orders", order(1, 1, 1)).await.expect(503);
    let ordered = collector.find(ORDERS, "POST /orders").await;
    assert!(ordered.is_error() && ordered.attribute("error.type") == "503", "{ordered:#?}");
    let call = collector.find(ORDERS, "GET user-service").await;
    assert!(call.is_error() && call.attribute("error.type") == "unreachable", "{call:#?}");
}

#[tokio::test]
async fn sends_the_last_spans_at_shutdown() {
    let collector = Collector::start().await;
    let launch = collector.traced(Launch::of(USERS)).env("OTEL_BSP_SCHEDULE_DELAY", 3_600_000);
    let mut users = Service::start(launch.env("OTEL_SERVICE_NAME", "people")).await.unwrap();
    users.get("/users/1").await.expect(200);
    users.signal(Signal::Interrupt).await;
    assert!(users.ends_within(Duration::from_secs(15)).await.success());
    let sent = collector.all();
    assert!(sent.iter().any(|sent| sent.service == "people" && sent.span.name == "GET /users/{id}"), "{sent:#?}");
}

#[tokio::test]
async fn sends_no_span_that_is_not_sampled() {
    let collector = Collector::start().await;
    let launch = collector.traced(Launch::of(USERS)).env("OTEL_TRACES_SAMPLER", "always_off");
    let mut users = Service::start(launch).await.unwrap();
    users.get("/users/1").await.expect(200);
    users.signal(Signal::Interrupt).await;
    assert!(users.ends_within(Duration::from_secs(15)).await.success());
    assert!(collector.all().is_empty(), "{:#?}", collector.names());
}

#[tokio::test]
async fn is_not_delayed_by_a_silent_collector() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap(); // the kernel accepts connections, and no process answers
    let collector = format!("http://{}", silent.local_addr().unwrap());
    let launch = Launch::of(USERS).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector).env("OTEL_BSP_SCHEDULE_DELAY", 10);
    let mut users = Service::start(launch.env("OTEL_BSP_MAX_QUEUE_SIZE", 10)).await.unwrap();
    for _ in 0..100 {
        users.get("/users/1").await.expect(200);
    }
    users.signal(Signal::Interrupt).await;
    assert!(users.ends_within(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn logs_one_line_per_request_with_its_ids() {
    let users = Service::start(Launch::of(USERS)).await.unwrap();
    let request = users.request("GET", "/users/1").header("traceparent", &format!("00-{TRACE}-{CALLER}-01"));
    request.header("x-request-id", "seven").send().await.expect(200);
    let lines = || -> Vec<Value> {
        let lines = users.log().into_iter();
        let lines = lines.map(|line| serde_json::from_str(&line).expect("JSON, because stdout is no terminal"));
        lines.filter(|line: &Value| line["message"] == "request").collect()
    };
    assert_eq!(eventually(1, async || lines().len()).await, 1, "{:#?}", users.log());
    let line = &lines()[0];
    let fields = ["level", "message", "method", "route", "request_id", "trace_id"].map(|field| line[field].as_str());
    assert_eq!(fields, ["INFO", "request", "GET", "/users/{id}", "seven", TRACE].map(Some), "{line}");
    assert!(line["status"] == 200 && line["ms"].is_number() && line["timestamp"].is_string(), "{line}");
    assert_eq!(line["client"], "127.0.0.1", "{line}");
}

#[tokio::test]
async fn logs_the_client_that_a_trusted_proxy_names() {
    for (trusted, client) in [("", "127.0.0.1"), ("10.0.0.0/8", "127.0.0.1"), ("127.0.0.1, 10.0.0.0/8", "198.51.100.7")]
    {
        let users = Service::start(Launch::of(USERS).env("TRUSTED_PROXIES", trusted)).await.unwrap();
        let request = users.request("GET", "/users/1").header("x-forwarded-for", "1.2.3.4, 198.51.100.7, 10.0.0.2");
        request.send().await.expect(200);
        let line = || users.log().into_iter().find(|line| line.contains(r#""route":"/users/{id}""#));
        assert!(eventually(true, async || line().is_some()).await, "{:#?}", users.log());
        let line: Value = serde_json::from_str(&line().expect("it was found")).expect("JSON");
        assert_eq!(line["client"], client, "TRUSTED_PROXIES={trusted}: {line}");
    }
}

#[tokio::test]
async fn writes_no_secret_into_logs_or_spans() {
    const SECRET: &str = "canary-7f3a9c";
    let collector = Collector::start().await;
    let prepare = |launch: Launch| collector.traced(launch).env("RUST_LOG", "trace");
    let system = System::start_as(prepare).await.unwrap();
    let account = json!({"username": "ada", "email": "ada@example.com", "password": SECRET});
    system.users.post("/users", account).await.expect(201);
    system.users.patch("/users/3", json!({"password": format!("{SECRET} new")})).await.expect(200);
    system.users.post("/users", json!({"username": SECRET, "password": 7})).await.expect(400);
    system.users.post("/users", json!({"name": "Bob", "password": SECRET, "email": "none"})).await.expect(400);
    for service in [&system.users, &system.products, &system.orders] {
        let request = service.request("GET", "/livez").header("authorization", &format!("Bearer {SECRET}"));
        request.header("cookie", &format!("session={SECRET}")).send().await.expect(200);
        service.request("POST", "/none").json(&json!({"token": SECRET})).send().await.expect(404);
    }
    collector.find(ORDERS, "POST (none)").await;
    collector.find(USERS, "PATCH /users/{id}").await;
    for service in [&system.users, &system.products, &system.orders] {
        let last = async || service.log().iter().any(|line| line.contains(r#""method":"POST","route":"(none)""#));
        assert!(eventually(true, last).await, "{:#?}", service.log());
    }
    let logs = [&system.users, &system.products, &system.orders].map(Service::log).concat();
    let spans: Vec<_> = collector.all().iter().map(|sent| format!("{sent:?}")).collect();
    let leaks: Vec<_> = logs.iter().chain(&spans).filter(|line| line.contains(SECRET)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}
