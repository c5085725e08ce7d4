//! The access log: what is counted and said of each request, at its end.
//!
//! What failed, and what took long, is always said. Of what went well and quickly so much is said that somebody could read
//! it; where there is more, the rest is counted, and told when a later second brings the next.

use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::time::Instant;

use crate::context::RequestContext;
use crate::problem::Problem;
use crate::telemetry::metrics::{Metrics, Route};

/// Nobody calls this quick.
const LONG: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);
/// nginx's code for a client that closed the connection before its answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Where the ends of requests are told.
pub(crate) struct Access {
    metrics: Metrics,
    /// How many that went well are said in a second.
    most: u32,
    window: Mutex<Window>,
}

/// The current second.
struct Window {
    began: Instant,
    said: u32,
    unsaid: u64,
}

/// What is told of one request, at its end; also when the client goes before that.
pub(crate) struct Record<'a> {
    access: &'a Access,
    method: Method,
    route: &'a Route,
    context: &'a RequestContext,
    began: Instant,
    over: bool,
}

impl Access {
    pub(crate) fn new(metrics: Metrics, most: u32) -> Self {
        let window = Window { began: Instant::now(), said: 0, unsaid: 0 };
        Self { metrics, most, window: Mutex::new(window) }
    }

    /// A request has come, at this time.
    pub(crate) fn begin<'a>(
        &'a self,
        method: &Method,
        route: &'a Route,
        context: &'a RequestContext,
        began: Instant,
    ) -> Record<'a> {
        self.metrics.begin();
        Record { access: self, method: method.clone(), route, context, began, over: false }
    }

    /// Whether there is a line for one that went well and ended now.
    fn says(&self, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.began) >= SECOND {
            let Window { unsaid, .. } = mem::replace(&mut *window, Window { began: now, said: 0, unsaid: 0 });
            if unsaid > 0 {
                tracing::info!(requests = unsaid, "more that went well");
            }
        }
        let says = window.said < self.most;
        window.said += u32::from(says);
        window.unsaid += u64::from(!says);
        says
    }
}

impl Record<'_> {
    /// It was answered like this.
    pub(crate) fn end(mut self, status: StatusCode, problem: Option<&Problem>) {
        self.over = true;
        let now = Instant::now();
        let Self { access, method, route, context, began, .. } = &self;
        let took = now.saturating_duration_since(*began);
        access.metrics.end(method, route, status, took);
        let went_well = status.as_u16() < 400 && took < LONG;
        if went_well && !access.says(now) {
            return;
        }
        let (method, route) = (method.as_str(), &*route.template);
        let (request_id, trace_id) = (context.request_id(), &*context.trace_id());
        let (status, ms) = (status.as_u16(), took.as_micros() as f64 / 1000.0);
        let (problem, cause) = (problem.map(|p| p.kind().slug), problem.and_then(Problem::cause));
        if status >= 500 {
            tracing::error!(method, route, status, ms, request_id, trace_id, problem, cause, "request");
        } else {
            tracing::info!(method, route, status, ms, request_id, trace_id, problem, cause, "request");
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.over {
            let Self { access, method, route, context, began, .. } = self;
            let status = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST);
            access.metrics.end(method, route, status, began.elapsed());
            let (method, route) = (method.as_str(), &*route.template);
            let (request_id, trace_id) = (context.request_id(), &*context.trace_id());
            tracing::info!(method, route, status = CLIENT_CLOSED_REQUEST, request_id, trace_id, "the client went away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_each_second_so_many_are_said_and_the_rest_is_counted() {
        let access = Access::new(Metrics::new("test"), 3);
        let began = Instant::now();
        let said = |from: Instant, many: u32| (0..many).filter(|_| access.says(from)).count();
        assert_eq!(said(began, 2), 2);
        assert_eq!(said(began + SECOND / 2, 5), 1, "it is the same second");
        assert_eq!(access.window.lock().unwrap().unsaid, 4);
        assert_eq!(said(began + 2 * SECOND, 4), 3);
        assert_eq!(access.window.lock().unwrap().unsaid, 1);
    }
}
