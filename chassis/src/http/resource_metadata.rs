//! `GET /.well-known/oauth-protected-resource` (RFC 9728): where a client gets a token for this service.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::auth::{Access, RESOURCE_METADATA};
use crate::http::forwarded::Prefix;
use crate::problem::Problem;

/// Returns the route, while sign-in is on.
pub(crate) fn routes(access: &Access) -> Router {
    let Some(authenticator) = access.authenticator.clone() else { return Router::new() };
    let metadata = async move |headers: HeaderMap| {
        Json(json!({
            "resource": address(&headers, ""),
            "authorization_servers": [authenticator.issuer()],
            "bearer_methods_supported": ["header"],
        }))
    };
    Router::new().route(RESOURCE_METADATA, get(metadata))
}

/// Adds the address of the metadata to the challenge of a problem, if it has one.
pub(crate) fn add_to_challenge(problem: Problem, headers: &HeaderMap) -> Problem {
    problem.map_header(&header::WWW_AUTHENTICATE, |challenge| {
        let challenge = challenge.to_str().unwrap_or("Bearer");
        let separator = if challenge.contains('=') { "," } else { "" };
        let address = address(headers, RESOURCE_METADATA);
        HeaderValue::from_str(&format!("{challenge}{separator} resource_metadata=\"{address}\"")).ok()
    })
}

/// Returns the address of a path of this service as the client knows it. Behind a proxy that is by `X-Forwarded-Proto` and
/// `X-Forwarded-Prefix`.
fn address(headers: &HeaderMap, path: &str) -> String {
    let is_https = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let scheme = if is_https { "https" } else { "http" };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let path = Prefix::from_headers(headers).map_or_else(|| path.to_owned(), |prefix| prefix.before(path));
    host.map_or_else(|| path.clone(), |host| format!("{scheme}://{host}{path}")) // HTTP/1.0 may have no host
}
