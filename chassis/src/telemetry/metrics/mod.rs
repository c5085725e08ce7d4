//! What is counted, and `GET /metrics`, where it is told in Prometheus' text format. Names and units are by Prometheus'
//! conventions; labels have few values and none that a client can choose.
//!
//! Requests are counted by each [`crate::App`]. All else is counted for the process, in statics that [`register`] makes.

mod process;

use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Router, routing};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, text};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::problem::Problem;

/// From half a millisecond to the time limit of a request, in seconds.
const BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Durations by labels.
pub type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process));
    Mutex::new(registry)
});

/// Has `/metrics` tell this metric, and gives it back. For a static: each name once. A counter's name goes without its
/// `_total`, which is added.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric.clone());
    metric
}

/// Has `/metrics` ask this for more.
pub(crate) fn register_collector(collector: impl Collector) {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
}

/// Durations in seconds, by labels.
pub fn durations<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram)
}

/// What a figure is told apart by: names and values.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Requests by route template, never by path: a client cannot make series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requests {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

/// The same with the class of the status, `2xx`, for what needs many series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    method: &'static str,
    route: Arc<str>,
    status: &'static str,
}

/// A route, and what is counted of requests to it.
#[derive(Debug)]
pub(crate) struct Route {
    /// Its template.
    pub(crate) template: Arc<str>,
    /// By method and status: to look for labels takes as long as a small request, and there are few for each route.
    series: RwLock<Vec<Series>>,
}

/// What is counted of requests with the same labels.
#[derive(Clone, Debug)]
struct Series {
    method: &'static str,
    status: StatusCode,
    requests: Counter,
    durations: Histogram,
}

impl Route {
    /// The route of this template.
    pub(crate) fn new(template: &str) -> Self {
        Self { template: Arc::from(template), series: RwLock::default() }
    }
}

/// What is counted of requests.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<Requests, Counter>,
    durations: Durations<Class>,
    in_flight: Gauge,
    /// Requests refused since there were too many.
    pub(crate) shed: Counter,
    /// Connections that are open.
    pub(crate) connections: Gauge,
    registry: Arc<Registry>,
}

impl Metrics {
    pub(crate) fn new(service: &'static str) -> Self {
        let mut registry = Registry::default();
        let (requests, durations, in_flight) = (Family::default(), durations(), Gauge::default());
        let (shed, connections) = (Counter::default(), Gauge::default());
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register("http_request_duration_seconds", "Time to answer a request", durations.clone());
        registry.register("http_requests_in_flight", "Requests being answered", in_flight.clone());
        registry.register("http_requests_shed", "Requests refused since too many were in work", shed.clone());
        registry.register("http_connections", "Connections that are open", connections.clone());
        let build = Family::<Labels<2>, Gauge>::default();
        build.get_or_create(&[("service", service), ("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("service_build_info", "What runs here; always 1", build);
        Self { requests, durations, in_flight, shed, connections, registry: Arc::new(registry) }
    }

    /// A request has come.
    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// A request is over, answered or given up.
    pub(crate) fn end(&self, method: &Method, route: &Route, status: StatusCode, took: Duration) {
        self.in_flight.dec();
        let method = method_label(method);
        let count = |series: &Series| {
            series.durations.observe(took.as_secs_f64());
            series.requests.inc();
        };
        let is_it = |series: &&Series| series.method == method && series.status == status;
        if let Some(series) = route.series.read().unwrap_or_else(PoisonError::into_inner).iter().find(is_it) {
            return count(series);
        }
        let series = self.series(method, &route.template, status);
        count(&series);
        route.series.write().unwrap_or_else(PoisonError::into_inner).push(series);
    }

    fn series(&self, method: &'static str, template: &Arc<str>, status: StatusCode) -> Series {
        let requests = Requests { method, route: Arc::clone(template), status: status.as_u16() };
        let class = Class { method, route: Arc::clone(template), status: class_label(status) };
        Series {
            method,
            status,
            requests: self.requests.get_or_create_owned(&requests),
            durations: self.durations.get_or_create_owned(&class),
        }
    }

    /// `GET /metrics`.
    pub(crate) fn routes(&self) -> Router {
        let registry = Arc::clone(&self.registry);
        let answer = || async move {
            let page = encode(&registry);
            let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            page.map_or_else(|error| Problem::internal(error).into_response(), |page| (headers, page).into_response())
        };
        Router::new().route("/metrics", routing::get(answer))
    }
}

fn encode(requests: &Registry) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    text::encode_registry(&mut page, requests)?;
    text::encode_registry(&mut page, &REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))?;
    Ok(classic(&page))
}

/// OpenMetrics as the classic text format: there the head of a counter has the name of its samples.
fn classic(page: &str) -> String {
    let counters = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
    let counters: Vec<&str> = counters.collect();
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(&name) => {
                format!("# {what} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    page.lines().map(line).collect()
}

fn class_label(status: StatusCode) -> &'static str {
    const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
    CLASSES.get(usize::from(status.as_u16() / 100) - 1).copied().unwrap_or("other")
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
