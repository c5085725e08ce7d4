//! What a request carries with it to every call made on its behalf: its ids, its place in a trace, and the time left for it.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use crate::hex::Hex;
use crate::telemetry::traces;

/// The header that names a request, in requests and answers.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header by which a caller says how many milliseconds it will wait for the answer.
pub const X_DEADLINE_MS: HeaderName = HeaderName::from_static("x-deadline-ms");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The identity and the deadline of one request. It is passed on by hand, because work that outlives its request, or
/// that is done for several at once, has no ambient context that would be right.
#[derive(Clone, Debug)]
pub struct RequestContext {
    request_id: HeaderValue,
    /// If nothing is traced here, that is its caller's.
    place: Place,
    tracestate: Option<HeaderValue>,
    deadline: Instant,
    /// Whether the deadline is the caller's own.
    given: bool,
}

/// A place in a trace, W3C Trace Context. In numbers: every request has one, and few are written out.
#[derive(Clone, Copy, Debug)]
struct Place {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl RequestContext {
    /// The context of a request with these headers that may take this long, or as long as its caller says if that is
    /// less (`x-deadline-ms`): nobody works for an answer that is not waited for.
    ///
    /// A caller's `x-request-id` is taken if it is sane (1 to 128 visible ASCII characters, once), else one is made.
    pub fn from_headers(headers: &HeaderMap, limit: Duration) -> Self {
        Self::received_at(Instant::now(), headers, limit)
    }

    /// The same for a request that arrived then.
    pub(crate) fn received_at(when: Instant, headers: &HeaderMap, limit: Duration) -> Self {
        let request_id = single(headers, &X_REQUEST_ID).filter(|id| is_sane_id(id));
        let waits = single(headers, &X_DEADLINE_MS).and_then(|ms| ms.to_str().ok()?.parse().ok());
        let waits = waits.map(Duration::from_millis).filter(|waits| *waits < limit);
        let place = single(headers, &TRACEPARENT).and_then(Place::read);
        Self {
            request_id: request_id.cloned().unwrap_or_else(new_id),
            place: place.unwrap_or_else(Place::new),
            tracestate: place.and_then(|_| headers.get(TRACESTATE).cloned()),
            deadline: when + waits.unwrap_or(limit),
            given: waits.is_some(),
        }
    }

    /// The context of work that no request asked for.
    pub fn background(limit: Duration) -> Self {
        let (request_id, place) = (new_id(), Place::new());
        Self { request_id, place, tracestate: None, deadline: Instant::now() + limit, given: false }
    }

    /// The context of a call made for several requests at once: it has the ids of the first, and the time of the one that
    /// waits longest.
    pub fn merge<'a>(several: impl Iterator<Item = &'a Self>) -> Self {
        let joined =
            several.cloned().reduce(|first, next| Self { deadline: first.deadline.max(next.deadline), ..first });
        joined.unwrap_or_else(|| Self::background(Duration::ZERO))
    }

    /// The same, for work that must be done sooner.
    pub fn with_timeout(&self, limit: Duration) -> Self {
        self.with_deadline(self.deadline.min(Instant::now() + limit))
    }

