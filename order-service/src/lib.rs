//! order-service: what was bought. It owns orders, and sees to it that none is lost and no unit sold twice.
//!
//! The story is [`placement`]; [`reconciler`] finishes what a crash left half done. The life of an order is in [`order`],
//! what is kept in [`store`], who is asked in [`peers`], and [`routes`] only joins them to HTTP. At `/` is a [`page`] on
//! which all three services can be watched.

pub mod config;
pub mod error;
pub mod idempotency;
pub mod order;
mod page;
pub mod peers;
pub mod placement;
pub mod reconciler;
mod routes;
pub mod store;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::App;
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;

use crate::placement::Placement;

/// What this service is called.
pub const SERVICE: &str = "order-service";

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    placement: Placement,
}

impl AppState {
    /// Over this placement, its store and its peers.
    pub fn new(placement: Placement) -> Self {
        Self { placement }
    }
}

/// The service, ready to be served. The [`reconciler`] is run beside it.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Orders: placed all or not at all, whatever fails meanwhile.";
    let page = page::route(&state.placement);
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings)
        .with_page(page)
}

#[async_trait]
impl ReadinessChecks for AppState {
    async fn store(&self) -> Result<(), String> {
        self.placement.store().ping().await.map_err(|error| error.to_string())
    }

    fn peers(&self) -> Vec<&Peer> {
        self.placement.peers()
    }
}
