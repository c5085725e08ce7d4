//! user-service: users and their accounts. It calls no other service.
//!
//! [`user`] has the rules, [`store`] keeps the users, and `routes` connects both to HTTP. While sign-in is on, `sessions`
//! answers with tokens of the [`issuer`], and [`guesses`] limits wrong passwords.

pub mod config;
pub mod error;
pub mod guesses;
pub mod issuer;
pub mod password;
mod routes;
mod sessions;
pub mod store;
pub mod user;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use chassis::App;
use chassis::auth::{Access, Authenticator};
use chassis::client::Peer;
use chassis::config::Settings;
use chassis::http::health::ReadinessChecks;
use tokio::time;

use crate::error::Error;
use crate::issuer::{Admins, Issuer};
use crate::password::{Hasher, Password};
use crate::store::{StoreError, UserStore};
use crate::user::{CreateUser, case_fold};

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
    issuer: Option<Arc<Issuer>>,
}

impl AppState {
    /// Creates the state over this store.
    pub fn new(store: Arc<dyn UserStore>, hasher: Hasher) -> Self {
        Self { store, hasher, authenticator: None, issuer: None }
    }

    /// Turns sign-in on: requests need tokens that `authenticator` verifies. With `issuer`, this service issues them.
    #[must_use]
    pub fn with_sign_in(self, authenticator: Option<Authenticator>, issuer: Option<Issuer>) -> Self {
        Self { authenticator, issuer: issuer.map(Arc::new), ..self }
    }

    /// Checks a new password and a new username, which a user with the username `current` has chosen. Without sign-in
    /// everything is accepted.
    fn check_account(
        &self,
        current: Option<&str>,
        username: Option<&str>,
        password: Option<&Password>,
    ) -> Result<(), Error> {
        if self.authenticator.is_some() && password.is_some_and(Password::is_common) {
            return Err(Error::CommonPassword);
        }
        let is_taken = |username: &str| {
            let is_kept = current.is_some_and(|current| case_fold(current) == case_fold(username));
            !is_kept && self.issuer.as_ref().is_some_and(|issuer| issuer.admins().contains(username))
        };
        if username.is_some_and(is_taken) { Err(StoreError::UsernameTaken.into()) } else { Ok(()) }
    }

    /// Creates the admins that do not exist, and retries until all do. Replicas may do so concurrently.
    pub async fn create_admins(self) {
        let Some(issuer) = &self.issuer else { return };
        let mut pause = Duration::from_secs(1);
        while let Err(error) = self.try_create_admins(issuer.admins()).await {
            tracing::warn!(%error, "admins not created yet");
            time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        issuer.admins().exist.store(true, Ordering::Relaxed);
    }

    async fn try_create_admins(&self, admins: &Admins) -> Result<(), Error> {
        for username in &admins.usernames {
            if let Some(found) = self.store.by_username(username).await? {
                let has_password = found.password.is_some(); // without one, this admin cannot sign in
                tracing::info!(username, id = found.user.id.get(), has_password, "an existing account is an admin");
                continue;
            }
            let Some(password) = &admins.password else {
                tracing::warn!(username, "admin does not exist, and AUTH_ADMIN_PASSWORD_FILE is not set");
                continue;
            };
            let hash = self.hasher.hash_optional(Some(password.clone())).await?;
            let user = CreateUser { username: Some(username.clone()), ..CreateUser::named(username) };
            match self.store.insert(user, hash, chassis::now()).await {
                Ok(created) => tracing::info!(username, id = created.user.id.get(), "admin created"),
                Err(StoreError::UsernameTaken) => {} // another replica was first
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Returns the service, ready to be served.
pub fn app(state: AppState, settings: &Settings) -> App {
    let description = "Users and their accounts.";
    let access = Access { rules: routes::RULES, authenticator: state.authenticator.clone() };
    let (routes, issuer) = (routes::router().with_state(state.clone()), state.issuer.clone());
    let app = App::new(SERVICE, description, routes, Arc::new(state), settings, access);
    match issuer {
        Some(issuer) => issuer.publish(app),
        None => app,
    }
}

#[async_trait]
impl ReadinessChecks for AppState {
    async fn store(&self) -> Result<(), String> {
        self.store.ping().await.map_err(|error| error.to_string())?;
        let admins_exist = self.issuer.as_ref().is_none_or(|issuer| issuer.admins().exist());
        if admins_exist { Ok(()) } else { Err("the admins are not created yet".to_owned()) }
    }

    fn peers(&self) -> Vec<&Peer> {
        Vec::new()
    }
}
