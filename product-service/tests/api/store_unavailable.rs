//! A store that does not answer.

use std::sync::Arc;

use product_service::store::PostgresStore;
use serde_json::json;
use testing::{eventually, postgres};

use crate::fakes::{CAUSE, FaultyStore};
use crate::support::{LAPTOP, Shop, lines, order};

#[tokio::test]
async fn returns_503_and_changes_nothing_when_the_store_is_unavailable() {
    let store = FaultyStore::open().await;
    let shop = Shop::with_store(store.clone());
    let inventory = shop.inventory().await;
    let reservation = format!("/reservations/{}", order(1));
    let lines = lines(&[(LAPTOP, 1)]);
    store.set_unavailable(true);
    for (method, path, body) in [
        ("GET", "/products", json!(null)),
        ("GET", "/products?name=lap", json!(null)),
        ("GET", "/products?ids=1", json!(null)),
        ("POST", "/products", json!({"name": "Lamp"})),
        ("GET", "/products/1", json!(null)),
        ("PATCH", "/products/1", json!({"stock": 5})),
        ("DELETE", "/products/1", json!(null)),
        ("PUT", &reservation, json!({"lines": lines})),
        ("GET", &reservation, json!(null)),
        ("DELETE", &reservation, json!(null)),
        ("POST", "/reservations", json!([{"orderId": order(1), "lines": lines}])),
        ("DELETE", &format!("/reservations?ids={}", order(1)), json!(null)),
        ("GET", "/readyz", json!(null)),
    ] {
        let response = shop.request(method, path).json(&body).send().await;
        assert!(!response.to_string().contains(CAUSE), "the cause is only for the log: {response}");
        response.expect_problem(503, "store-unavailable");
    }
    shop.get("/livez").await.expect(200);
    store.set_unavailable(false);
    assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory, String::new()));
    eventually("readiness", async || shop.get("/readyz").await.status == 200).await;
}

/// The service cannot know the outcome, so the client gets `timed-out`. A second try could add a product twice or return a 404.
#[tokio::test]
async fn makes_a_change_once_when_its_response_is_lost() {
    let Some(database) = postgres::database().await else { return };
    let (database, wire) = postgres::behind_a_faulty_connection(&database).await;
    let store = PostgresStore::open(&database, &postgres::generous_timeouts()).await.unwrap();
    let shop = Shop::with_store(Arc::new(store));
    let lamp = format!("/products/{}", shop.add("Lamp", 5).await);
    for (method, path) in [("POST", "/products"), ("PATCH", &lamp), ("DELETE", &lamp)] {
        wire.lose_an_answer();
        let change = shop.request(method, path).json(&json!({"name": "Desk"})).send().await;
        change.expect_problem(503, "timed-out");
        assert!(wire.has_lost_it(), "{method}");
    }
    let products = shop.get("/products").await.expect(200).json();
    assert!(products.as_array().is_some_and(|products| products.len() == 1 && products[0]["id"] == 2), "{products}");
}
