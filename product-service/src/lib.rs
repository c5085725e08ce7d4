//! product-service: what there is to sell, and how much of it. It owns products and the reservations on their stock.
//!
//! Every rule about a product is in [`product`], every rule about a reservation in [`reservation`], what is kept is in
//! [`store`], and [`routes`] only joins them to HTTP. It calls user-service for one route, a passage from the tutorial.

pub mod config;
pub mod error;
pub mod peers;
pub mod product;
pub mod reservation;
mod routes;
pub mod store;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::App;
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;

use crate::peers::Users;
use crate::store::ProductStore;

/// What this service is called.
pub const SERVICE: &str = "product-service";

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    store: Arc<dyn ProductStore>,
    users: Users,
}

impl AppState {
    /// Over this store, with this user-service.
    pub fn new(store: Arc<dyn ProductStore>, users: Users) -> Self {
        Self { store, users }
    }
}

/// The service, ready to be served.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Products: what there is to sell, how much of it is left, and what is reserved for orders.";
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings)
}

#[async_trait]
impl ReadinessChecks for AppState {
    async fn store(&self) -> Result<(), String> {
        self.store.ping().await.map_err(|error| error.to_string())
    }

    fn peers(&self) -> Vec<&Peer> {
        vec![self.users.peer()]
    }
}
