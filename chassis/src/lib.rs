//! How a service runs: everything around its handlers. It knows no user, no product and no order.
//!
//! The life of a process, as [`run`] and each `main` tell it:
//!
//! 1. [`config`] reads the settings, [`telemetry`] starts the log and the traces.
//! 2. The service opens its store and builds its [`App`]: its routes, documented as OpenAPI, with health and metrics beside
//!    them, inside one pipeline.
//! 3. The listener is bound; one line on stdout says where.
//! 4. [`serve`] accepts connections until a signal comes, then drains.
//!
//! [`http`] reads requests and writes answers; errors are a [`problem`]. Calls to other services leave through [`client`],
//! with their [`context`], several in one by [`batch`].

pub mod batch;
pub mod client;
pub mod config;
pub mod context;
pub mod fault_injection;
pub mod http;
pub mod postgres;
pub mod problem;
pub mod table;
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
pub use crate::http::server::{Shutdown, serve};
use crate::telemetry::metrics::Metrics;

/// A service ready to be served: its routes inside the layers.
#[derive(Clone)]
pub struct App {
    pipeline: Arc<Pipeline>,
    document: Arc<OpenApi>,
}

impl App {
    /// The app of `service` with these routes, which answer at the root and under `/api`.
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
        running.close(); // to further tasks it makes no difference, but it can be waited for
        let access_log = AccessLog::new(metrics.clone(), settings.log_requests_per_second);
        let (cors, settings) = (Cors::new(&settings.cors_allowed_origins), settings.clone());
        let pipeline = Pipeline { router, routes, cors, metrics, access_log, draining, settings, permits, running };
        Self { pipeline: Arc::new(pipeline), document: Arc::new(document) }
    }

    /// The same with a page for people at `/`: no part of the API, so neither under `/api` nor in the document.
    ///
    /// # Panics
    /// If there is a clone of this app already.
    #[must_use]
    pub fn with_page(mut self, page: MethodRouter) -> Self {
        let pipeline = Arc::get_mut(&mut self.pipeline).expect("an app gets its page before anybody else has it");
        pipeline.router = mem::take(&mut pipeline.router).route("/", page);
        pipeline.routes.add("/", Vec::new());
        self
    }

    /// Answers one request in this process, through the whole pipeline.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = http::pipeline::stack(Arc::clone(&self.pipeline)).oneshot(request).await;
        response.map(Body::new)
    }

    /// The OpenAPI document.
    pub fn document(&self) -> &OpenApi {
        &self.document
    }
}

/// The time, in whole microseconds: what every store keeps, so that no two of them differ in what they answer.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Microsecond).unwrap_or(now) // rounding fails only at the end of time
}

/// Listens at this port, or on the socket that it was started with (`LISTEN_FDS`, as systemd hands them over). Says so in one
/// line on stdout (`<service> listens on http://<address>, <about>`), and serves until SIGTERM or Ctrl-C. A second signal
/// ends it at once. Answers how much is left of the time for what runs, for whatever else the service has to finish.
///
/// # Errors
/// If the address cannot be listened on, or there was a second signal.
pub async fn run(service: &str, port: u16, about: &str, app: &App) -> Result<Duration, String> {
    // The signals are caught before anyone can know that the service is there.
    let unable = |error: io::Error| format!("cannot catch signals: {error}");
    let (stop, again) = (stop_signal().map_err(unable)?, second_signal().map_err(unable)?);
    let listener = http::listener::open(app.pipeline.settings.host, port).await?;
    let address = listener.local_addr().map_err(|error| format!("cannot tell where it listens: {error}"))?;
    let message = format!("{service} listens on http://{address}, {about}");
    telemetry::log_start_up(&app.pipeline.settings, &message);
    tokio::select! {
        left = serve(listener, app, stop) => Ok(left),
        () = again => Err("a second signal; what was running is not finished".to_owned()),
    }
}

/// Returns the exit code of `main`. Prints the error on stderr.
#[expect(clippy::print_stderr, reason = "a service that cannot start may have no log yet")]
pub fn exit(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
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

/// Whoever sends a second signal does not want to wait.
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
