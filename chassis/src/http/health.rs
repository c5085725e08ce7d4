//! `GET /livez`: whether the process is alive. `GET /readyz`: whether load balancers should send requests to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::client::Peer;
use crate::postgres::READ_ONLY;
use crate::problem::{DRAINING, Problem};

/// How long a report is reused. So the store and the peers are checked at most twice per second.
const REPORT_MAX_AGE: Duration = Duration::from_millis(500);

/// What a service needs to handle requests.
#[async_trait]
pub trait ReadinessChecks: Send + Sync {
    /// Checks the store.
    ///
    /// # Errors
    /// If the store does not answer, with the reason. The service is not ready then.
    async fn store(&self) -> Result<(), String>;

    /// Returns the services that this one calls. `/readyz` reports a peer that is down, but stays ready. Otherwise one outage
    /// would take down all services.
    fn peers(&self) -> Vec<&Peer>;
}

/// Whether the process is shutting down.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// Starts draining: `/readyz` returns 503, and every response closes its connection.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the service waits for before it can do its work, in a few words; `None` afterwards.
#[derive(Clone, Debug, Default)]
pub struct Starting(Arc<Mutex<Option<&'static str>>>);

impl Starting {
    pub(crate) fn set(&self, waits_for: Option<&'static str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waits_for;
    }

    fn get(&self) -> Option<&'static str> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Health {
    draining: Draining,
    starting: Starting,
    checks: Arc<dyn ReadinessChecks>,
    /// The latest report; `None` while its checks run.
    report: Arc<Mutex<watch::Receiver<Option<Report>>>>,
}

/// The result of the checks: the peers, or why the store does not answer.
#[derive(Clone)]
struct Report {
    finished: Instant,
    result: Result<BTreeMap<&'static str, &'static str>, String>,
}

impl Health {
    /// Returns the state of each peer, or the reason why the store does not answer. Concurrent calls share the checks.
    async fn report(&self) -> Result<BTreeMap<&'static str, &'static str>, String> {
        let mut report = self.latest_or_new();
        let report = report.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        report.map_or_else(|| Err("the check panicked".to_owned()), |report| report.result)
    }

    fn latest_or_new(&self) -> watch::Receiver<Option<Report>> {
        let mut latest = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let is_usable = match &*latest.borrow() {
            Some(report) => report.finished.elapsed() < REPORT_MAX_AGE,
            None => latest.has_changed().is_ok(), // an error means that the task ended without a report
        };
        if !is_usable {
            let (sender, receiver) = watch::channel(None);
            *latest = receiver;
            let checks = Arc::clone(&self.checks);
            // In a task of its own, so that the checks end even if the request that started them is cancelled.
            tokio::spawn(async move {
                let result = check(&*checks).await;
                sender.send_replace(Some(Report { finished: Instant::now(), result }));
            });
        }
        latest.clone()
    }
}

async fn check(checks: &dyn ReadinessChecks) -> Result<BTreeMap<&'static str, &'static str>, String> {
    checks.store().await?;
    let pings = checks.peers().into_iter().map(|peer| async { (peer.name(), peer.is_up().await) });
    let peers = future::join_all(pings).await;
    Ok(peers.into_iter().map(|(name, up)| (name, if up { "up" } else { "down" })).collect())
}

/// Returns the routes `/livez` and `/readyz`.
pub(crate) fn routes(draining: Draining, starting: Starting, checks: Arc<dyn ReadinessChecks>) -> OpenApiRouter {
    let report = Arc::new(Mutex::new(watch::channel(None).1));
    let health = Health { draining, starting, checks, report };
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).with_state(health)
}

/// A process that answers.
#[derive(Serialize, ToSchema)]
struct Alive {
    /// Always `alive`.
    #[schema(example = "alive")]
    status: &'static str,
}

/// Whether the process is alive. It asks neither the store nor another service.
#[utoipa::path(get, path = "/livez", operation_id = "getLiveness", tag = "health", responses((status = OK, body = Alive)))]
async fn livez() -> Json<Alive> {
    Json(Alive { status: "alive" })
}

/// A service that can do its work.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// Always `ready`.
    #[schema(example = "ready")]
    status: &'static str,
    /// The services this one calls, each `up` or `down`.
    peers: BTreeMap<&'static str, &'static str>,
}

/// Whether to send requests here: 503 with the reasons while starting, while draining or without the store.
///
/// The state of the store and of the peers is at most half a second old.
#[utoipa::path(get, path = "/readyz", operation_id = "getReadiness", tag = "health", responses((status = OK, body = Ready)))]
async fn readyz(State(health): State<Health>) -> Response {
    if let Some(waits_for) = health.starting.get().filter(|_| !health.draining.has_begun()) {
        let reasons = vec!["starting".to_owned(), waits_for.to_owned()];
        return Problem::store_unavailable(waits_for).with_reasons(reasons).into_response();
    }
    let report = if health.draining.has_begun() { None } else { Some(health.report().await) };
    match report.filter(|_| !health.draining.has_begun()) {
        Some(Ok(peers)) => Json(Ready { status: "ready", peers }).into_response(),
        Some(Err(reason)) => {
            let reasons = vec![public_reason(&reason).to_owned()];
            Problem::store_unavailable(reason).with_reasons(reasons).into_response()
        }
        None => Problem::new(&DRAINING, "Going down").with_reasons(vec!["draining".to_owned()]).into_response(),
    }
}

/// Returns the part of a reason that clients may see: it names no host and no role.
fn public_reason(reason: &str) -> &'static str {
    if reason.contains(READ_ONLY) { READ_ONLY } else { "the store does not answer" }
}
