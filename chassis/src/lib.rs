//! How a service runs: everything around its handlers. It knows no user, no product and no order.
//!
//! The life of a process, in the order of each `main`:
//!
//! 1. [`Signals`] are caught. [`config`] reads the settings. [`telemetry`] starts the log and the traces.
//! 2. The service creates its store and its [`App`]: its routes, the health checks, the metrics and the OpenAPI document,
//!    behind one pipeline.
//! 3. [`run`] opens the listener, writes the start-up line and accepts connections. The service is alive, but not ready.
//! 4. [`run`] opens the database as soon as it answers. Then the service is ready.
//! 5. At a signal, [`serve`] drains: it finishes the requests in flight and closes the listener.
//! 6. The service finishes its own work. Telemetry exports the last spans and writes the last log lines.
//! 7. [`exit`] ends the process.
//!
//! With `--migrate-only`, [`migrate`] takes the place of steps 3 to 6. With `--health`, the process only calls [`check_health`].
//!
//! [`http`] reads requests and writes responses; each error response is a [`problem`]. [`client`] calls other services and
//! passes on the [`context`] of the request. [`batch`] joins concurrent calls into one.

pub mod auth;
pub mod batch;
pub mod client;
pub mod config;
pub mod context;
pub mod fault_injection;
pub mod http;
pub mod postgres;
pub mod problem;
pub mod telemetry;

use std::future::{self, Future};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use axum::routing::MethodRouter;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::auth::Access;
use crate::config::Settings;
use crate::http::access_log::AccessLog;
use crate::http::cors::Cors;
use crate::http::health::{Draining, ReadinessChecks, Starting};
use crate::http::pipeline::Pipeline;
use crate::http::routes::Routes;
pub use crate::http::self_check::check_health;
pub use crate::http::server::Shutdown;
use crate::postgres::Storage;
use crate::telemetry::metrics::Metrics;

/// What `--version` prints: the version of all services, and the commit of a release build.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("REVISION"), ")");

/// A service that is ready to serve: its routes behind the pipeline.
#[derive(Clone)]
pub struct App {
    pipeline: Arc<Pipeline>,
    document: Arc<OpenApi>,
    starting: Starting,
    /// Cancelled when the drain begins.
    stopping: CancellationToken,
}

impl App {
    /// Returns the app of `service`. It serves `routes` at the root and under `/api`, to the callers that `access` allows.
    ///
    /// # Panics
    /// If a route has no rule in `access`, or a rule has no route.
    pub fn new(
        service: &'static str,
        description: &str,
        routes: OpenApiRouter,
        checks: Arc<dyn ReadinessChecks>,
        settings: &Settings,
        access: Access,
    ) -> Self {
        let (draining, starting, metrics) = (Draining::default(), Starting::default(), Metrics::new(service));
        let health = http::health::routes(draining.clone(), starting.clone(), checks);
        let (router, document) = http::openapi::assemble(service, description, routes, health, &access);
        let router =
            router.merge(http::metrics::routes(metrics.clone())).merge(http::resource_metadata::routes(&access));
        let routes = Routes::new(&document, access.rules);
        let permits = Semaphore::new(settings.max_in_flight as usize);
        let running = TaskTracker::new();
        running.close(); // `wait` returns only for a closed tracker; requests can still be added
        let access_log = AccessLog::new(metrics.clone(), settings.log_requests_per_second);
        let (cors, settings) = (Cors::new(&settings.cors_allowed_origins), settings.clone());
        let authenticator = access.authenticator;
        let pipeline =
            Pipeline { router, routes, authenticator, cors, metrics, access_log, draining, settings, permits, running };
        Self {
            pipeline: Arc::new(pipeline),
            document: Arc::new(document),
            starting,
            stopping: CancellationToken::new(),
        }
    }

    /// Returns the app with a web page at `/`. The page is not part of the API: it is neither under `/api` nor in the document.
    ///
    /// # Panics
    /// If the app was cloned before.
    #[must_use]
    pub fn with_page(self, page: MethodRouter) -> Self {
        self.with_public_route("/", page)
    }

    /// Returns the app with a route that needs no token. Like the page, it is not part of the API.
    ///
    /// # Panics
    /// If the app was cloned before.
    #[must_use]
    pub fn with_public_route(mut self, path: &str, route: MethodRouter) -> Self {
        let pipeline = Arc::get_mut(&mut self.pipeline).expect("an app gets its routes before it is cloned");
        pipeline.router = mem::take(&mut pipeline.router).route(path, route);
        pipeline.routes.add_public(path);
        self
    }

