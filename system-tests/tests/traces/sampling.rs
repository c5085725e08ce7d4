//! Which spans are sent, what peers get, and what happens without a collector that works.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use system_tests::{Launch, ORDERS, PRODUCTS, Service, Signal, System, USERS, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::collector::Collector;
use crate::{CALLER, TRACE};

const END_LIMIT: Duration = Duration::from_secs(15);

/// A server that answers every request alike, and keeps the headers that it gets, in lower case.
struct Stub {
    url: String,
    requests: Arc<Mutex<Vec<Vec<String>>>>,
    _tasks: JoinSet<()>,
}

impl Stub {
    /// Starts a server that answers with this status line and body.
    async fn start(status: &'static str, body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = Arc::<Mutex<Vec<Vec<String>>>>::default();
        let (mut tasks, kept) = (JoinSet::new(), Arc::clone(&requests));
        tasks.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let mut connection = BufReader::new(connection);
                let (mut lines, mut line) = (Vec::new(), String::new());
                while !matches!(connection.read_line(&mut line).await, Err(_) | Ok(0 | 2)) {
                    lines.push(line.trim_end().to_ascii_lowercase());
                    line.clear();
                }
                kept.lock().expect("no holder of the lock panics").push(lines);
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, requests, _tasks: tasks }
    }

    /// Returns all values of a header, one for each request of `GET /users`.
    fn values(&self, header: &str) -> Vec<Option<String>> {
        let requests = self.requests.lock().expect("no holder of the lock panics");
        let of_users = requests.iter().filter(|lines| lines[0].starts_with("get /users "));
        let value = |lines: &Vec<String>| {
            lines.iter().find_map(|line| line.strip_prefix(&format!("{header}: ")).map(str::to_owned))
        };
        of_users.map(value).collect()
    }
}

async fn end(mut service: Service) {
    service.signal(Signal::Interrupt).await;
    assert!(service.ends_within(END_LIMIT).await.success());
}

#[tokio::test]
async fn lets_the_sampler_decide() {
    let users = Stub::start("200 OK", "[]").await;
    let cases = [
        ("", "", None, true),
        ("always_on", "", None, true),
        ("always_on", "", Some("00"), true),
        ("always_off", "", None, false),
        ("always_off", "", Some("01"), false),
        ("traceidratio", "0", None, false),
        ("traceidratio", "0", Some("01"), false),
        ("traceidratio", "1", None, true),
        ("parentbased_always_on", "", Some("00"), false),
        ("parentbased_always_off", "", None, false),
        ("parentbased_always_off", "", Some("01"), true),
        ("parentbased_traceidratio", "0", None, false),
        ("parentbased_traceidratio", "0", Some("01"), true),
        ("parentbased_traceidratio", "1", None, true),
        ("parentbased_traceidratio", "1", Some("00"), false),
    ];
    for (sampler, argument, flags, sampled) in cases {
        let case = format!("{sampler} {argument} {flags:?}");
        let collector = Collector::start().await;
        let launch = collector.traced(Launch::of(PRODUCTS)).env("USER_SERVICE_URL", &users.url);
        let launch = launch.env("OTEL_TRACES_SAMPLER", sampler).env("OTEL_TRACES_SAMPLER_ARG", argument);
        let products = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
        let request = products.request("GET", "/users");
        let request = match flags {
            Some(flags) => request.header("traceparent", &format!("00-{TRACE}-{CALLER}-{flags}")),
            None => request,
        };
        request.send().await.expect(200);
        let sent = users.values("traceparent").pop().flatten().expect("each call has one");
        assert_eq!(sent.ends_with("-01"), sampled, "{case}: {sent}");
        end(products).await;
        let spans = collector.all();
        assert_eq!(!spans.is_empty(), sampled, "{case}: {:#?}", collector.names());
        if flags.is_none() {
            let roots = spans.iter().filter(|sent| sent.span.parent_span_id.is_empty()).count();
            assert_eq!(roots, usize::from(sampled), "{case}: a trace that begins here has one root: {spans:#?}");
        }
    }
}

#[tokio::test]
async fn samples_a_part_of_the_traces() {
    const REQUESTS: usize = 100;
    let (users, collector) = (Stub::start("200 OK", "[]").await, Collector::start().await);
    let launch = collector.traced(Launch::of(PRODUCTS)).env("USER_SERVICE_URL", &users.url);
    let launch = launch.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").env("OTEL_TRACES_SAMPLER_ARG", 0.5);
    let products = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
    for _ in 0..REQUESTS {
        products.get("/users").await.expect(200);
    }
    end(products).await;
    let sampled = users.values("traceparent").into_iter().flatten().filter(|sent| sent.ends_with("-01")).count();
    assert!((20..=80).contains(&sampled), "{sampled} of {REQUESTS}");
    let roots = collector.all().iter().filter(|sent| sent.span.parent_span_id.is_empty()).count();
    assert_eq!(roots, sampled);
}

