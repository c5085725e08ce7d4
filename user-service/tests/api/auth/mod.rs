//! Sign-in: tokens, guesses, admins, and who may make which call.

mod admins;
mod guessing;
mod sessions;
mod table;

use std::sync::Arc;
use std::time::Instant;

use chassis::auth::{Authenticator, KeySet, SigningKey, system_clock};
use chassis::config::{AuthSettings, Settings};
use serde_json::{Value, json};
use testing::tokens::TokenKey;
use testing::{Client, Received};
use user_service::guesses::{Clock, Guesses};
use user_service::issuer::{Admins, Issuer};
use user_service::password::{Hasher, Password};
use user_service::store::{self, UserStore};
use user_service::{AppState, ORDER_SERVICE, SERVICE, app};

use crate::support::{hasher, settings};

const ISSUER: &str = "https://shop.example/users/";
const AUDIENCE: &str = "shop";
pub(crate) const PASSWORD: &str = "31415926 is no birthday";

/// How a service with sign-in is made.
pub(crate) struct Setup {
    pub(crate) keys: Vec<SigningKey>,
    pub(crate) admins: &'static [&'static str],
    pub(crate) clock: Clock,
    pub(crate) hasher: Hasher,
    pub(crate) settings: Settings,
}

/// A service with sign-in, and what its tests look at.
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) state: AppState,
    pub(crate) store: Arc<dyn UserStore>,
    pub(crate) hasher: Hasher,
}

/// Returns a new key, as its PEM file.
pub(crate) fn new_key() -> String {
    TokenKey::new("").private_pem()
}

/// Returns the key of a PEM file.
pub(crate) fn key(pem: &str) -> SigningKey {
    SigningKey::from_pem(pem.as_bytes()).expect("a key")
}

impl Setup {
    /// Returns a service that signs with this key, without admins.
    pub(crate) fn signing_with(pem: &str) -> Self {
        let auth =
            AuthSettings { issuer: Some(ISSUER.to_owned()), audience: Some(AUDIENCE.to_owned()), ..settings().auth };
        let settings = Settings { auth, ..settings() };
        Self { keys: vec![key(pem)], admins: &[], clock: Instant::now, hasher: hasher(), settings }
    }

    pub(crate) async fn start(self) -> Service {
        self.start_over(store::memory(false).await.expect("a store in memory"), &new_key())
    }

    /// Starts the service over this store. It accepts the tokens of order-service that this key signs.
    pub(crate) fn start_over(self, store: Arc<dyn UserStore>, order_service_key: &str) -> Service {
        let Self { keys, admins, clock, hasher, settings } = self;
        let usernames = admins.iter().map(|&username| username.to_owned()).collect();
        let admins = Admins::new(usernames, Password::parse(PASSWORD.to_owned()).ok());
        let issuer = Issuer::new(settings.auth.clone(), keys, admins, Guesses::with_clock(clock));
        let services = vec![(ORDER_SERVICE, KeySet::of(&[key(order_service_key)]))];
        let authenticator =
            Authenticator::new(SERVICE, &settings.auth, Some(issuer.key_set()), services).expect("keys");
        let state = AppState::new(Arc::clone(&store), hasher.clone()).with_sign_in(authenticator, Some(issuer));
        Service { client: Client::new(app(state.clone(), &settings)), state, store, hasher }
    }
}

impl Service {
    /// Adds an account with this username, an e-mail made from it, and [`PASSWORD`].
    pub(crate) async fn sign_up(&self, username: &str) -> Value {
        let email = format!("{username}@example.com");
        let account = json!({"username": username, "email": email, "password": PASSWORD});
        self.client.post("/users", account).await.expect(201).json()
    }

    pub(crate) async fn sign_in(&self, username: &str, password: &str) -> Received {
        self.client.post("/sessions", json!({"username": username, "password": password})).await
    }

    /// Signs in with [`PASSWORD`], and returns the token.
    pub(crate) async fn token(&self, username: &str) -> String {
        let session = self.sign_in(username, PASSWORD).await.expect(200).json();
        session["accessToken"].as_str().expect("a token").to_owned()
    }
}

/// Returns the token of a user with these roles, as the issuer signs it.
pub(crate) fn forge(key: &SigningKey, id: i64, roles: &[&str]) -> String {
    let now = system_clock();
    let claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": id.to_string(), "client_id": "x", "iat": now,
        "exp": now + 60, "jti": "1", "roles": roles, "user_id": id});
    key.sign(&claims).expect("a key that signs")
}

/// Returns a token of order-service for this service.
pub(crate) fn order_service_token(key: &SigningKey) -> String {
    let now = system_clock();
    let name = ORDER_SERVICE;
    key.sign(&json!({"iss": name, "sub": name, "client_id": name, "aud": SERVICE, "iat": now, "exp": now + 60}))
        .expect("a key that signs")
}
