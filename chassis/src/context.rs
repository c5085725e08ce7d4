//! What a request passes on to every call made on its behalf: its id, its trace, its baggage and its deadline.

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tokio::time::error::Elapsed;
use tokio::time::{self, Instant};
use tracing::Span;
use uuid::Uuid;

use crate::telemetry::traces;

/// The header with the id of a request, in requests and responses.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header with the number of milliseconds that the caller waits for the response.
pub const X_DEADLINE_MS: HeaderName = HeaderName::from_static("x-deadline-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Maximum bytes of a header that is passed on; W3C Baggage requires no more.
const MAX_PASSED_ON: usize = 8192;

/// The id, the trace and the deadline of one request. Functions pass it on as an argument, because ambient context is wrong for
/// work that outlives its request, or that is done for several requests in one batch.
#[derive(Clone, Debug)]
pub struct RequestContext {
    request_id: HeaderValue,
    /// The parent of the calls: the span of this request, or without a collector that of its caller.
    span: SpanContext,
    /// W3C Baggage of the caller, as it was sent.
    baggage: Option<HeaderValue>,
    deadline: Instant,
    /// Whether the caller set the deadline.
    is_caller_deadline: bool,
}

impl RequestContext {
    /// Returns the context of a request with these headers. It may take `limit`, or `x-deadline-ms` if that is less.
    ///
    /// The `x-request-id` of the caller is used if it has 1 to 128 visible ASCII characters and was sent once. Otherwise an id is
    /// made. So is a trace, unless there is a valid `traceparent`.
    pub fn from_headers(headers: &HeaderMap, limit: Duration) -> Self {
        Self::received_at(Instant::now(), headers, limit)
    }

    /// Returns the context of a request that arrived at `when`; see [`Self::from_headers`].
    pub(crate) fn received_at(when: Instant, headers: &HeaderMap, limit: Duration) -> Self {
        let request_id = single(headers, &X_REQUEST_ID).filter(|id| is_sane_id(id));
        let timeout = single(headers, &X_DEADLINE_MS).and_then(|ms| ms.to_str().ok()?.parse().ok());
        let timeout = timeout.map(Duration::from_millis).filter(|timeout| *timeout < limit);
        Self {
            request_id: request_id.cloned().unwrap_or_else(new_id),
            span: remote_span(headers).unwrap_or_else(new_trace),
            baggage: joined(headers, &BAGGAGE),
            deadline: when + timeout.unwrap_or(limit),
            is_caller_deadline: timeout.is_some(),
        }
    }

    /// Returns the context of work that the service does without a request.
    pub fn background(limit: Duration) -> Self {
        let (request_id, span) = (new_id(), new_trace());
        Self { request_id, span, baggage: None, deadline: Instant::now() + limit, is_caller_deadline: false }
    }

    /// Returns the context of one call made for several requests: the id and the trace of the first, the latest deadline of all. The
    /// call has no baggage, because the baggage of one request must not appear in the others.
    pub fn merge<'a>(several: impl Iterator<Item = &'a Self>) -> Self {
        let merged = several.cloned().reduce(|first, next| {
            let deadline = first.deadline.max(next.deadline);
            Self { deadline, baggage: None, ..first }
        });
        merged.unwrap_or_else(|| Self::background(Duration::ZERO))
    }

    /// Returns the same context with a deadline in `limit`, if that is earlier.
    pub fn with_timeout(&self, limit: Duration) -> Self {
        self.with_deadline(self.deadline.min(Instant::now() + limit))
    }

    /// Returns the same context with another deadline.
    pub(crate) fn with_deadline(&self, deadline: Instant) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Returns the deadline of a request whose body took `delay` to arrive. The delay does not count against the limit of the
    /// service. It counts against the deadline of a caller, who started its clock before the body.
    pub(crate) fn deadline_after(&self, delay: Duration) -> Instant {
        if self.is_caller_deadline { self.deadline } else { self.deadline + delay }
    }

    /// Returns the time until the deadline that the caller set; `None` if it set none.
    pub(crate) fn caller_time_left(&self) -> Option<Duration> {
        self.is_caller_deadline.then(|| self.time_left())
    }

    /// Returns whether the caller set a deadline that has passed.
    pub(crate) fn caller_deadline_has_passed(&self) -> bool {
        self.caller_time_left().is_some_and(|left| left.is_zero())
    }

    /// Returns the result of `future` if it ends before the deadline, or at most `grace` after it.
    ///
    /// The grace begins when this task notices the deadline, so a busy machine does not take it away.
    ///
    /// # Errors
    /// If the future does not end in time. It is dropped then.
    pub async fn with_grace<T>(&self, grace: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut future = pin!(future);
        match time::timeout_at(self.deadline, future.as_mut()).await {
            Ok(result) => Ok(result),
            Err(_) => time::timeout(grace, future).await,
        }
    }

    /// Returns the same context with `span` as the parent of its calls, if tracing is enabled.
    pub(crate) fn with_span(mut self, span: &Span) -> Self {
        self.span = traces::span_context(span).unwrap_or(self.span);
        self
    }

    /// Returns the context of one item of a batched call: its own request id and trace, or those of the call if the item has none
    /// that are valid.
    pub fn for_item(&self, request_id: Option<&str>, traceparent: Option<&str>) -> Self {
        let mut item = self.clone();
        if let Some(id) = request_id.and_then(|id| HeaderValue::from_str(id).ok()).filter(is_sane_id) {
            item.request_id = id;
        }
        let headers = traceparent.map(|text| TraceHeaders { traceparent: text.into(), ..TraceHeaders::default() });
        if let Some(span) = headers.and_then(|headers| headers.extract()) {
            item.span = span;
        }
        item
    }

    /// Starts the server span `name` of one item of a batched call, as a child of the item's own caller; see [`Self::for_item`].
    pub fn item_span(&self, name: &'static str, request_id: Option<&str>, traceparent: Option<&str>) -> Span {
        traces::item_span(name, || self.for_item(request_id, traceparent).span)
    }

    /// Returns the value of the header `traceparent` for a call.
    pub fn traceparent(&self) -> String {
        TraceHeaders::inject(&self.span).traceparent.into_owned()
    }

    /// Returns the id of the trace, 32 hexadecimal digits.
    pub(crate) fn trace_id(&self) -> String {
        self.span.trace_id().to_string()
    }

    /// Returns the span of the caller. `None` if the trace begins here: then the span of the request is the root.
    pub(crate) fn remote_parent(&self) -> Option<SpanContext> {
        self.span.is_remote().then(|| self.span.clone())
    }

    /// Returns the time until the deadline; zero after it.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns the id of the request.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default() // sane ids are ASCII
    }

    /// Returns the value of the header `x-request-id`.
    pub(crate) fn request_id_header(&self) -> HeaderValue {
        self.request_id.clone()
    }

    /// Adds the headers that pass this context on to a peer.
    pub(crate) fn forward(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID, self.request_id.clone());
        let ms = u64::try_from(self.time_left().as_millis()).unwrap_or(u64::MAX);
        headers.insert(X_DEADLINE_MS, ms.into());
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.clone());
        }
        let TraceHeaders { traceparent, tracestate } = TraceHeaders::inject(&self.span);
        for (name, value) in [(TRACEPARENT, traceparent), (TRACESTATE, tracestate)] {
            if let Some(value) = HeaderValue::from_str(&value).ok().filter(|value| !value.is_empty()) {
                headers.insert(name, value);
            }
        }
    }
}