#[tokio::test]
async fn passes_trace_and_baggage_on_without_a_collector() {
    let users = Stub::start("200 OK", "[]").await;
    let launch = Launch::of(PRODUCTS).env("USER_SERVICE_URL", &users.url);
    let products = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
    for flags in ["00", "01"] {
        let request = products.request("GET", "/users").header("traceparent", &format!("00-{TRACE}-{CALLER}-{flags}"));
        let request = request.header("tracestate", "vendor=1").header("baggage", "tenant=a;p=1,other=2");
        request.send().await.expect(200);
        let sent = |header| users.values(header).pop().flatten();
        assert_eq!(sent("traceparent"), Some(format!("00-{TRACE}-{CALLER}-{flags}")));
        assert_eq!(sent("tracestate").as_deref(), Some("vendor=1"));
        assert_eq!(sent("baggage").as_deref(), Some("tenant=a;p=1,other=2"));
    }
    products.get("/users").await.expect(200);
    assert_eq!(users.values("baggage").pop(), Some(None), "no request has the baggage of another");
}

#[tokio::test]
async fn passes_baggage_and_tracestate_on_with_a_collector() {
    let (users, collector) = (Stub::start("200 OK", "[]").await, Collector::start().await);
    let launch = collector.traced(Launch::of(PRODUCTS)).env("USER_SERVICE_URL", &users.url);
    let products = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
    let request = products.request("GET", "/users").header("traceparent", &format!("00-{TRACE}-{CALLER}-01"));
    request.header("tracestate", "vendor=1").header("baggage", "tenant=a").send().await.expect(200);
    let sent = |header| users.values(header).pop().flatten();
    assert!(sent("traceparent").is_some_and(|sent| sent.contains(TRACE) && !sent.contains(CALLER)));
    assert_eq!((sent("tracestate").as_deref(), sent("baggage").as_deref()), (Some("vendor=1"), Some("tenant=a")));
}

#[tokio::test]
async fn reports_only_health_checks_that_fail() {
    let collector = Collector::start().await;
    let prepare = |launch: Launch| collector.traced(launch).env("DRAIN_SECONDS", 3);
    let mut system = System::start_as(prepare).await.unwrap();
    for service in [&system.users, &system.products, &system.orders] {
        for path in ["/livez", "/readyz", "/metrics"] {
            service.get(path).await.expect(200);
            service.request("HEAD", path).send().await.expect(200);
        }
    }
    system.orders.signal(Signal::Terminate).await;
    let readiness = async || system.orders.request("GET", "/readyz").try_send().await.map_or(0, |answer| answer.status);
    assert_eq!(eventually(503, readiness).await, 503);
    system.orders.request("POST", "/livez").send().await.expect(405);
    assert!(system.orders.ends_within(END_LIMIT).await.success());
    let logs = system.orders.log();
    end(system.products).await;
    end(system.users).await;

    let mut spans = collector.names();
    spans.sort();
    spans.dedup();
    assert_eq!(spans, [format!("{ORDERS} GET /readyz"), format!("{ORDERS} POST /livez")]);
    let lines = logs.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let statuses = lines.filter(|line| line["message"] == "request").map(|line| line["status"].as_u64());
    let mut statuses: Vec<_> = statuses.flatten().collect();
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [405, 503], "{logs:#?}");
}

/// Returns the number of spans with this outcome.
async fn spans(service: &Service, outcome: &str) -> u64 {
    let name = format!(r#"trace_spans_total{{outcome="{outcome}"}}"#);
    service.metric(&name).await.unwrap_or_else(|| panic!("no {name}")) as u64
}

#[tokio::test]
async fn reports_a_collector_that_does_not_accept_spans_once() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port"); // no process answers
    let silent_url = format!("http://{}", silent.local_addr().expect("it is bound"));
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("it is bound");
    let (missing, broken) =
        (Stub::start("404 Not Found", "").await, Stub::start("500 Internal Server Error", "").await);
    for collector in [silent_url, format!("http://{closed}"), missing.url.clone(), broken.url.clone()] {
        let launch = Launch::of(USERS).env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector);
        let launch = launch.env("OTEL_BSP_SCHEDULE_DELAY", 10).env("OTEL_EXPORTER_OTLP_TIMEOUT", 300);
        let users = Service::start(launch).await.unwrap_or_else(|reason| panic!("{reason}"));
        for expected in 1..=2 {
            users.get("/users/1").await.expect(200);
            let lost = async || spans(&users, "rejected").await >= expected;
            assert!(eventually(true, lost).await, "{collector}");
        }
        assert_eq!(spans(&users, "exported").await, 0);
        let warnings =
            || users.log().into_iter().filter(|line| line.contains("trace export failed")).collect::<Vec<_>>();
        assert_eq!(eventually(1, async || warnings().len()).await, 1, "{collector}: {:#?}", users.log());
        assert!(warnings()[0].contains(r#""level":"WARN""#), "{:#?}", warnings());
        end(users).await;
    }
}

#[tokio::test]
async fn counts_and_reports_spans_that_find_the_queue_full() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port"); // no process answers
    let collector = format!("http://{}", silent.local_addr().expect("it is bound"));
    let launch = Launch::of(USERS).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
    let users =
        Service::start(launch.env("OTEL_BSP_MAX_QUEUE_SIZE", 10).env("OTEL_BSP_SCHEDULE_DELAY", 10)).await.unwrap();
    for _ in 0..100 {
        users.get("/users/1").await.expect(200);
    }
    assert!(spans(&users, "queue_full").await > 50);
    let warned = async || users.log().iter().filter(|line| line.contains("trace export failed")).count();
    assert_eq!(eventually(1, warned).await, 1, "{:#?}", users.log());
    end(users).await;
}
