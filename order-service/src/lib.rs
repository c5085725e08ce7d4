//! order-service owns orders: no order is lost and no unit is sold twice.
//!
//! Read [`placement`] first: it is how an order is placed. [`reconciler`] finishes what a crash has interrupted.
//! [`order`] is the life cycle of an order, [`store`] keeps orders, [`peers`] calls the other services, and `routes` is
//! the HTTP API.

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
use chassis::auth::{Access, Authenticator};
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;
use url::Url;

use crate::placement::Placement;

/// The name of this service.
pub const SERVICE: &str = "order-service";

/// The state that the handlers share.
#[derive(Clone)]
pub struct AppState {
    placement: Placement,
    public_urls: [Option<Url>; 2],
    authenticator: Option<Authenticator>,
}

impl AppState {
    /// Creates the state over this placement, its store and its peers.
    pub fn new(placement: Placement) -> Self {
        Self { placement, public_urls: [None, None], authenticator: None }
    }

    /// Sets the addresses at which browsers reach user-service and product-service, if they are not those of the peers.
    pub fn with_public_urls(self, public_urls: [Option<Url>; 2]) -> Self {
        Self { public_urls, ..self }
    }

    /// Turns sign-in on: requests need tokens that `authenticator` verifies.
    #[must_use]
    pub fn with_sign_in(self, authenticator: Option<Authenticator>) -> Self {
        Self { authenticator, ..self }
    }
}

/// Returns the service, ready to be served. The [`reconciler`] must run beside it.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Orders. An order is placed completely or not at all, also when a service or a database fails.";
    let page = page::route(&state.placement, &state.public_urls, state.authenticator.as_ref());
    let access = Access { rules: routes::RULES, authenticator: state.authenticator.clone() };
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings, access)
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
