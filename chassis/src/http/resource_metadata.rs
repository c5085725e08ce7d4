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
            "resource": Origin::from_headers(&headers).address("", Prefix::from_headers(&headers).as_ref()),
            "authorization_servers": [authenticator.issuer()],
            "bearer_methods_supported": ["header"],
        }))
    };
    Router::new().route(RESOURCE_METADATA, get(metadata))
}

/// The address of this service as the client knows it, without a path. A proxy in front of it sends `X-Forwarded-Proto`.
pub(crate) struct Origin {
    is_https: bool,
    host: Option<HeaderValue>,
}

impl Origin {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let is_https = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
        Self { is_https, host: headers.get(header::HOST).cloned() }
    }

    /// Adds the address of the metadata to the challenge of a problem, if it has one.
    pub(crate) fn add_metadata_address(&self, problem: &mut Problem, prefix: Option<&Prefix>) {
        problem.map_header(&header::WWW_AUTHENTICATE, |challenge| {
            let challenge = challenge.to_str().unwrap_or("Bearer");
            let separator = if challenge.contains('=') { "," } else { "" };
            let address = self.address(RESOURCE_METADATA, prefix);
            HeaderValue::from_str(&format!("{challenge}{separator} resource_metadata=\"{address}\"")).ok()
        });
    }

    fn address(&self, path: &str, prefix: Option<&Prefix>) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        let path = prefix.map_or_else(|| path.to_owned(), |prefix| prefix.before(path));
        host.map_or_else(|| path.clone(), |host| format!("{scheme}://{host}{path}")) // HTTP/1.0 may have no host
    }
}
