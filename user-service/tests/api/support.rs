//! Helpers for all tests: services to call, and common requests.

use std::sync::Arc;

use chassis::config::{Settings, defaults};
use serde_json::{Value, json};
use testing::{Client, Received, Sending};
pub(crate) use testing::{expect_bad, next_page};
use user_service::password::Hasher;
use user_service::store::UserStore;
use user_service::{AppState, app, store};

/// Returns the default settings.
pub(crate) fn settings() -> Settings {
    defaults()
}

/// Returns a client of a service with an empty store.
pub(crate) async fn service() -> Client {
    service_with(&settings()).await
}

/// Returns a client of a service with an empty store and these settings.
pub(crate) async fn service_with(settings: &Settings) -> Client {
    service_over(store::memory(false).await.expect("a store in memory"), settings)
}

/// Returns a client of a service with John Doe (1) and Jane Smith (2) in its store.
pub(crate) async fn seeded() -> Client {
    service_over(store::memory(true).await.expect("a store in memory"), &settings())
}

/// Returns a hasher whose queue is long enough for every test.
pub(crate) fn hasher() -> Hasher {
    Hasher::new(0, 1000)
}

/// Returns a client of a service over this store.
pub(crate) fn service_over(store: Arc<dyn UserStore>, settings: &Settings) -> Client {
    Client::new(app(AppState::new(store, hasher()), settings))
}

/// Adds a user with this name and returns the response.
pub(crate) async fn add(client: &Client, name: &str) -> Value {
    client.post("/users", json!({"name": name})).await.expect(201).json()
}

/// Adds users with the names `1`, `2`, `3`, …
pub(crate) async fn add_many(client: &Client, count: usize) {
    for n in 1..=count {
        add(client, &n.to_string()).await;
    }
}

/// Adds an account with this username and an e-mail made from it, and returns the response.
pub(crate) async fn sign_up(client: &Client, username: &str) -> Value {
    let account = json!({"username": username, "email": format!("{username}@example.com")});
    client.post("/users", account).await.expect(201).json()
}

/// Returns all users, at most 1,000.
pub(crate) async fn all_users(client: &Client) -> Value {
    client.get("/users?limit=1000").await.expect(200).json()
}

/// Returns the ids of the users in a list.
pub(crate) fn ids(list: &Value) -> Vec<i64> {
    let users = list.as_array().unwrap_or_else(|| panic!("not an array: {list}"));
    users.iter().map(|user| user["id"].as_i64().expect("an integer")).collect()
}

/// Sends a request that must be rejected with a 4xx and must not change any user.
pub(crate) async fn expect_rejected(client: &Client, request: Sending) -> Received {
    let before = all_users(client).await;
    let received = request.send().await;
    assert!(received.status.is_client_error(), "{received}");
    assert_eq!(all_users(client).await, before, "a user changed: {received}");
    received
}
