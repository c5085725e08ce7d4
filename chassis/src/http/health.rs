//! `GET /livez` and `GET /readyz`: is the process alive, and should it be sent requests?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
use crate::problem::{DRAINING, Problem};

/// What a service needs to do its work.
#[async_trait]
pub trait ReadinessChecks: Send + Sync {
    /// Asks the store for a sign of life. `Err` says why there is none, and makes the service unready.
    async fn store(&self) -> Result<(), String>;

    /// The services this one calls. One that is away is reported, but does not make this one unready: else one
    /// outage would spread over all.
    fn peers(&self) -> Vec<&Peer>;
}

/// Whether the process is going down.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From now on `/readyz` is 503 and every answer closes its connection.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Health {
    draining: Draining,
    needs: Arc<dyn ReadinessChecks>,
}

/// The two routes.
pub(crate) fn routes(draining: Draining, needs: Arc<dyn ReadinessChecks>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).with_state(Health { draining, needs })
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

/// Whether to send requests here: 503 with the reasons while draining or without the store.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = OK, body = Ready)))]
async fn readyz(State(health): State<Health>) -> Response {
    if health.draining.has_begun() {
        return Problem::new(&DRAINING, "Going down").with_reasons(vec!["draining".to_owned()]).into_response();
    }
    if let Err(reason) = health.needs.store().await {
        return Problem::store_unavailable(reason)
            .with_reasons(vec!["the store does not answer".to_owned()])
            .into_response();
    }
    let asked = health.needs.peers().into_iter().map(|peer| async { (peer.name(), peer.is_up().await) });
    let peers = future::join_all(asked).await;
    let peers = peers.into_iter().map(|(name, up)| (name, if up { "up" } else { "down" })).collect();
    Json(Ready { status: "ready", peers }).into_response()
}
