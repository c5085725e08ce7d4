//! CORS (the Fetch standard): which pages may call from a browser, and what they may read of the responses.
//!
//! tower-http decides; this module asks it for the headers of one response. As a layer around the pipeline, tower-http would
//! answer every `OPTIONS` request itself, uncounted and without a request id. It would also cost every request 7 % of a read.

use std::borrow::Cow;
use std::convert::Infallible;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::context::X_REQUEST_ID;

/// Response headers that a page may read, besides those that every page may read.
const EXPOSED: [HeaderName; 6] = [
    header::LOCATION,
    header::LINK,
    header::ETAG,
    header::RETRY_AFTER,
    X_REQUEST_ID,
    HeaderName::from_static("idempotent-replayed"),
];

/// The CORS policy of a service.
pub(crate) struct Cors {
    layer: CorsLayer,
    /// The headers of a response to a request without `Origin`.
    without_origin: HeaderMap,
}

impl Cors {
    /// Allows pages of these origins to call, also with credentials. `*` allows pages of every origin, without credentials.
    pub(crate) fn new(origins: &[HeaderValue]) -> Self {
        // No stars: a star never covers `Authorization`, and covers nothing in a request with credentials.
        let mut layer = CorsLayer::new()
            .allow_origin(AllowOrigin::any())
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED);
        let mut without_origin = HeaderMap::new();
        if origins.iter().all(|origin| origin != "*") {
            layer = layer.allow_origin(AllowOrigin::list(origins.to_vec())).allow_credentials(true);
            // A shared cache must not hand such a response to a page.
            without_origin.insert(header::VARY, HeaderValue::from_static("origin"));
        }
        Self { layer, without_origin }
    }

    /// Returns the CORS headers of the response to a request. Only a request with `Origin` passes through tower-http.
    pub(crate) async fn response_headers(&self, method: &Method, request: &HeaderMap) -> Cow<'_, HeaderMap> {
        if !request.contains_key(header::ORIGIN) {
            return Cow::Borrowed(&self.without_origin);
        }
        let mut head = Request::new(());
        head.headers_mut().clone_from(request);
        if is_preflight(method, request) {
            *head.method_mut() = Method::OPTIONS;
        }
        let empty = service_fn(|_| async { Ok::<_, Infallible>(Response::new(())) });
        let Ok(response) = self.layer.layer(empty).oneshot(head).await;
        Cow::Owned(response.into_parts().0.headers)
    }
}

/// Returns whether a browser asks in advance what a page may send. The router handles any other `OPTIONS` request.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}