    /// The same with another deadline.
    pub(crate) fn with_deadline(&self, deadline: Instant) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The deadline after this delay, which is not taken from a time limit of ours. (A caller who says how long it waits
    /// has counted it in.)
    pub(crate) fn deadline_after(&self, delay: Duration) -> Instant {
        if self.given { self.deadline } else { self.deadline + delay }
    }

    /// The same at the place of this span, if it is traced.
    pub(crate) fn with_span(mut self, span: &Span) -> Self {
        if let Some(span) = traces::place(span) {
            self.place = Place { trace: span.trace_id(), span: span.span_id(), flags: span.trace_flags() };
        }
        self
    }

    /// The context of one of several things that were asked in one call, which says what its ids are. (Those of the call, if it
    /// does not, or if they are none.)
    pub fn for_item(&self, request_id: Option<&str>, traceparent: Option<&str>) -> Self {
        let value = |text: Option<&str>| text.and_then(|text| HeaderValue::from_str(text).ok());
        let mut one = self.clone();
        if let Some(id) = value(request_id).filter(is_sane_id) {
            one.request_id = id;
        }
        if let Some(place) = value(traceparent).as_ref().and_then(Place::read) {
            (one.place, one.tracestate) = (place, None);
        }
        one
    }

    /// Starts the server span `name` of one item of a batched call, as a child of the item's own caller; see [`Self::for_item`].
    pub fn item_span(&self, name: &'static str, request_id: Option<&str>, traceparent: Option<&str>) -> Span {
        traces::of_one(name, || self.for_item(request_id, traceparent).caller())
    }

    /// Its place in a trace, as the header `traceparent` tells it.
    pub fn traceparent(&self) -> String {
        self.place.text()
    }

    /// The id of the trace, 32 hexadecimal digits.
    pub(crate) fn trace_id(&self) -> Hex<32> {
        Hex::of(u128::from_be_bytes(self.place.trace.to_bytes()))
    }

    /// Its place in a trace, as the caller of a span to come.
    pub(crate) fn caller(&self) -> SpanContext {
        let Place { trace, span, flags } = self.place;
        let state = self.tracestate.as_ref().and_then(|state| state.to_str().ok()?.parse().ok());
        SpanContext::new(trace, span, flags, true, state.unwrap_or_default())
    }

    /// The time left; zero once it is over.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The id of the request.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default() // sane ids are ASCII
    }

    /// The header that names the request in its answer.
    pub(crate) fn request_id_header(&self) -> HeaderValue {
        self.request_id.clone()
    }

    /// Writes the headers by which a peer knows what it works for.
    pub(crate) fn forward(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID, self.request_id.clone());
        let ms = u64::try_from(self.time_left().as_millis()).unwrap_or(u64::MAX);
        headers.insert(X_DEADLINE_MS, ms.into());
        headers.extend(HeaderValue::try_from(self.place.text()).ok().map(|place| (TRACEPARENT, place)));
        headers.extend(self.tracestate.clone().map(|state| (TRACESTATE, state)));
    }
}

impl Place {
    /// A trace that begins here. Whether it is recorded is not for us to say: nobody before us has decided against it.
    fn new() -> Self {
        let (trace, span): (u128, u64) = (rand::random_range(1..=u128::MAX), rand::random_range(1..=u64::MAX));
        Self { trace: trace.into(), span: span.into(), flags: TraceFlags::SAMPLED }
    }

    /// Reads version 00 of the header, or a later one that starts alike: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
    fn read(header: &HeaderValue) -> Option<Self> {
        let mut parts = header.to_str().ok()?.split('-');
        let mut hex = |length| parts.next().filter(|part| part.len() == length && part.bytes().all(is_hex));
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let known = if version == "00" { parts.next().is_none() } else { version != "ff" };
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let good = known && trace != TraceId::INVALID && span != SpanId::INVALID;
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        good.then_some(Self { trace, span, flags })
    }

    /// As version 00 of the header, which is the one we know.
    fn text(&self) -> String {
        let trace = Hex::<32>::of(u128::from_be_bytes(self.trace.to_bytes()));
        let span = Hex::<16>::of(u64::from_be_bytes(self.span.to_bytes()).into());
        ["00-", &trace, "-", &span, "-", &Hex::<2>::of(self.flags.to_u8().into())].concat()
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let known = parts.extensions.get::<Self>().cloned();
        Ok(known.unwrap_or_else(|| Self::background(Duration::ZERO))) // the layers put one in every request
    }
}

fn new_id() -> HeaderValue {
    let id = Hex::<32>::of(Uuid::new_v4().as_u128());
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none")) // digits are a header
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.filter(|_| values.next().is_none())
}

fn is_sane_id(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
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
    fn a_traceparent_is_passed_on_if_it_is_one_and_else_another_is_made() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let forwarded = |value| {
            let mut headers = HeaderMap::new();
            RequestContext::from_headers(&self::headers(&[(TRACEPARENT, value)]), Duration::ZERO).forward(&mut headers);
            let forwarded = headers.get(TRACEPARENT).expect("each call has one");
            assert!(Place::read(forwarded).is_some(), "{forwarded:?}");
            forwarded.to_str().unwrap().to_owned()
        };
        // What a later version adds nobody knows who speaks this one.
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
}