/// W3C Trace Context as OpenTelemetry's propagator reads and writes it. A header that is absent is empty.
#[derive(Default)]
struct TraceHeaders<'a> {
    traceparent: Cow<'a, str>,
    tracestate: Cow<'a, str>,
}

impl TraceHeaders<'_> {
    fn inject(span: &SpanContext) -> Self {
        let mut headers = Self::default();
        let context = Context::new().with_remote_span_context(span.clone());
        TraceContextPropagator::new().inject_context(&context, &mut headers);
        headers
    }

    /// Returns the span that the headers name. `None` if they are invalid.
    fn extract(&self) -> Option<SpanContext> {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), self);
        Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
    }
}

impl Injector for TraceHeaders<'_> {
    fn set(&mut self, name: &str, value: String) {
        match name {
            "traceparent" => self.traceparent = value.into(),
            "tracestate" => self.tracestate = value.into(),
            _ => {}
        }
    }
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => Some(&self.traceparent),
            "tracestate" => Some(&self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Returns the span of the caller. `None` if there is no header `traceparent`, several or an invalid one.
fn remote_span(headers: &HeaderMap) -> Option<SpanContext> {
    let traceparent = single(headers, &TRACEPARENT)?.to_str().ok()?;
    let tracestate = joined(headers, &TRACESTATE);
    let tracestate = tracestate.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default();
    TraceHeaders { traceparent: traceparent.into(), tracestate: tracestate.into() }.extract()
}

/// Returns a trace that begins here. Without a collector it serves to find the log lines of all services. It is marked as sampled,
/// because no service has decided against it.
fn new_trace() -> SpanContext {
    let ids = RandomIdGenerator::default();
    SpanContext::new(ids.new_trace_id(), ids.new_span_id(), TraceFlags::SAMPLED, false, TraceState::NONE)
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let context = parts.extensions.get::<Self>().cloned();
        Ok(context.unwrap_or_else(|| Self::background(Duration::ZERO))) // the pipeline adds one to every request
    }
}

fn new_id() -> HeaderValue {
    let id = Uuid::new_v4().simple().to_string();
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none")) // digits are a header value
}

/// Returns the value of a header that was sent exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.filter(|_| values.next().is_none())
}

/// Returns the lines of a list header as one value. `None` if there is none, or if it is larger than [`MAX_PASSED_ON`].
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.clone();
    let joined =
        lines.try_fold(first, |all, line| HeaderValue::from_bytes(&[all.as_bytes(), line.as_bytes()].join(&b',')));
    joined.ok().filter(|value| (1..=MAX_PASSED_ON).contains(&value.len()))
}

