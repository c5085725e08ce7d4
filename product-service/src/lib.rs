//! product-service: owns the products and the reservations on their stock.
//!
//! [`product`] has every rule about a product, [`reservation`] every rule about a reservation, and [`store`] keeps both.
//! [`routes`] maps HTTP to them. One route, `GET /users`, calls user-service, because the tutorial has it here.

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
use chassis::auth::{Access, Authenticator};
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;

use crate::peers::Users;
use crate::store::ProductStore;

/// The name of this service.
pub const SERVICE: &str = "product-service";
/// The service whose tokens are accepted beside those of users.
pub const ORDER_SERVICE: &str = "order-service";

/// The state that all handlers share.
#[derive(Clone)]
pub struct AppState {
    store: Arc<dyn ProductStore>,
    users: Users,
    authenticator: Option<Authenticator>,
}

impl AppState {
    /// Returns the state with this store and this client of user-service.
    pub fn new(store: Arc<dyn ProductStore>, users: Users) -> Self {
        Self { store, users, authenticator: None }
    }

    /// Turns sign-in on: requests need tokens that `authenticator` verifies.
    #[must_use]
    pub fn with_sign_in(self, authenticator: Option<Authenticator>) -> Self {
        Self { authenticator, ..self }
    }
}

/// Returns the service: its routes behind the pipeline of the chassis.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Products, their stock, and the units that are reserved for orders.";
    let access = Access { rules: routes::RULES, authenticator: state.authenticator.clone() };
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings, access)
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
