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
pub struct Context {
    request_id: HeaderValue,
    /// Its place in a trace (W3C Trace Context). If nothing is traced here, that is its caller's.
    traceparent: HeaderValue,
    tracestate: Option<HeaderValue>,
    deadline: Instant,
    /// Whether the deadline is the caller's own.
    given: bool,
}

impl Context {
    /// The context of a request with these headers that may take this long, or as long as its caller says if that is
    /// less (`x-deadline-ms`): nobody works for an answer that is not waited for.
    ///
    /// A caller's `x-request-id` is taken if it is sane (1 to 128 visible ASCII characters, once), else one is made.
    pub fn of(headers: &HeaderMap, limit: Duration) -> Self {
        let request_id = single(headers, &X_REQUEST_ID).filter(|id| is_sane_id(id));
        let waits = single(headers, &X_DEADLINE_MS).and_then(|ms| ms.to_str().ok()?.parse().ok());
        let waits = waits.map(Duration::from_millis).filter(|waits| *waits < limit);
        let traceparent = single(headers, &TRACEPARENT).filter(|value| is_traceparent(value));
        Self {
            request_id: request_id.cloned().unwrap_or_else(new_id),
            traceparent: traceparent.cloned().unwrap_or_else(new_trace),
            tracestate: traceparent.and_then(|_| headers.get(TRACESTATE).cloned()),
            deadline: Instant::now() + waits.unwrap_or(limit),
            given: waits.is_some(),
        }
    }

    /// The context of work that no request asked for.
    pub fn background(limit: Duration) -> Self {
        let (request_id, traceparent) = (new_id(), new_trace());
        Self { request_id, traceparent, tracestate: None, deadline: Instant::now() + limit, given: false }
    }

    /// The context of a call made for several requests at once: it has the ids of the first, and the time of the one that
    /// waits longest.
    pub fn together<'a>(several: impl Iterator<Item = &'a Self>) -> Self {
        let joined =
            several.cloned().reduce(|first, next| Self { deadline: first.deadline.max(next.deadline), ..first });
        joined.unwrap_or_else(|| Self::background(Duration::ZERO))
    }

    /// The same, for work that must be done sooner.
    pub fn within(&self, limit: Duration) -> Self {
        Self { deadline: self.deadline.min(Instant::now() + limit), ..self.clone() }
    }

    /// The same after this delay, which is not taken from a time limit of ours. (A caller who says how long it waits has
    /// counted it in.)
    pub(crate) fn after(self, delay: Duration) -> Self {
        let deadline = if self.given { self.deadline } else { self.deadline + delay };
        Self { deadline, ..self }
    }

    /// The same at the place of this span, if it is traced.
    pub(crate) fn at(mut self, span: &Span) -> Self {
        if let Some(traceparent) = traces::traceparent(span) {
            self.traceparent = traceparent;
        }
        self
    }

    /// The context of one of several things that were asked in one call, which says what its ids are. (Those of the call, if it
    /// does not, or if they are none.)
    pub fn of_one(&self, request_id: Option<&str>, traceparent: Option<&str>) -> Self {
        let value = |text: Option<&str>| text.and_then(|text| HeaderValue::from_str(text).ok());
        let mut one = self.clone();
        if let Some(id) = value(request_id).filter(is_sane_id) {
            one.request_id = id;
        }
        if let Some(parent) = value(traceparent).filter(is_traceparent) {
            (one.traceparent, one.tracestate) = (parent, None);
        }
        one
    }

    /// Its place in a trace, as the header `traceparent` tells it.
    pub fn traceparent(&self) -> &str {
        self.traceparent.to_str().unwrap_or_default() // hexadecimal digits
    }

    /// The id of the trace, 32 hexadecimal digits.
    pub(crate) fn trace_id(&self) -> &str {
        self.traceparent.to_str().ok().and_then(|parent| parent.get(3..35)).unwrap_or_default()
    }

    /// Its place in a trace, as the caller of a span to come.
    pub(crate) fn place(&self) -> SpanContext {
        let part =
            |range| self.traceparent.to_str().ok().and_then(|parent: &str| parent.get(range)).unwrap_or_default();
        let trace_id = TraceId::from_hex(part(3..35)).unwrap_or(TraceId::INVALID);
        let span_id = SpanId::from_hex(part(36..52)).unwrap_or(SpanId::INVALID);
        let flags = TraceFlags::new(u8::from_str_radix(part(53..55), 16).unwrap_or_default());
        let state = self.tracestate.as_ref().and_then(|state| state.to_str().ok()?.parse().ok());
        SpanContext::new(trace_id, span_id, flags, true, state.unwrap_or_default())
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
        headers.insert(TRACEPARENT, self.traceparent.clone());
        headers.extend(self.tracestate.clone().map(|state| (TRACESTATE, state)));
    }
}

impl<S: Sync> FromRequestParts<S> for Context {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let known = parts.extensions.get::<Self>().cloned();
        Ok(known.unwrap_or_else(|| Self::background(Duration::ZERO))) // the layers put one in every request
    }
}

fn new_id() -> HeaderValue {
    let mut buffer = [0; uuid::fmt::Simple::LENGTH];
    let id = Uuid::new_v4().simple().encode_lower(&mut buffer);
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("none")) // hexadecimal digits are a header
}

/// A trace that begins here. Whether it is recorded is not for us to say: nobody before us has decided against it.
fn new_trace() -> HeaderValue {
    let (trace, span): (u128, u64) = (rand::random_range(1..=u128::MAX), rand::random_range(1..=u64::MAX));
    HeaderValue::from_str(&format!("00-{trace:032x}-{span:016x}-01")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    first.filter(|_| values.next().is_none())
}

fn is_sane_id(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Version 00 of the header, or a later one that starts alike: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
fn is_traceparent(value: &HeaderValue) -> bool {
    let text = value.to_str().unwrap_or_default();
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    let [version, trace, parent, flags, rest @ ..] = parts.as_slice() else { return false };
    let known = hex(version, 2) && *version != "ff" && (rest.is_empty() || *version != "00");
    known && id(trace, 32) && id(parent, 16) && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let of = |headers: &HeaderMap| Context::of(headers, Duration::ZERO).request_id().to_owned();
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
            Context::of(&self::headers(&[(TRACEPARENT, value)]), Duration::ZERO).forward(&mut headers);
            let forwarded = headers.get(TRACEPARENT).expect("each call has one");
            assert!(is_traceparent(forwarded), "{forwarded:?}");
            forwarded.to_str().unwrap().to_owned()
        };
        for good in [GOOD, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later"] {
            assert_eq!(forwarded(good), good);
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