    /// Sends one request through the whole pipeline, without a connection, and returns the response. An extension of the request
    /// may have the address of a peer.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let peer = request.extensions().get::<SocketAddr>().copied();
        let Ok(response) = http::pipeline::service(Arc::clone(&self.pipeline), peer).oneshot(request).await;
        response
    }

    /// Starts work in the background as soon as the storage is open. The work is dropped when the drain begins.
    pub fn spawn_while_serving(&self, storage: &Storage, work: impl Future<Output = ()> + Send + 'static) {
        let (opened, stopping) = (storage.clone().opened(), self.stopping.clone());
        tokio::spawn(stopping.run_until_cancelled_owned(opened.then(|()| work)));
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

/// Serves `app` until SIGTERM or Ctrl-C. It listens on `port`, or on the socket that the parent process opened
/// (`LISTEN_FDS`, systemd's socket activation).
///
/// Meanwhile it opens the storage, and retries without end. Until the storage is open, `/readyz` and the calls that need the
/// store return 503. The start-up line on stdout is `<service> listens on http://<address>, <about>`.
///
/// Returns the time that is left for the service to finish its own work.
///
/// # Errors
/// If the service cannot listen, if its database can never be used, or if it was stopped by a second signal.
pub async fn run(
    service: &str,
    port: u16,
    about: &str,
    app: &App,
    storage: &Storage,
    signals: Signals,
) -> Result<Duration, String> {
    app.starting.set(matches!(storage, Storage::Postgres(_)).then_some("the database does not answer"));
    let listener = http::listener::open(app.pipeline.settings.host, port).await?;
    let address = listener.local_addr().map_err(|error| format!("cannot read the address of the listener: {error}"))?;
    let message = format!("{service} listens on http://{address}, {about}");
    telemetry::log_start_up(&app.pipeline.settings, &message);
    let stop = signals.first.inspect(|_| app.stopping.cancel());
    let cannot_open = async {
        match storage.open(|waits_for| app.starting.set(Some(waits_for))).await {
            Err(reason) if !app.stopping.is_cancelled() => return reason,
            Err(_) => {}
            Ok(()) => app.starting.set(None),
        }
        future::pending().await
    };
    tokio::select! {
        left = serve(listener, app, stop) => Ok(left),
        () = signals.second => Err("stopped by a second signal; requests in flight were not finished".to_owned()),
        reason = cannot_open => Err(reason),
    }
}

/// Runs the migrations of the storage instead of the service (`--migrate-only`).
///
/// # Errors
/// If there is no database, if it cannot be migrated, or if a signal stopped the migrations.
pub async fn migrate(storage: &Storage, signals: Signals) -> Result<(), String> {
    tokio::select! {
        migrated = storage.migrate() => migrated,
        _ = signals.first => Err("stopped by a signal; the migrations are not finished".to_owned()),
    }
}

/// Ends the process, and prints an error on stderr.
///
/// It does not wait for threads that are blocked, for example by a DNS server that does not answer.
pub fn exit(result: Result<(), String>) -> ! {
    let code = result.map_or_else(
        |reason| {
            telemetry::report_failure(&reason);
            1
        },
        |()| 0,
    );
    process::exit(code)
}

/// SIGTERM and Ctrl-C. They are caught from the start of the process, because a supervisor may send one at any time.
pub struct Signals {
    first: Pin<Box<dyn Future<Output = Shutdown> + Send>>,
    /// Completes at the second signal, which ends the process without draining.
    second: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Signals {
    /// Catches the signals. Call this before anything else.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn catch() -> Result<Self, String> {
        let next = || -> io::Result<_> {
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            Ok(async move || {
                tokio::select! {
                    _ = terminate.recv() => Shutdown::Drain,
                    _ = interrupt.recv() => Shutdown::Immediate,
                }
            })
        };
        let failed = |error: io::Error| format!("cannot catch signals: {error}");
        let (mut first, mut second) = (next().map_err(failed)?, next().map_err(failed)?);
        Ok(Self {
            first: Box::pin(async move { first().await }),
            second: Box::pin(async move {
                second().await;
                second().await;
            }),
        })
    }
}
