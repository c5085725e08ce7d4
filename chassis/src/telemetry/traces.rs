//! Traces: one for each request, through all services that work on it.
//!
//! W3C Trace Context links the services, and names follow OpenTelemetry's semantic conventions. Spans are exported by OTLP over
//! HTTP. OpenTelemetry's library reads further settings from its own variables: `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.
//!
//! A collector that is down delays no request: spans wait in a bounded queue, and a thread of the library exports them. Lost spans
//! are counted and logged; see [`super::export`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{Method, StatusCode, Uri};
use opentelemetry::trace::{SpanContext, TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Span, Subscriber, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use super::export::{Queue, Sampler};

/// Maximum time to export the last spans when the process ends.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// The target of the spans that are exported; libraries make others.
const TARGET: &str = "traces";

/// Whether there is a collector. Without one no spans are made, so that tracing costs one load a span.
static ENABLED: AtomicBool = AtomicBool::new(false);

fn tracing_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Returns the provider that exports spans to `collector`. At most `max_spans` wait for it. `OTEL_SERVICE_NAME` overrides `service`.
pub(super) fn provider(service: &'static str, collector: &Url, max_spans: u32) -> Result<SdkTracerProvider, String> {
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT={collector}: {error}"))?;
    ENABLED.store(true, Ordering::Relaxed);
    let mut resource = Resource::builder();
    if resource_name().is_none_or(|name| name.trim().is_empty() || name.starts_with("unknown_service")) {
        resource = resource.with_service_name(service);
    }
    let provider = SdkTracerProvider::builder().with_sampler(Sampler::configured());
    Ok(provider.with_span_processor(Queue::new(exporter, max_spans as usize)).with_resource(resource.build()).build())
}

/// Returns the service name that OpenTelemetry's variables set; `unknown_service…` if they set none.
fn resource_name() -> Option<String> {
    let detected = Resource::builder().build();
    detected.get(&"service.name".into()).map(|name| name.to_string())
}

pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S> {
    let layer = tracing_opentelemetry::layer::<S>().with_tracer::<SdkTracer>(provider.tracer(env!("CARGO_PKG_NAME")));
    // Attributes about the code (file, thread, target) would only add to the size of a span.
    let layer = layer.with_location(false).with_threads(false).with_target(false).with_level(false);
    let layer = layer.with_tracked_inactivity(false);
    layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET))
}

/// Starts the span of a request. It is the root of its trace if there is no remote parent.
pub(crate) fn server_span(
    method: &Method,
    route: &str,
    uri: &Uri,
    remote_parent: impl FnOnce() -> Option<SpanContext>,
) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET, parent: None, "request", otel.kind = "server", otel.name = format_args!("{method} {route}"),
        otel.status_code = field::Empty, http.request.method = %method, http.route = route, url.path = uri.path(),
        url.scheme = "http", http.response.status_code = field::Empty, error.type = field::Empty
    );
    if let Some(parent) = remote_parent() {
        set_parent(&span, parent);
    }
    span
}

/// Starts the server span of one item of a batched call. It has no status code of its own.
pub(crate) fn item_span(name: &'static str, parent: impl FnOnce() -> SpanContext) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET, "item", otel.kind = "server", otel.name = name, otel.status_code = field::Empty,
        error.type = field::Empty
    );
    set_parent(&span, parent());
    span
}

/// Starts the span of a call to a peer.
pub(crate) fn client_span(method: &Method, peer: &str, url: impl FnOnce() -> Url) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    let url = url();
    tracing::info_span!(
        target: TARGET, "call", otel.kind = "client", otel.name = format_args!("{method} {peer}"),
        otel.status_code = field::Empty, http.request.method = %method, url.full = %url, peer.service = peer,
        server.address = url.host_str(), server.port = url.port_or_known_default(),
        http.response.status_code = field::Empty, error.type = field::Empty
    )
}

/// Starts the span of a database statement, its retries included.
pub(crate) fn statement_span(statement: &'static str) -> Span {
    if !tracing_enabled() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET, "statement", otel.kind = "client", otel.name = statement, otel.status_code = field::Empty,
        db.system.name = "postgresql", db.operation.name = statement, error.type = field::Empty
    )
}

/// Records the status of the response. From `first_error` on it is an error: 500 for a server span, 400 for a client span.
pub(crate) fn record_status(span: &Span, status: StatusCode, first_error: u16) {
    span.record("http.response.status_code", status.as_u16());
    if status.as_u16() >= first_error {
        record_error(span, status.as_str());
    }
}

/// Marks the span as failed; `error_type` is a word of a small set.
pub(crate) fn record_error(span: &Span, error_type: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error_type);
}

/// Returns the ids of a span. `None` if tracing is disabled.
pub(crate) fn span_context(span: &Span) -> Option<SpanContext> {
    (!span.is_disabled()).then(|| span.context().span().span_context().clone())
}

fn set_parent(span: &Span, parent: SpanContext) {
    let parent = opentelemetry::Context::new().with_remote_span_context(parent);
    let _ = span.set_parent(parent); // it fails only for a span that has started
}
