//! Conditional requests: `If-Match` and `If-None-Match`.

use serde_json::json;

use crate::status_steps::order_with_status;
use crate::support::{LAPTOP, World, id};

#[tokio::test]
async fn accepts_a_status_step_only_if_the_etag_matches() {
    let world = World::new().await;
    let placed = order_with_status(&world, "pending").await;
    let path = format!("/orders/{}", id(&placed));
    let first = world.client.get(&path).await.header("etag").to_owned();
    let patch = |tag: &str, status: &str| {
        world.client.request("PATCH", &path).header("if-match", tag).json(&json!({"status": status})).send()
    };
    let second = patch(&first, "confirmed").await.expect(200).header("etag").to_owned();
    assert_ne!(first, second);
    for stale in [&first, "\"other\"", "", &format!("W/{second}")] {
        for status in ["shipped", "cancelled", "pending"] {
            patch(stale, status).await.expect_problem(412, "precondition-failed");
        }
        assert_eq!(world.read(id(&placed)).await["status"], "confirmed");
    }
    patch(&second, "pending").await.expect_problem(409, "illegal-status-step");
    patch(&format!("\"other\", {second}"), "shipped").await.expect(200);
    patch("*", "delivered").await.expect(200);
    assert_eq!(world.products.stock(LAPTOP), 45);
}

#[tokio::test]
async fn returns_304_if_the_client_has_the_current_order() {
    let world = World::new().await;
    let placed = order_with_status(&world, "pending").await;
    for orders in ["/orders", "/api/orders"] {
        let path = format!("{orders}/{}", id(&placed));
        let tag = world.client.get(&path).await.header("etag").to_owned();
        let again = world.client.request("GET", &path).header("if-none-match", &tag).send().await.expect(304);
        assert!(again.body.is_empty() && again.header("etag") == tag, "{again}");
    }
    let path = format!("/orders/{}", id(&placed));
    let tag = world.client.get(&path).await.header("etag").to_owned();
    world.step(id(&placed), "confirmed").await.expect(200);
    let changed = world.client.request("GET", &path).header("if-none-match", &tag).send().await.expect(200);
    assert_eq!(changed.json()["status"], "confirmed");
}
