//! What the tests share: a shop, which is a client of a product-service of its own, and helpers for its requests.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chassis::auth::Authenticator;
use chassis::config::{PeerSettings, Settings, defaults};
use product_service::peers::Users;
use product_service::store::{self, ProductStore};
use product_service::{AppState, SERVICE, app};
use serde_json::{Value, json};
use testing::{Client, Received, TestIssuer};
pub(crate) use testing::{expect_bad, next_page};
use url::Url;

/// The first product of a seeded shop: 50 laptops at 999.99.
pub(crate) const LAPTOP: i64 = 1;
/// The second one: 100 phones at 599.
pub(crate) const PHONE: i64 = 2;
/// An id that no product has.
pub(crate) const UNKNOWN: i64 = 999;

/// Longer than any test takes, so that no test meets a time limit that it does not set.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A client of a product-service of its own.
#[derive(Clone)]
pub(crate) struct Shop(Client);

impl Deref for Shop {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl Shop {
    /// Returns a shop with laptops and phones.
    pub(crate) async fn seeded() -> Self {
        Self::with_store(store::memory(true).await.expect("a store in memory"))
    }

    /// Returns a shop without products.
    pub(crate) async fn empty() -> Self {
        Self::with_store(store::memory(false).await.expect("a store in memory"))
    }

    /// Returns a shop over this store. Its user-service does not exist.
    pub(crate) fn with_store(store: Arc<dyn ProductStore>) -> Self {
        let nowhere = Url::parse("http://user-service.invalid").expect("an address");
        Self::new(store, nowhere, &generous_timeouts(), None)
    }

    /// Returns a seeded shop with user-service at this address.
    pub(crate) async fn with_users(users: Url, peers: &PeerSettings) -> Self {
        Self::new(store::memory(true).await.expect("a store in memory"), users, peers, None)
    }

    /// Returns a seeded shop with sign-in on and user-service at this address.
    pub(crate) async fn with_sign_in(issuer: &TestIssuer, users: Url) -> Self {
        let store = store::memory(true).await.expect("a store in memory");
        Self::new(store, users, &generous_timeouts(), issuer.authenticator(SERVICE, true))
    }

    fn new(
        store: Arc<dyn ProductStore>,
        users: Url,
        peers: &PeerSettings,
        authenticator: Option<Authenticator>,
    ) -> Self {
        let users = Users::new(users, peers).expect("a client of user-service");
        let settings = Settings { request_timeout: MINUTE, body_timeout: MINUTE, ..defaults() };
        Self(Client::new(app(AppState::new(store, users).with_sign_in(authenticator), &settings)))
    }

    /// Adds a product that costs 10, and returns its id.
    pub(crate) async fn add(&self, name: &str, stock: i64) -> i64 {
        let added = self.post("/products", json!({"name": name, "price": 10, "stock": stock})).await;
        added.expect(201).json()["id"].as_i64().expect("an id")
    }

    /// Sends a `POST`, `PUT` or `PATCH` with this text as its body, which need not be JSON.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<String>) -> Received {
        self.request(method, path).bytes("application/json", body.into()).send().await
    }

    /// Returns a product.
    pub(crate) async fn product(&self, id: i64) -> Value {
        self.get(&format!("/products/{id}")).await.expect(200).json()
    }

    /// Returns how many units of a product are free to sell.
    pub(crate) async fn stock(&self, id: i64) -> i64 {
        self.product(id).await["stock"].as_i64().expect("a whole number")
    }

    /// Returns all products. A test compares them to see that nothing has changed.
    pub(crate) async fn inventory(&self) -> Value {
        self.get("/products?limit=1000").await.expect(200).json()
    }

    /// Reserves units of these products for an order.
    pub(crate) async fn reserve(&self, order: &str, wanted: &[(i64, u32)]) -> Received {
        self.put(&format!("/reservations/{order}"), json!({"lines": lines(wanted)})).await
    }

    /// Releases the reservation of an order.
    pub(crate) async fn release(&self, order: &str) -> Received {
        self.delete(&format!("/reservations/{order}")).await
    }

    /// Reads the reservation of an order.
    pub(crate) async fn reservation(&self, order: &str) -> Received {
        self.get(&format!("/reservations/{order}")).await
    }

    /// Returns the status of the reservation of an order; empty if there is no reservation.
    pub(crate) async fn status(&self, order: &str) -> String {
        let response = self.reservation(order).await;
        if response.status == 404 {
            return String::new();
        }
        response.expect(200).json()["status"].as_str().expect("a status").to_owned()
    }
}

/// Returns settings with time limits that no test reaches.
pub(crate) fn generous_timeouts() -> PeerSettings {
    PeerSettings { connect_timeout: MINUTE, timeout: MINUTE, ..defaults() }
}

/// Returns the id of the `n`th order.
pub(crate) fn order(n: u128) -> String {
    uuid::Uuid::from_u128(n).hyphenated().to_string()
}

/// Returns the lines of a request to reserve: products and quantities.
pub(crate) fn lines(wanted: &[(i64, u32)]) -> Value {
    wanted.iter().map(|(product, quantity)| json!({"productId": product, "quantity": quantity})).collect()
}

/// Returns the ids of the products in a list.
pub(crate) fn ids(list: &Received) -> Vec<i64> {
    let rows = list.json().as_array().cloned().unwrap_or_else(|| panic!("not a list: {list}"));
    rows.iter().map(|row| row["id"].as_i64().expect("an id")).collect()
}
