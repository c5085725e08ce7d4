//! A service with one route for each thing that can happen to a request.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::routing::{get, post};
use bytes::Bytes;
use chassis::App;
use chassis::auth::{Access, Grant, Rule};
use chassis::client::Peer;
use chassis::config::{Settings, defaults};
use chassis::context::RequestContext;
use chassis::http::extract::Path;
use chassis::http::health::ReadinessChecks;
use chassis::problem::Problem;
use testing::with_timeout;
use tokio::sync::Semaphore;
use tokio::time;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The message of the panic in `/panic`, which no client may see.
pub(crate) const PANIC: &str = "the message of the panic";

/// Stops the handler of `GET /wait`. A test waits until requests are in the handler, and lets them continue.
#[derive(Clone)]
pub(crate) struct Gate {
    entered: Arc<Semaphore>,
    opened: Arc<Semaphore>,
}

impl Gate {
    fn closed() -> Self {
        let no_permits = || Arc::new(Semaphore::new(0));
        Self { entered: no_permits(), opened: no_permits() }
    }

    /// Waits until one more request is in the handler.
    pub(crate) async fn entered(&self) {
        with_timeout("a request at the gate", self.entered.acquire()).await.expect("never closed").forget();
    }

    /// Lets one request through.
    pub(crate) fn open(&self) {
        self.opened.add_permits(1);
    }

    async fn pass(&self) {
        self.entered.add_permits(1);
        self.opened.acquire().await.expect("never closed").forget();
    }
}

/// The dependencies that `/readyz` checks.
pub(crate) struct Dependencies {
    /// The result of the store's check.
    pub(crate) store: Result<(), String>,
    pub(crate) peers: Vec<Peer>,
}

#[async_trait]
impl ReadinessChecks for Dependencies {
    async fn store(&self) -> Result<(), String> {
        self.store.clone()
    }

    fn peers(&self) -> Vec<&Peer> {
        self.peers.iter().collect()
    }
}

/// Returns the default settings with timeouts of an hour. A test of a timeout sets a short one.
pub(crate) fn settings() -> Settings {
    let hour = Duration::from_secs(3600);
    let [header_timeout, body_timeout, request_timeout, drain, shutdown] = [hour; 5];
    Settings { header_timeout, body_timeout, request_timeout, drain, shutdown, ..defaults() }
}

/// Returns the service, and the gate of its `/wait`.
pub(crate) fn service(settings: &Settings) -> (App, Gate) {
    service_with(Dependencies { store: Ok(()), peers: Vec::new() }, settings)
}

/// Returns the service with these dependencies.
pub(crate) fn service_with(dependencies: Dependencies, settings: &Settings) -> (App, Gate) {
    let gate = Gate::closed();
    let gate_of_wait = gate.clone();
    let wait = async move || {
        gate_of_wait.pass().await;
        "through"
    };
    let routes = OpenApiRouter::new()
        .routes(routes!(number))
        .route("/echo", post(async |body: Bytes| body))
        .route("/id", get(async |context: RequestContext| context.request_id().to_owned()))
        .route("/wait", get(wait))
        .route("/hang", get(async || future::pending::<()>().await))
        .route("/late", get(late))
        .route("/panic", get(async || -> () { panic!("{PANIC}") }))
        .route("/bare", get(async || StatusCode::BAD_GATEWAY));
    const RULES: &[Rule] = &[Rule::new("GET /numbers/{n}", &[Grant::Everybody])];
    let access = Access { rules: RULES, authenticator: None };
    (App::new("sample", "A service for tests.", routes, Arc::new(dependencies), settings, access), gate)
}

/// Waits for something until its time is over.
async fn late(context: RequestContext) -> Problem {
    time::sleep(context.time_left()).await;
    Problem::store_unavailable("it was slow")
}

#[utoipa::path(get, path = "/numbers/{n}", params(("n" = u32, Path)), responses((status = OK, body = String)))]
async fn number(Path(n): Path<u32>) -> String {
    n.to_string()
}
