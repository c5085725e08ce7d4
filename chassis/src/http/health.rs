//! `GET /livez`: whether the process is alive. `GET /readyz`: whether load balancers should send requests to it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::client::Peer;
use crate::postgres::READ_ONLY;
use crate::problem::{DRAINING, Problem};

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
}

/// Returns the routes `/livez` and `/readyz`.
pub(crate) fn routes(draining: Draining, starting: Starting, checks: Arc<dyn ReadinessChecks>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).with_state(Health {
        draining,
        starting,
        checks,
    })
}

/// A process that answers.
#[derive(Serialize, ToSchema)]
struct Alive {
    /// Always `alive`.
    #[schema(example = "alive")]
    status: &'static str,
}

/// Whether the process is alive. It never asks anyone else.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = OK, body = Alive)))]
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
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = OK, body = Ready)))]
async fn readyz(State(health): State<Health>) -> Response {
    if health.draining.has_begun() {
        return Problem::new(&DRAINING, "Going down").with_reasons(vec!["draining".to_owned()]).into_response();
    }
    if let Some(waits_for) = health.starting.get() {
        return Problem::store_unavailable(waits_for)
            .with_reasons(vec!["starting".to_owned(), waits_for.to_owned()])
            .into_response();
    }
    if let Err(reason) = health.checks.store().await {
        return Problem::store_unavailable(&reason)
            .with_reasons(vec![public_reason(&reason).to_owned()])
            .into_response();
    }
    let pings = health.checks.peers().into_iter().map(|peer| async { (peer.name(), peer.is_up().await) });
    let peers = future::join_all(pings).await;
    let peers = peers.into_iter().map(|(name, up)| (name, if up { "up" } else { "down" })).collect();
    Json(Ready { status: "ready", peers }).into_response()
}

/// Returns the part of a reason that clients may see: it names no host and no role.
fn public_reason(reason: &str) -> &'static str {
    if reason.contains(READ_ONLY) { READ_ONLY } else { "the store does not answer" }
}
