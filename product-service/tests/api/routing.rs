//! All routes: both path prefixes, unknown paths and methods, request ids, and the routes that every service has.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{LAPTOP, Shop, lines, order};

#[tokio::test]
async fn serves_every_route_at_the_root_and_under_api() {
    let reservation = format!("/reservations/{}", order(1));
    let lines = lines(&[(LAPTOP, 1)]);
    for (method, path, body, status) in [
        ("GET", "/products", json!(null), 200),
        ("POST", "/products", json!({"name": "Lamp"}), 201),
        ("GET", "/products/1", json!(null), 200),
        ("PATCH", "/products/1", json!({"stock": 5}), 200),
        ("DELETE", "/products/2", json!(null), 204),
        ("GET", "/users", json!(null), 503),
        ("PUT", &reservation, json!({"lines": lines}), 201),
        ("GET", &reservation, json!(null), 404),
        ("DELETE", &reservation, json!(null), 204),
        ("POST", "/reservations", json!([{"orderId": order(2), "lines": lines}]), 200),
        ("DELETE", &format!("/reservations?ids={}", order(2)), json!(null), 204),
    ] {
        for family in ["", "/api"] {
            let shop = Shop::seeded().await;
            let request = shop.request(method, &format!("{family}{path}"));
            let request = if body.is_null() { request } else { request.json(&body) };
            request.send().await.expect(status);
        }
    }
}

#[tokio::test]
async fn lists_the_allowed_methods_in_a_405() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let reservation = format!("/reservations/{}", order(1));
    for (path, rejected, allowed) in [
        ("/products", &["PUT", "PATCH", "DELETE"][..], &["GET", "HEAD", "POST"][..]),
        ("/products/1", &["POST", "PUT"], &["GET", "HEAD", "PATCH", "DELETE"]),
        ("/users", &["POST", "PUT", "PATCH", "DELETE"], &["GET", "HEAD"]),
        ("/reservations", &["GET", "PUT", "PATCH"], &["POST", "DELETE"]),
        (&reservation, &["POST", "PATCH"], &["GET", "HEAD", "PUT", "DELETE"]),
    ] {
        for (method, family) in rejected.iter().flat_map(|method| [(method, ""), (method, "/api")]) {
            let response = shop.request(method, &format!("{family}{path}")).json(&json!({"name": "x"})).send().await;
            let listed: BTreeSet<&str> = response.header("allow").split(',').map(str::trim).collect();
            assert_eq!(listed, allowed.iter().copied().collect(), "{method} {path}: {response}");
            response.expect_problem(405, "method-not-allowed");
        }
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn returns_404_for_an_unknown_path() {
    let shop = Shop::seeded().await;
    for path in
        ["/", "/api", "/product", "/products/", "/products/1/", "/products/1/stock", "/users/1", "/api/api/products"]
    {
        shop.get(path).await.expect_problem(404, "not-found");
    }
}

#[tokio::test]
async fn returns_the_request_id_in_every_response() {
    let shop = Shop::seeded().await;
    for path in ["/products", "/products/1", "/products/x", "/users", "/nowhere"] {
        let response = shop.request("GET", path).header("x-request-id", "abc-1").send().await;
        assert_eq!(response.header("x-request-id"), "abc-1", "{response}");
        assert_ne!(shop.get(path).await.header("x-request-id"), "", "{path}");
    }
}

#[tokio::test]
async fn serves_health_metrics_and_docs() {
    let shop = Shop::seeded().await;
    shop.get("/products/1").await.expect(200);
    assert_eq!(shop.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    assert!(shop.get("/metrics").await.expect(200).to_string().contains("/products/{id}"));
    shop.get("/docs/").await.expect(200);
}
