//! Which spans are exported, and what happens when the collector does not accept them.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Config, SamplingDecision, SamplingResult, ShouldSample, Span, SpanData,
    SpanExporter, SpanProcessor,
};

use super::PROBES;
use super::metrics::{self, Counter, Family, Labels};

/// Minimum time between two warnings about lost spans.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

static SPANS: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    let help = "Spans that were exported, that the collector did not accept, or that found the queue full";
    metrics::register("trace_spans", help, Family::default())
});

fn count(outcome: &'static str, spans: usize) {
    SPANS.get_or_create(&[("outcome", outcome)]).inc_by(spans as u64);
}

/// Counts lost spans, and logs a warning if the last one was a minute ago.
fn report_lost(outcome: &'static str, spans: usize, cause: impl Display) {
    static WARNED_AT: Mutex<Option<Instant>> = Mutex::new(None);
    count(outcome, spans);
    let mut warned_at = WARNED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    if warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
        *warned_at = Some(Instant::now());
        tracing::warn!(spans, %cause, "trace export failed; spans are lost, and counted in trace_spans_total");
    }
}

/// The sampler that `OTEL_TRACES_SAMPLER` names, with two rules before it. A span follows its parent in this process. A health
/// check is recorded but not sampled, so that [`Queue`] can export it if it fails.
#[derive(Clone, Debug)]
pub(super) struct Sampler(Arc<Box<dyn ShouldSample>>);

impl Sampler {
    pub(super) fn configured() -> Self {
        Self(Arc::new(Config::default().sampler))
    }
}

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let span = parent.map(|context| context.span().span_context().clone());
        if let Some(span) = span.filter(|span| span.is_valid() && !span.is_remote()) {
            let decision = if span.is_sampled() { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
            return SamplingResult { decision, attributes: Vec::new(), trace_state: span.trace_state().clone() };
        }
        let mut result = self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        if result.decision == SamplingDecision::RecordAndSample && is_probe(attributes) {
            result.decision = SamplingDecision::RecordOnly;
        }
        result
    }
}

/// Returns whether a span is a health check or a scrape, received by this service or sent to a peer.
fn is_probe(attributes: &[KeyValue]) -> bool {
    attributes.iter().any(|KeyValue { key, value, .. }| match key.as_str() {
        "http.route" => PROBES.contains(&&*value.as_str()),
        "url.full" => PROBES.iter().any(|path| value.as_str().ends_with(path)),
        _ => false,
    })
}

/// Returns whether the request or the call of a span failed. Its status has three digits, so it can be compared as text.
fn has_failed(span: &SpanData) -> bool {
    span.attributes.iter().any(|KeyValue { key, value, .. }| match key.as_str() {
        "http.response.status_code" => &*value.as_str() >= "400",
        "error.type" => true,
        _ => false,
    })
}

/// The queue of the library. In addition, it counts the spans that find it full.
#[derive(Debug)]
pub(super) struct Queue {
    processor: BatchSpanProcessor,
    /// Spans in the queue.
    waiting: Arc<AtomicUsize>,
    max: usize,
}

impl Queue {
    /// Creates a queue for `max` spans.
    pub(super) fn new(exporter: OtlpExporter, max: usize) -> Self {
        for outcome in ["exported", "rejected", "queue_full"] {
            count(outcome, 0);
        }
        let waiting = Arc::<AtomicUsize>::default();
        let exporter = Exporter { exporter, waiting: Arc::clone(&waiting) };
        let config = BatchConfigBuilder::default().with_max_queue_size(max).build();
        Self { processor: BatchSpanProcessor::builder(exporter).with_batch_config(config).build(), waiting, max }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() && !has_failed(&span) {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return report_lost("queue_full", 1, format_args!("{} spans wait for the collector", self.max));
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// The exporter of the library. In addition, it counts the spans and reports failures.
#[derive(Debug)]
struct Exporter {
    exporter: OtlpExporter,
    waiting: Arc<AtomicUsize>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        match &result {
            Ok(()) => count("exported", spans),
            Err(error) => report_lost("rejected", spans, error),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
