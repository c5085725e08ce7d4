//! A store that does not answer.

use serde_json::json;
use testing::eventually;

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
