//! user-service: who there is. It owns users and their accounts, and calls nobody.
//!
//! Every rule about a user is in [`user`], what is kept is in [`store`], and [`routes`] only joins the two to HTTP.

pub mod config;
pub mod error;
pub mod password;
mod routes;
pub mod store;
pub mod user;

use std::sync::Arc;

use async_trait::async_trait;
use chassis::App;
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;

use crate::password::Hasher;
use crate::store::UserStore;

/// What this service is called.
pub const SERVICE: &str = "user-service";

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    store: Arc<dyn UserStore>,
    hasher: Hasher,
}

impl AppState {
    /// Over this store.
    pub fn new(store: Arc<dyn UserStore>, hasher: Hasher) -> Self {
        Self { store, hasher }
    }
}

/// The service, ready to be served.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Users: who there is, and the accounts of those who have one.";
    App::new(SERVICE, description, routes::router().with_state(state.clone()), Arc::new(state), settings)
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
