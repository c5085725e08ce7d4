//! Unknown paths and wrong methods.

use serde_json::json;

use crate::support::{ANN, PEN, World, id, order};

#[tokio::test]
async fn rejects_a_wrong_method_and_names_the_allowed_ones() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    let one = format!("/orders/{}", id(&placed));
    for (path, allowed) in [("/orders", ["GET", "HEAD", "POST"]), (one.as_str(), ["GET", "HEAD", "PATCH"])] {
        for path in [path.to_owned(), format!("/api{path}")] {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
                if allowed.contains(&method) {
                    continue;
                }
                let response = world.client.request(method, &path).json(&json!({"status": "cancelled"})).send().await;
                let mut named: Vec<&str> = response.header("allow").split(',').map(str::trim).collect();
                named.sort_unstable();
                assert_eq!(named, allowed, "{method} {path}");
                response.expect_problem(405, "method-not-allowed");
            }
        }
    }
    assert_eq!(world.orders().await, [placed]);
}

#[tokio::test]
async fn returns_404_for_an_unknown_path() {
    let world = World::new().await;
    for path in
        ["/api", "/api/", "/order", "/orders/", "/Orders", "/api/api/orders", "/users", "/products", "/reservations"]
    {
        world.client.get(path).await.expect_problem(404, "not-found");
    }
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    world.client.get(&format!("/orders/{}/products", id(&placed))).await.expect_problem(404, "not-found");
}
