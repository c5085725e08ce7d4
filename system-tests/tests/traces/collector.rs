//! A collector of traces, as OpenTelemetry's protocol defines it.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use system_tests::{Launch, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A collector of traces by OTLP over HTTP.
pub(crate) struct Collector {
    pub(crate) url: String,
    spans: Arc<Mutex<Vec<SentSpan>>>,
    _tasks: JoinSet<()>,
}

/// A span, and the service that sent it.
#[derive(Clone, Debug)]
pub(crate) struct SentSpan {
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let spans = Arc::<Mutex<Vec<SentSpan>>>::default();
        let mut tasks = JoinSet::new();
        let all = Arc::clone(&spans);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(collect(connection, Arc::clone(&all)));
            }
        });
        Self { url, spans, _tasks: tasks }
    }

    /// Makes a service send its spans here, after 50 ms at most.
    pub(crate) fn traced(&self, launch: Launch) -> Launch {
        launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.url).env("OTEL_BSP_SCHEDULE_DELAY", 50)
    }

    pub(crate) fn all(&self) -> Vec<SentSpan> {
        self.spans.lock().expect("no holder of the lock panics").clone()
    }

    /// Waits for the span of this name from this service.
    pub(crate) async fn find(&self, service: &str, name: &str) -> SentSpan {
        let find = || self.all().into_iter().find(|sent| sent.service == service && sent.span.name == name);
        assert!(eventually(true, async || find().is_some()).await, "{service} {name}: {:#?}", self.names());
        find().expect("it was found")
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.all().iter().map(|sent| format!("{} {}", sent.service, sent.span.name)).collect()
    }
}

/// Prints a trace as a tree, as docs/observability.md shows one.
pub(crate) fn show(spans: &[SentSpan], parent: &[u8], depth: usize) {
    let mut children: Vec<_> = spans.iter().filter(|sent| sent.span.parent_span_id == parent).collect();
    children.sort_by_key(|sent| sent.span.start_time_unix_nano);
    for SentSpan { service, span } in children {
        let ms = (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e6;
        println!("{:3$}{:<4$}{:6.1} ms  {service}", "", span.name, ms, 2 * depth, 36 - 2 * depth);
        show(spans, &span.span_id, depth + 1);
    }
}

/// Reads the requests of one connection to its end.
async fn collect(connection: TcpStream, spans: Arc<Mutex<Vec<SentSpan>>>) {
    let mut connection = BufReader::new(connection);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while !matches!(connection.read_line(&mut line).await, Err(_) | Ok(0 | 2)) {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if length == 0 || connection.read_exact(&mut body).await.is_err() {
            return;
        }
        let export = ExportTraceServiceRequest::decode(&*body).expect("OTLP");
        for resource in export.resource_spans {
            let service = text(&resource.resource.expect("a resource").attributes, "service.name");
            let sent = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans
                .lock()
                .expect("no holder of the lock panics")
                .extend(sent.map(|span| SentSpan { service: service.clone(), span }));
        }
        if connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

/// An attribute as text; empty if there is none.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let attribute = attributes.iter().find(|attribute| attribute.key == key);
    match attribute.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Attribute::StringValue(text)) => text,
        Some(Attribute::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

impl SentSpan {
    pub(crate) fn attribute(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    pub(crate) fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub(crate) fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
