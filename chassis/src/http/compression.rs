//! Compression of responses with gzip.
//!
//! tower-http compresses; this module gives it one response at a time. As a layer around the pipeline, tower-http would parse
//! `Accept-Encoding` even for the small responses that are never compressed. That would cost 13 % of a read.

use std::convert::Infallible;
use std::future::ready;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body as _;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::http::conditional;

/// Minimum size of a response that is compressed, in bytes.
const MIN_SIZE: u64 = 1024;

/// Returns the lines of `Accept-Encoding` of a request, without lines that have only `identity`.
pub(super) fn accepted_codings(headers: &HeaderMap) -> Vec<HeaderValue> {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter();
    lines.filter(|line| *line != "identity").cloned().collect()
}

/// Compresses a response that is large enough, if the client accepts it.
pub(super) async fn compress(mut response: Response<Body>, accepted_codings: Vec<HeaderValue>) -> Response<Body> {
    if response.body().size_hint().exact().is_some_and(|size| size < MIN_SIZE) {
        return response;
    }
    if accepted_codings.is_empty() {
        response.headers_mut().append(header::VARY, header::ACCEPT_ENCODING.into());
        return response;
    }
    // Always allows `identity`, so that tower-http cannot turn a finished request into a 406.
    let identity = HeaderValue::from_static("identity;q=0.001");
    let lines = accepted_codings.into_iter().chain([identity]);
    let mut request = Request::new(());
    request.headers_mut().extend(lines.map(|line| (header::ACCEPT_ENCODING, line)));
    let finished = service_fn(move |_| ready(Ok::<_, Infallible>(std::mem::take(&mut response))));
    let layer = CompressionLayer::new().compress_when(SizeAbove::new(MIN_SIZE));
    let Ok(compressed) = layer.layer(finished).oneshot(request).await;
    conditional::mark_coding(compressed).map(Body::new)
}
