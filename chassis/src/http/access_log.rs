//! The access log and the request metrics: one record for each request, written when it ends.
//!
//! Failed and slow requests are always logged. Of the successful ones at most N per second are logged. The rest are counted,
//! and their number is logged with the first request of a later second. A health check that succeeds is not logged.

use std::mem;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::time::Instant;
use tracing::field::display;

use crate::context::RequestContext;
use crate::problem::Problem;
use crate::telemetry::PROBES;
use crate::telemetry::metrics::{Metrics, Route};

/// A request that takes this long is always logged.
const SLOW: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// nginx's status code for a client that closed the connection before the response.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The access log of a service, and the metrics of its requests.
pub(crate) struct AccessLog {
    metrics: Metrics,
    /// Maximum successful requests logged per second.
    max_per_second: u32,
    window: Mutex<Window>,
}

/// The current second.
struct Window {
    start: Instant,
    logged: u32,
    suppressed: u64,
}

/// The record of one request. If it is dropped unfinished, the client has disconnected.
pub(crate) struct RequestLog<'a> {
    access_log: &'a AccessLog,
    method: Method,
    route: &'a Route,
    context: &'a RequestContext,
    /// `None` for a request without a connection.
    client: Option<IpAddr>,
    received_at: Instant,
    finished: bool,
}

impl AccessLog {
    pub(crate) fn new(metrics: Metrics, max_per_second: u32) -> Self {
        let window = Window { start: Instant::now(), logged: 0, suppressed: 0 };
        Self { metrics, max_per_second, window: Mutex::new(window) }
    }

    /// Starts the record of a request.
    pub(crate) fn start<'a>(
        &'a self,
        method: &Method,
        route: &'a Route,
        context: &'a RequestContext,
        client: Option<IpAddr>,
        received_at: Instant,
    ) -> RequestLog<'a> {
        self.metrics.begin();
        RequestLog { access_log: self, method: method.clone(), route, context, client, received_at, finished: false }
    }

    /// Returns whether to log a successful request that ends now.
    fn should_log(&self, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.start) >= SECOND {
            let last = mem::replace(&mut *window, Window { start: now, logged: 0, suppressed: 0 });
            if last.suppressed > 0 {
                tracing::info!(requests = last.suppressed, "successful requests not logged");
            }
        }
        let should_log = window.logged < self.max_per_second;
        window.logged += u32::from(should_log);
        window.suppressed += u64::from(!should_log);
        should_log
    }
}

impl RequestLog<'_> {
    /// Counts and logs the request, which was answered with this status.
    pub(crate) fn finish(mut self, status: StatusCode, problem: Option<&Problem>) {
        self.finished = true;
        let now = Instant::now();
        let Self { access_log, method, route, context, client, received_at, .. } = &self;
        let duration = now.saturating_duration_since(*received_at);
        access_log.metrics.end(method, route, status, duration);
        let succeeded = status.as_u16() < 400 && duration < SLOW;
        if succeeded && (PROBES.contains(&&*route.template) || !access_log.should_log(now)) {
            return;
        }
        let (method, route) = (method.as_str(), &*route.template);
        let (request_id, trace_id, client) = (context.request_id(), &*context.trace_id(), client.map(display));
        let is_failure = problem.map_or(status.is_server_error(), Problem::is_failure);
        let (status, ms) = (status.as_u16(), duration.as_micros() as f64 / 1000.0);
        let (problem, cause) = (problem.map(|p| p.kind().slug), problem.and_then(Problem::cause));
        if is_failure {
            tracing::error!(method, route, status, ms, client, request_id, trace_id, problem, cause, "request");
        } else {
            tracing::info!(method, route, status, ms, client, request_id, trace_id, problem, cause, "request");
        }
    }
}

impl Drop for RequestLog<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let Self { access_log, method, route, context, client, received_at, .. } = self;
        let status = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST);
        access_log.metrics.end(method, route, status, received_at.elapsed());
        let (method, route) = (method.as_str(), &*route.template);
        let (request_id, trace_id, client) = (context.request_id(), &*context.trace_id(), client.map(display));
        tracing::info!(
            method,
            route,
            status = CLIENT_CLOSED_REQUEST,
            client,
            request_id,
            trace_id,
            "client disconnected"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_at_most_n_requests_per_second_and_counts_the_rest() {
        let access_log = AccessLog::new(Metrics::new("test"), 3);
        let start = Instant::now();
        let logged = |now: Instant, requests: u32| (0..requests).filter(|_| access_log.should_log(now)).count();
        assert_eq!(logged(start, 2), 2);
        assert_eq!(logged(start + SECOND / 2, 5), 1, "it is the same second");
        assert_eq!(access_log.window.lock().unwrap().suppressed, 4);
        assert_eq!(logged(start + 2 * SECOND, 4), 3);
        assert_eq!(access_log.window.lock().unwrap().suppressed, 1);
    }
}
