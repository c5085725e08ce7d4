//! Metrics in Prometheus' formats. Names and units follow Prometheus' conventions. Labels have few values, and a client can choose
//! none of them.
//!
//! Each [`crate::App`] counts its own requests. All other metrics belong to the process, in statics made by [`register`].

mod process;

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, text};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Upper bounds in seconds, from half a millisecond to the default time limit of a request.
const BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Values of the label `method`. A client may send any method, so all others share one value.
const METHODS: [&str; 10] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "OTHER"];

/// Values of the label `status` of durations. A histogram has many series, so it does not have one for each status.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// Histograms of durations in seconds, by labels.
pub type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// Names and values of the labels of a metric.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process));
    Mutex::new(registry)
});

/// Adds a metric of the process, and returns it. Call it once for each name, in a static. The name of a counter has no `_total`:
/// the library adds it.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric.clone());
    metric
}

/// Adds a collector of the process: it is called for each scrape.
pub(crate) fn register_collector(collector: impl Collector) {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
}

/// Returns an empty family of histograms.
pub fn durations<L: Clone + Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram)
}

/// The labels of a counter of requests. The route is a template, not the path, so that a client cannot make series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

/// The labels of a histogram of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    method: &'static str,
    route: Arc<str>,
    status: &'static str,
}

/// A route, and the handles of its series.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) template: Arc<str>,
    /// By method and class of status. Two look-ups in a family would cost 3 % of a small request.
    series: [[OnceLock<Series>; CLASSES.len()]; METHODS.len()],
}

/// The handles of the series of one method and one class of status.
#[derive(Debug)]
struct Series {
    durations: Histogram,
    /// The counter of the first status seen. Most routes respond with one status of each class.
    requests: Counter,
    status: StatusCode,
}

impl Route {
    /// Returns the route of a template such as `/users/{id}`.
    pub(crate) fn new(template: &str) -> Self {
        Self { template: Arc::from(template), series: Default::default() }
    }
}

/// The metrics of the requests to one app.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Durations<DurationLabels>,
    in_flight: Gauge,
    /// Requests rejected because too many were in flight.
    pub(crate) shed: Counter,
    /// Open connections.
    pub(crate) connections: Gauge,
    registry: Arc<Registry>,
}

impl Metrics {
    pub(crate) fn new(service: &'static str) -> Self {
        let mut registry = Registry::default();
        let (requests, durations, in_flight) = (Family::default(), durations(), Gauge::default());
        let (shed, connections) = (Counter::default(), Gauge::default());
        registry.register("http_requests", "Requests completed, by status", requests.clone());
        let help = "Time from the arrival of a request to its response, in seconds";
        registry.register("http_request_duration_seconds", help, durations.clone());
        registry.register("http_requests_in_flight", "Requests in flight", in_flight.clone());
        let help = "Requests rejected because MAX_IN_FLIGHT requests were in flight";
        registry.register("http_requests_shed", help, shed.clone());
        registry.register("http_connections", "Open connections", connections.clone());
        let build = Family::<Labels<2>, Gauge>::default();
        build.get_or_create(&[("service", service), ("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("service_build_info", "Name and version of the service; the value is always 1", build);
        Self { requests, durations, in_flight, shed, connections, registry: Arc::new(registry) }
    }

    /// Counts a request as in flight.
    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// Counts a request as completed: it has a response, or its client has closed the connection.
    pub(crate) fn end(&self, method: &Method, route: &Route, status: StatusCode, duration: Duration) {
        self.in_flight.dec();
        let (method, class) = (method_index(method), class_index(status));
        let requests = || {
            let labels =
                RequestLabels { method: METHODS[method], route: Arc::clone(&route.template), status: status.as_u16() };
            self.requests.get_or_create_owned(&labels)
        };
        let series = route.series[method][class].get_or_init(|| {
            let route = Arc::clone(&route.template);
            let labels = DurationLabels { method: METHODS[method], route, status: CLASSES[class] };
            Series { durations: self.durations.get_or_create_owned(&labels), requests: requests(), status }
        });
        series.durations.observe(duration.as_secs_f64());
        if series.status == status {
            series.requests.inc()
        } else {
            requests().inc()
        };
    }

    /// Returns all metrics, of the app and of the process, in the OpenMetrics format.
    pub(crate) fn open_metrics(&self) -> Result<String, fmt::Error> {
        let mut page = self.encode()?;
        text::encode_eof(&mut page)?;
        Ok(page)
    }

    /// Returns all metrics in Prometheus' classic text format, which prometheus-client cannot write. Besides the end mark one thing
    /// differs: the head of a counter has the name of its samples, which ends in `_total`.
    pub(crate) fn classic_text(&self) -> Result<String, fmt::Error> {
        let page = self.encode()?;
        let counters = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
        let counters: Vec<&str> = counters.collect();
        let line = |line: &str| {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some(keyword), Some(name), Some(rest)) if counters.contains(&name) => {
                    format!("# {keyword} {name}_total {rest}\n")
                }
                _ => format!("{line}\n"),
            }
        };
        Ok(page.lines().map(line).collect())
    }

    fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.registry)?;
        text::encode_registry(&mut page, &REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(page)
    }
}

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

fn class_index(status: StatusCode) -> usize {
    (usize::from(status.as_u16() / 100) - 1).min(CLASSES.len() - 1) // a status is 100 or more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(metrics: &Metrics, method: &str, route: &Route, status: u16) {
        let (method, status) = (method.parse().expect("a method"), StatusCode::from_u16(status).expect("a status"));
        metrics.begin();
        metrics.end(&method, route, status, Duration::from_millis(20));
    }

    #[test]
    fn counts_requests_by_method_route_and_status() {
        let (metrics, users, user) = (Metrics::new("test"), Route::new("/users"), Route::new("/users/{id}"));
        for (method, route, status) in [
            ("GET", &users, 200),
            ("GET", &users, 200),
            ("GET", &users, 206),
            ("POST", &users, 201),
            ("GET", &user, 200),
            ("BREW", &user, 499),
            ("GET", &user, 404),
            ("GET", &user, 999),
        ] {
            end(&metrics, method, route, status);
        }
        let page = metrics.classic_text().expect("text");
        for line in [
            r#"http_requests_total{method="GET",route="/users",status="200"} 2"#,
            r#"http_requests_total{method="GET",route="/users",status="206"} 1"#,
            r#"http_requests_total{method="POST",route="/users",status="201"} 1"#,
            r#"http_requests_total{method="GET",route="/users/{id}",status="200"} 1"#,
            r#"http_requests_total{method="OTHER",route="/users/{id}",status="499"} 1"#,
            r#"http_request_duration_seconds_count{method="GET",route="/users",status="2xx"} 3"#,
            r#"http_request_duration_seconds_count{method="GET",route="/users/{id}",status="4xx"} 1"#,
            r#"http_request_duration_seconds_count{method="GET",route="/users/{id}",status="other"} 1"#,
            "http_requests_in_flight 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
        }
    }

    #[test]
    fn names_counters_as_each_format_does() {
        let metrics = Metrics::new("test");
        let (classic, open) = (metrics.classic_text().expect("text"), metrics.open_metrics().expect("text"));
        assert!(
            classic.contains("\n# TYPE http_requests_shed_total counter\nhttp_requests_shed_total 0\n"),
            "{classic}"
        );
        assert!(open.contains("\n# TYPE http_requests_shed counter\nhttp_requests_shed_total 0\n"), "{open}");
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }
}
