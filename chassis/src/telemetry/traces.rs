//! Traces: one for each request, through all the services that had a part in it, as W3C Trace Context passes it on and
//! OpenTelemetry's semantic conventions name what is in it. They are sent by OTLP over HTTP; what is left open here is read by
//! OpenTelemetry's own library from its own variables: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.
//!
//! A collector that is away costs nothing: spans wait in a queue of bounded length, in a thread of its own.

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

/// How long the end of a process waits for the collector to take the last spans.
pub const LAST_CALL: Duration = Duration::from_secs(3);

/// The target of the spans that are sent; others are libraries' own.
const TARGET: &str = "traces";

/// Whether anybody is told. If not, spans are not made at all: to ask for each costs next to nothing.
static WANTED: AtomicBool = AtomicBool::new(false);

fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Sends the spans of `service`, as OpenTelemetry's own variables may call it otherwise, to the collector at this address.
pub(super) fn provider(service: &'static str, collector: &Url) -> Result<SdkTracerProvider, String> {
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT={collector}: {error}"))?;
    WANTED.store(true, Ordering::Relaxed);
    let mut resource = Resource::builder();
    let unnamed = |name: &str| name.starts_with("unknown_service");
    if resource_name().is_none_or(|name| unnamed(&name)) {
        resource = resource.with_service_name(service);
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

/// What OpenTelemetry's own variables call the service.
fn resource_name() -> Option<String> {
    let detected = Resource::builder().build();
    detected.get(&"service.name".into()).map(|name| name.to_string())
}

pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S> {
    let layer = tracing_opentelemetry::layer::<S>().with_tracer::<SdkTracer>(provider.tracer(env!("CARGO_PKG_NAME")));
    // What a span says is in its attributes; how the code came to it is nobody's business.
    let layer = layer.with_location(false).with_threads(false).with_target(false).with_level(false);
    let layer = layer.with_tracked_inactivity(false);
    layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET))
}

/// The span of a request that came in, as a part of what its caller does.
pub(crate) fn of_request(method: &Method, route: &str, uri: &Uri, caller: impl FnOnce() -> SpanContext) -> Span {
    if !wanted() {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET, "request", otel.kind = "server", otel.name = format_args!("{method} {route}"),
        otel.status_code = field::Empty, http.request.method = %method, http.route = route, url.path = uri.path(),
        url.scheme = "http", http.response.status_code = field::Empty, error.type = field::Empty
    );
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(caller())); // it has none yet
    span
}

/// The span of one of several things that were asked in one call, as a part of what its own caller does. It is what that one would have had alone, but for a status.
pub(crate) fn of_one(name: &'static str, caller: impl FnOnce() -> SpanContext) -> Span {
    if !wanted() {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET, "one", otel.kind = "server", otel.name = name, otel.status_code = field::Empty,
        error.type = field::Empty
    );
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(caller())); // it has none yet
    span
}

/// The span of a call to a peer.
pub(crate) fn of_call(method: &Method, peer: &str, url: &Url) -> Span {
    if !wanted() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET, "call", otel.kind = "client", otel.name = format_args!("{method} {peer}"),
        otel.status_code = field::Empty, http.request.method = %method, url.full = %url, peer.service = peer,
        server.address = url.host_str(), server.port = url.port_or_known_default(),
        http.response.status_code = field::Empty, error.type = field::Empty
    )
}

/// The span of a step in the database, all its tries.
pub(crate) fn of_step(step: &'static str) -> Span {
    if !wanted() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET, "step", otel.kind = "client", otel.name = step, otel.status_code = field::Empty,
        db.system.name = "postgresql", db.operation.name = step, error.type = field::Empty
    )
}

/// It was answered with this status, which for a span of this side is a failure from `failure` on: 500 for who answers,
/// 400 for who asks.
pub(crate) fn answered(span: &Span, status: StatusCode, failure: u16) {
    span.record("http.response.status_code", status.as_u16());
    if status.as_u16() >= failure {
        failed(span, status.as_str());
    }
}

/// It failed, in this way.
pub(crate) fn failed(span: &Span, error: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error);
}

/// A span's place in its trace; `None` if nothing is traced.
pub(crate) fn place(span: &Span) -> Option<SpanContext> {
    (!span.is_disabled()).then(|| span.context().span().span_context().clone())
}
