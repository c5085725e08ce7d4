//! What the tests have in common: a service to call, and words for what they do with it.

use std::sync::Arc;

use chassis::config::{Settings, defaults};
use serde_json::{Value, json};
use testing::{Client, Received, Sending};
pub(crate) use testing::{expect_bad, next_page};
use user_service::password::Hasher;
use user_service::store::UserStore;
use user_service::{AppState, app, store};

/// The settings of a service that is told none.
pub(crate) fn settings() -> Settings {
    defaults()
}

/// A service with an empty store.
pub(crate) async fn service() -> Client {
    service_with(&settings()).await
}

/// A service with an empty store and these settings.
pub(crate) async fn service_with(settings: &Settings) -> Client {
    service_over(store::memory(false).await.expect("a store in memory"), settings)
}

/// A service with John Doe and Jane Smith in its store.
pub(crate) async fn seeded() -> Client {
    service_over(store::memory(true).await.expect("a store in memory"), &settings())
}

/// One that takes as many passwords as a test has.
pub(crate) fn hasher() -> Hasher {
    Hasher::new(0, 1000)
}

/// A service over this store.
pub(crate) fn service_over(store: Arc<dyn UserStore>, settings: &Settings) -> Client {
    Client::new(app(AppState::new(store, hasher()), settings))
}

/// A new user of this name; what is answered.
pub(crate) async fn add(client: &Client, name: &str) -> Value {
    client.post("/users", json!({"name": name})).await.expect(201).json()
}

/// New users `1`, `2`, `3`, …
pub(crate) async fn add_many(client: &Client, count: usize) {
    for n in 1..=count {
        add(client, &n.to_string()).await;
    }
}

/// A new account with this username, and an e-mail made of it; what is answered.
pub(crate) async fn sign_up(client: &Client, username: &str) -> Value {
    let account = json!({"username": username, "email": format!("{username}@example.com")});
    client.post("/users", account).await.expect(201).json()
}

/// All users there are (up to the thousand of one page).
pub(crate) async fn everyone(client: &Client) -> Value {
    client.get("/users?limit=1000").await.expect(200).json()
}

/// The ids of the users in a list.
pub(crate) fn ids(list: &Value) -> Vec<i64> {
    let users = list.as_array().unwrap_or_else(|| panic!("no plain array: {list}"));
    users.iter().map(|user| user["id"].as_i64().expect("an integer")).collect()
}

/// Sends a request that is to be refused: afterwards every user is as before.
pub(crate) async fn refused(client: &Client, request: Sending) -> Received {
    let before = everyone(client).await;
    let received = request.send().await;
    assert!(received.status.is_client_error(), "{received}");
    assert_eq!(everyone(client).await, before, "something changed at {received}");
    received
}
