//! A service with one route for each thing that can happen to a request.

use std::future;
use std::sync::Arc;
use testing::with_timeout;

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::routing::{get, post};
use bytes::Bytes;
use chassis::App;
use chassis::client::Peer;
use chassis::config::{Settings, defaults};
use chassis::context::RequestContext;
use chassis::http::extract::Path;
use chassis::http::health::ReadinessChecks;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What the handler of `/panic` says, and no client may read.
pub(crate) const PANIC: &str = "the panic's own words";

/// Where `GET /wait` waits: a test sees that requests are in, and lets them go on.
#[derive(Clone)]
pub(crate) struct Gate {
    entered: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

/// What the service says of itself to `/readyz`.
pub(crate) struct World {
    /// The answer of its store.
    pub(crate) store: Result<(), String>,
    /// Whom it calls.
    pub(crate) peers: Vec<Peer>,
}

impl Gate {
    fn closed() -> Self {
        let nothing = || Arc::new(Semaphore::new(0));
        Self { entered: nothing(), open: nothing() }
    }

    /// Until one more request has come to the gate.
    pub(crate) async fn entered(&self) {
        with_timeout("a request at the gate", self.entered.acquire()).await.expect("never closed").forget();
    }

    /// Lets one request through.
    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }

    async fn pass(&self) {
        self.entered.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }
}

#[async_trait]
impl ReadinessChecks for World {
    async fn store(&self) -> Result<(), String> {
        self.store.clone()
    }

    fn peers(&self) -> Vec<&Peer> {
        self.peers.iter().collect()
    }
}

/// The settings of every service, with time limits that no test comes near unless it sets a shorter one.
pub(crate) fn settings() -> Settings {
    let hour = std::time::Duration::from_secs(3600);
    let [header_timeout, body_timeout, request_timeout, drain, shutdown] = [hour; 5];
    Settings { header_timeout, body_timeout, request_timeout, drain, shutdown, ..defaults() }
}

/// The service, and the gate in it.
pub(crate) fn service(settings: &Settings) -> (App, Gate) {
    service_in(World { store: Ok(()), peers: Vec::new() }, settings)
}

/// The service in such a world.
pub(crate) fn service_in(world: World, settings: &Settings) -> (App, Gate) {
    let gate = Gate::closed();
    let at_gate = gate.clone();
    let wait = async move || {
        at_gate.pass().await;
        "through"
    };
    let routes = OpenApiRouter::new()
        .routes(routes!(number))
        .route("/echo", post(async |body: Bytes| body))
        .route("/id", get(async |context: RequestContext| context.request_id().to_owned()))
        .route("/wait", get(wait))
        .route("/hang", get(async || future::pending::<()>().await))
        .route("/panic", get(async || -> () { panic!("{PANIC}") }))
        .route("/bare", get(async || StatusCode::BAD_GATEWAY));
    (App::new("tiny", "A service to be tested with.", routes, Arc::new(world), settings), gate)
}

#[utoipa::path(get, path = "/numbers/{n}", params(("n" = u32, Path)), responses((status = OK, body = String)))]
async fn number(Path(n): Path<u32>) -> String {
    n.to_string()
}
