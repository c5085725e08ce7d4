//! user-service: users and their accounts. It calls no other service.
//!
//! [`user`] has the rules, [`store`] keeps the users, and `routes` connects both to HTTP.

pub mod config;
pub mod error;
pub mod password;
mod routes;
pub mod store;
pub mod user;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::App;
use chassis::auth::{Access, Authenticator};
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;

use crate::password::Hasher;
use crate::store::UserStore;

/// The name of this service.
pub const SERVICE: &str = "user-service";
/// The service whose tokens are accepted beside those of users.
pub const ORDER_SERVICE: &str = "order-service";

/// The state that the handlers share.
#[derive(Clone)]
pub struct AppState {
    store: Arc<dyn UserStore>,
    hasher: Hasher,
    authenticator: Option<Authenticator>,
}

impl AppState {
    /// Creates the state over this store.
    pub fn new(store: Arc<dyn UserStore>, hasher: Hasher) -> Self {
        Self { store, hasher, authenticator: None }
    }

    /// Turns sign-in on: requests need tokens that `authenticator` verifies.
    #[must_use]
    pub fn with_sign_in(self, authenticator: Option<Authenticator>) -> Self {
        Self { authenticator, ..self }
    }
}

/// Returns the service, ready to be served.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Users and their accounts.";
    let access = Access { rules: routes::RULES, authenticator: state.authenticator.clone() };
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings, access)
}

#[async_trait]
impl ReadinessChecks for AppState {
    async fn store(&self) -> Result<(), String> {
        self.store.ping().await.map_err(|error| error.to_string())
    }

    fn peers(&self) -> Vec<&Peer> {
        Vec::new()
    }
}
