//! What the tests have in common: a shop, which is a product-service of its own, and words for what is done there.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chassis::config::{PeerSettings, Settings, defaults};
use product_service::peers::Users;
use product_service::store::{self, ProductStore};
use product_service::{AppState, app};
use serde_json::{Value, json};
use testing::{Client, Received};
pub(crate) use testing::{expect_bad, next_page};
use url::Url;

/// The first product of a shop that has just opened: 50 laptops at 999.99.
pub(crate) const LAPTOP: i64 = 1;
/// The second one: 100 phones at 599.
pub(crate) const PHONE: i64 = 2;
/// An id that no product has.
pub(crate) const NOTHING: i64 = 999;

/// Longer than any test takes, so that no time limit is met that a test does not set itself.
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
    /// As it opens for the first time, with laptops and phones.
    pub(crate) async fn open() -> Self {
        Self::over(store::memory(true).await.expect("a store in memory"))
    }

    /// With nothing in it.
    pub(crate) async fn empty() -> Self {
        Self::over(store::memory(false).await.expect("a store in memory"))
    }

    /// Over this store. Who asks it for users gets none.
    pub(crate) fn over(store: Arc<dyn ProductStore>) -> Self {
        let nowhere = Url::parse("http://user-service.invalid").expect("an address");
        Self::of(store, nowhere, &patience())
    }

    /// With user-service at this address.
    pub(crate) async fn beside(users: Url, peers: &PeerSettings) -> Self {
        Self::of(store::memory(true).await.expect("a store in memory"), users, peers)
    }

    fn of(store: Arc<dyn ProductStore>, users: Url, peers: &PeerSettings) -> Self {
        let users = Users::at(users, peers).expect("a client of user-service");
        let settings = Settings { request_timeout: MINUTE, body_timeout: MINUTE, ..defaults() };
        Self(Client::new(app(AppState::new(store, users), &settings)))
    }

    /// Adds a product that costs 10; its id.
    pub(crate) async fn add(&self, name: &str, stock: i64) -> i64 {
        let added = self.post("/products", json!({"name": name, "price": 10, "stock": stock})).await;
        added.expect(201).json()["id"].as_i64().expect("an id")
    }

    /// Sends a `POST` or `PUT` or `PATCH` whose body is this text, JSON or not.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<String>) -> Received {
        self.request(method, path).bytes("application/json", body.into()).send().await
    }

    /// A product as it stands.
    pub(crate) async fn product(&self, id: i64) -> Value {
        self.get(&format!("/products/{id}")).await.expect(200).json()
    }

    /// How many units are free to sell.
    pub(crate) async fn stock(&self, id: i64) -> i64 {
        self.product(id).await["stock"].as_i64().expect("a whole number")
    }

    /// All products as they stand, to see that nothing has changed.
    pub(crate) async fn inventory(&self) -> Value {
        self.get("/products?limit=1000").await.expect(200).json()
    }

    /// Takes so many units of these products for an order.
    pub(crate) async fn take(&self, order: &str, wanted: &[(i64, u32)]) -> Received {
        self.put(&format!("/reservations/{order}"), json!({"lines": lines(wanted)})).await
    }

    /// Gives back what was taken for an order.
    pub(crate) async fn release(&self, order: &str) -> Received {
        self.delete(&format!("/reservations/{order}")).await
    }

    /// What is said of the reservation of an order.
    pub(crate) async fn reservation(&self, order: &str) -> Received {
        self.get(&format!("/reservations/{order}")).await
    }

    /// Where the reservation of an order stands; empty if nobody has heard of it.
    pub(crate) async fn status(&self, order: &str) -> String {
        let answer = self.reservation(order).await;
        if answer.status == 404 {
            return String::new();
        }
        answer.expect(200).json()["status"].as_str().expect("a status").to_owned()
    }
}

/// Calls of a peer without any time limit that a test comes near.
pub(crate) fn patience() -> PeerSettings {
    PeerSettings { connect_timeout: MINUTE, timeout: MINUTE, ..defaults() }
}

/// The id of the `n`th order.
pub(crate) fn order(n: u128) -> String {
    uuid::Uuid::from_u128(n).hyphenated().to_string()
}

/// So many units of these products, as a take asks for them.
pub(crate) fn lines(wanted: &[(i64, u32)]) -> Value {
    wanted.iter().map(|(product, quantity)| json!({"productId": product, "quantity": quantity})).collect()
}

/// The ids of the products in a list.
pub(crate) fn ids(list: &Received) -> Vec<i64> {
    let rows = list.json().as_array().cloned().unwrap_or_else(|| panic!("no list: {list}"));
    rows.iter().map(|row| row["id"].as_i64().expect("an id")).collect()
}
