//! `GET /metrics`: the metrics of the service, for Prometheus.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::routing;

use crate::problem::Problem;
use crate::telemetry::metrics::Metrics;

const CLASSIC_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the route. It responds in OpenMetrics to a client that accepts it, as Prometheus does, and otherwise in the classic text
/// format.
pub(crate) fn routes(metrics: Metrics) -> Router {
    Router::new().route("/metrics", routing::get(async move |headers: HeaderMap| respond(&metrics, &headers)))
}

fn respond(metrics: &Metrics, headers: &HeaderMap) -> Response {
    let (content_type, page) = match accepts_open_metrics(headers) {
        true => (OPEN_METRICS, metrics.open_metrics()),
        false => (CLASSIC_TEXT, metrics.classic_text()),
    };
    let headers: [(HeaderName, &str); 2] = [(header::CONTENT_TYPE, content_type), (header::VARY, "accept")];
    page.map_or_else(|error| Problem::internal(error).into_response(), |page| (headers, page).into_response())
}

fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("application/openmetrics-text"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn responds_in_the_format_that_the_client_accepts() {
        let metrics = Metrics::new("test");
        for (accept, content_type) in [
            (None, CLASSIC_TEXT),
            (Some("text/plain"), CLASSIC_TEXT),
            (Some("*/*"), CLASSIC_TEXT),
            (Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"), OPEN_METRICS),
        ] {
            let accept = accept.map(|accept| (header::ACCEPT, HeaderValue::from_static(accept)));
            let response = respond(&metrics, &accept.into_iter().collect());
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
        }
    }
}
