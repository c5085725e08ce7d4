//! How a service runs: everything around its handlers. It knows no user, no product and no order.
//!
//! The life of a process, in the order of each `main`:
//!
//! 1. [`config`] reads the settings. [`telemetry`] starts the log and the traces.
//! 2. The service opens its store and builds its [`App`]: its routes, the health checks, the metrics and the OpenAPI document,
//!    behind one pipeline.
//! 3. [`run`] opens the listener and writes the start-up line.
//! 4. [`serve`] accepts connections until a signal arrives. Then it drains: it finishes the requests in flight.
//! 5. The service finishes its own work. Telemetry exports the last spans and writes the last log lines.
//! 6. [`exit`] returns the exit code.
//!
//! [`http`] reads requests and writes responses; each error response is a [`problem`]. [`client`] calls other services and passes on
//! the [`context`] of the request. [`batch`] joins concurrent calls into one.

pub mod batch;
pub mod client;
pub mod config;
pub mod context;
pub mod fault_injection;
pub mod http;
pub mod postgres;
pub mod problem;
pub mod telemetry;

use std::future::Future;
use std::io;
use std::mem;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use axum::routing::MethodRouter;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::config::Settings;
use crate::http::access_log::AccessLog;
use crate::http::cors::Cors;
use crate::http::health::{Draining, ReadinessChecks};
use crate::http::pipeline::{Pipeline, Routes};
pub use crate::http::server::Shutdown;
use crate::telemetry::metrics::Metrics;

/// A service that is ready to serve: its routes behind the pipeline.
#[derive(Clone)]
pub struct App {
    pipeline: Arc<Pipeline>,
    document: Arc<OpenApi>,
}

impl App {
    /// Returns the app of `service`. It serves `routes` at the root and under `/api`.
    pub fn new(
        service: &'static str,
        description: &str,
        routes: OpenApiRouter,
        needs: Arc<dyn ReadinessChecks>,
        settings: &Settings,
    ) -> Self {
        let (draining, metrics) = (Draining::default(), Metrics::new(service));
        let health = http::health::routes(draining.clone(), needs);
        let (router, document) = http::openapi::assemble(service, description, routes, health);
        let router = router.merge(http::metrics::routes(metrics.clone()));
        let documented = http::openapi::calls_without_query(&document).flat_map(|(path, methods)| {
            let under_api = format!("{}{path}", http::openapi::API);
            [(path.clone(), methods.clone()), (under_api, methods)]
        });
        let others = ["/metrics", "/openapi.json", "/docs", "/docs/", "/docs/{*file}"];
        let routes = Routes::new(documented.chain(others.map(|path| (path.to_owned(), Vec::new()))));
        let permits = Semaphore::new(settings.max_in_flight as usize);
        let running = TaskTracker::new();
        running.close(); // `wait` returns only for a closed tracker; requests can still be added
        let access_log = AccessLog::new(metrics.clone(), settings.log_requests_per_second);
        let (cors, settings) = (Cors::new(&settings.cors_allowed_origins), settings.clone());
        let pipeline = Pipeline { router, routes, cors, metrics, access_log, draining, settings, permits, running };
        Self { pipeline: Arc::new(pipeline), document: Arc::new(document) }
    }

    /// Returns the app with a web page at `/`. The page is not part of the API: it is neither under `/api` nor in the document.
    ///
    /// # Panics
    /// If the app was cloned before.
    #[must_use]
    pub fn with_page(mut self, page: MethodRouter) -> Self {
        let pipeline = Arc::get_mut(&mut self.pipeline).expect("an app gets its page before it is cloned");
        pipeline.router = mem::take(&mut pipeline.router).route("/", page);
        pipeline.routes.add("/", Vec::new());
        self
    }

    /// Returns the response to one request that passes through the whole pipeline, without a connection.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = http::pipeline::stack(Arc::clone(&self.pipeline)).oneshot(request).await;
        response.map(Body::new)
    }

    /// Returns the OpenAPI document.
    pub fn document(&self) -> &OpenApi {
        &self.document
    }
}

/// Returns the current time in whole microseconds. PostgreSQL keeps no more, so all stores return the same time.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Microsecond).unwrap_or(now) // rounding fails only for the last representable time
}

/// Serves `app` until `shutdown` completes, then shuts down in order:
///
/// 1. `/readyz` returns 503 and every response closes its connection ([`Shutdown::Drain`] only, for the drain time).
/// 2. The listener closes.
/// 3. Running requests are finished, within the shutdown time.
///
/// Returns how much of the shutdown time is left. Tests hand in the listener and the signal.
pub async fn serve(listener: TcpListener, app: &App, shutdown: impl Future<Output = Shutdown>) -> Duration {
    http::server::serve(listener, &app.pipeline, shutdown).await
}

/// Serves `app` until SIGTERM or Ctrl-C. It listens on `port`, or on the socket that the parent process opened (`LISTEN_FDS`, systemd's
/// socket activation).
///
/// The start-up line on stdout is `<service> listens on http://<address>, <about>`. Returns the time left for the service to finish
/// its own work.
///
/// # Errors
/// If the service cannot listen, or if it was stopped by a second signal.
pub async fn run(service: &str, port: u16, about: &str, app: &App) -> Result<Duration, String> {
    // Signals are caught before the start-up line: a supervisor may send one as soon as it has read the line.
    let failed = |error: io::Error| format!("cannot catch signals: {error}");
    let (stop, second) = (stop_signal().map_err(failed)?, second_signal().map_err(failed)?);
    let listener = http::listener::open(app.pipeline.settings.host, port).await?;
    let address = listener.local_addr().map_err(|error| format!("cannot read the address of the listener: {error}"))?;
    let message = format!("{service} listens on http://{address}, {about}");
    telemetry::log_start_up(&app.pipeline.settings, &message);
    tokio::select! {
        left = serve(listener, app, stop) => Ok(left),
        () = second => Err("stopped by a second signal; requests in flight were not finished".to_owned()),
    }
}

/// Returns the exit code of `main`, and prints an error on stderr.
pub fn exit(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            telemetry::report_failure(&reason);
            ExitCode::FAILURE
        }
    }
}

fn stop_signal() -> io::Result<impl Future<Output = Shutdown>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => Shutdown::Drain,
            _ = interrupt.recv() => Shutdown::Immediate,
        }
    })
}

/// Completes at the second signal, which ends the process without draining.
fn second_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    })
}