fn is_sane_id(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn keeps_a_valid_request_id_and_replaces_an_invalid_one() {
        let of = |headers: &HeaderMap| RequestContext::from_headers(headers, Duration::ZERO).request_id().to_owned();
        assert_eq!(of(&headers(&[(X_REQUEST_ID, "abc-1")])), "abc-1");
        for bad in ["", "two words", "caf\u{e9}"] {
            let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            let made = of(&HeaderMap::from_iter([(X_REQUEST_ID, value)]));
            assert_eq!(made.len(), 32, "{bad:?} was kept: {made}");
        }
        let long = HeaderValue::from_str(&"x".repeat(129)).unwrap();
        assert_eq!(of(&HeaderMap::from_iter([(X_REQUEST_ID, long)])).len(), 32);
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()), "each request has its own");
    }

    #[test]
    fn forwards_a_valid_traceparent_and_replaces_any_other() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let forwarded = |value| {
            let mut headers = HeaderMap::new();
            RequestContext::from_headers(&self::headers(&[(TRACEPARENT, value)]), Duration::ZERO).forward(&mut headers);
            let forwarded = headers.get(TRACEPARENT).expect("each call has one");
            assert!(remote_span(&headers).is_some(), "{forwarded:?}");
            forwarded.to_str().unwrap().to_owned()
        };
        // Fields that a later version adds are dropped.
        for good in [GOOD, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later"] {
            assert_eq!(forwarded(good), GOOD);
        }
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_ne!(forwarded(bad), bad);
        }
    }
    #[test]
    fn has_a_remote_parent_only_if_the_caller_sent_one() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let call = RequestContext::from_headers(&HeaderMap::new(), Duration::ZERO);
        assert!(call.remote_parent().is_none() && call.span.is_valid());
        let item = call.for_item(None, Some(PARENT));
        assert_eq!((item.remote_parent().as_ref(), &*item.traceparent()), (Some(&item.span), PARENT));
        assert_eq!(call.for_item(None, Some("none")).traceparent(), call.traceparent());
    }

    #[test]
    fn forwards_the_baggage_of_one_request_only() {
        let forwarded = |context: &RequestContext| {
            let mut headers = HeaderMap::new();
            context.forward(&mut headers);
            headers.get(BAGGAGE).map(|baggage| baggage.to_str().unwrap().to_owned())
        };
        let of = |lines: &[&str]| {
            let line = |line: &&str| (BAGGAGE, HeaderValue::from_str(line).unwrap());
            RequestContext::from_headers(&lines.iter().map(line).collect(), Duration::ZERO)
        };
        let tenant = of(&["tenant=a;p=1, other=%20"]);
        assert_eq!(forwarded(&tenant).as_deref(), Some("tenant=a;p=1, other=%20"));
        assert_eq!(forwarded(&tenant.with_timeout(Duration::ZERO)), forwarded(&tenant));
        assert_eq!(forwarded(&of(&["a=1", "b=2"])).as_deref(), Some("a=1,b=2"));
        assert_eq!(forwarded(&RequestContext::merge([&tenant].into_iter())), forwarded(&tenant));
        let merged = RequestContext::merge([&tenant, &of(&["tenant=b"])].into_iter());
        assert_eq!(forwarded(&merged), None);
        let large = "x".repeat(MAX_PASSED_ON);
        assert_eq!(forwarded(&of(&[&large])).map(|baggage| baggage.len()), Some(MAX_PASSED_ON));
        for none in [&[][..], &[""], &[&large, "y"]] {
            assert_eq!(forwarded(&of(none)), None);
        }
    }

    #[test]
    fn joins_the_lines_of_a_tracestate() {
        let headers = headers(&[
            (TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
            (TRACESTATE, "vendor=1"),
            (TRACESTATE, "other=2"),
        ]);
        let mut forwarded = HeaderMap::new();
        RequestContext::from_headers(&headers, Duration::ZERO).forward(&mut forwarded);
        assert_eq!(forwarded[TRACESTATE], "vendor=1,other=2");
        assert_eq!(forwarded[TRACEPARENT], headers[TRACEPARENT], "the flags of the caller are kept");
    }

    #[test]
    fn forwards_a_tracestate_only_if_it_is_valid() {
        let forwarded = |state: &'static str| {
            let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            let mut headers = HeaderMap::new();
            RequestContext::from_headers(&self::headers(&[(TRACEPARENT, parent), (TRACESTATE, state)]), Duration::ZERO)
                .forward(&mut headers);
            headers.get(TRACESTATE).map(|state| state.to_str().unwrap().to_owned())
        };
        assert_eq!(forwarded("vendor=1,other=2").as_deref(), Some("vendor=1,other=2"));
        for bad in ["", "none"] {
            assert_eq!(forwarded(bad), None, "{bad:?}");
        }
    }
}
