//! What a service counts about the requests it answers, and `GET /metrics`, where it tells.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::problem::Problem;

/// From half a millisecond to the time limit of a request, in seconds.
const BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Requests by route template, never by path: a client cannot make series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

/// The figures of one process.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Labels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
    registry: Arc<Registry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: Arc<str>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let in_flight = Gauge::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register("http_request_duration_seconds", "Time to answer a request", durations.clone());
        registry.register("http_requests_in_flight", "Requests being answered", in_flight.clone());
        Self { requests, durations, in_flight, registry: Arc::new(registry) }
    }
}

impl Metrics {
    /// A request has come.
    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// A request is over, answered or given up.
    pub(crate) fn end(&self, method: &Method, route: &Arc<str>, status: StatusCode, took: Duration) {
        let (method, route) = (method_label(method), Arc::clone(route));
        self.in_flight.dec();
        self.durations.get_or_create(&RouteLabels { method, route: Arc::clone(&route) }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Labels { method, route, status: status.as_u16() }).inc();
    }

    /// `GET /metrics`.
    pub(crate) fn routes(&self) -> Router {
        let registry = Arc::clone(&self.registry);
        let answer = || async move {
            let mut page = String::new();
            match text::encode(&mut page, &registry) {
                Ok(()) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response(),
                Err(error) => Problem::internal(error).into_response(),
            }
        };
        Router::new().route("/metrics", routing::get(answer))
    }
}

/// Any method may be sent; only the standard ones get a series.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    const NAMES: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT"];
    KNOWN.iter().position(|known| known == method).map_or("OTHER", |at| NAMES[at])
}
