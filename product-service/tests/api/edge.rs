//! What holds for every route: both families of paths, wrong paths and methods, request ids, what every service has.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{LAPTOP, Shop, lines, order};

#[tokio::test]
async fn every_call_answers_at_the_root_and_under_api() {
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
            let shop = Shop::open().await;
            let request = shop.request(method, &format!("{family}{path}"));
            let request = if body.is_null() { request } else { request.json(&body) };
            request.send().await.expect(status);
        }
    }
}

#[tokio::test]
async fn a_method_that_is_not_allowed_is_told_which_are() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let reservation = format!("/reservations/{}", order(1));
    for (path, refused, allowed) in [
        ("/products", &["PUT", "PATCH", "DELETE"][..], &["GET", "HEAD", "POST"][..]),
        ("/products/1", &["POST", "PUT"], &["GET", "HEAD", "PATCH", "DELETE"]),
        ("/users", &["POST", "PUT", "PATCH", "DELETE"], &["GET", "HEAD"]),
        ("/reservations", &["GET", "PUT", "PATCH"], &["POST", "DELETE"]),
        (&reservation, &["POST", "PATCH"], &["GET", "HEAD", "PUT", "DELETE"]),
    ] {
        for (method, family) in refused.iter().flat_map(|method| [(method, ""), (method, "/api")]) {
            let answer = shop.request(method, &format!("{family}{path}")).json(&json!({"name": "x"})).send().await;
            let told: BTreeSet<&str> = answer.header("allow").split(',').map(str::trim).collect();
            assert_eq!(told, allowed.iter().copied().collect(), "{method} {path}: {answer}");
            answer.expect_problem(405, "method-not-allowed");
        }
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn what_has_no_address_is_not_found() {
    let shop = Shop::open().await;
    for path in
        ["/", "/api", "/product", "/products/", "/products/1/", "/products/1/stock", "/users/1", "/api/api/products"]
    {
        shop.get(path).await.expect_problem(404, "not-found");
    }
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let shop = Shop::open().await;
    for path in ["/products", "/products/1", "/products/x", "/users", "/nowhere"] {
        let answer = shop.request("GET", path).header("x-request-id", "abc-1").send().await;
        assert_eq!(answer.header("x-request-id"), "abc-1", "{answer}");
        assert_ne!(shop.get(path).await.header("x-request-id"), "", "{path}");
    }
}

#[tokio::test]
async fn it_has_the_addresses_that_every_service_has() {
    let shop = Shop::open().await;
    shop.get("/products/1").await.expect(200);
    assert_eq!(shop.get("/livez").await.expect(200).json(), json!({"status": "alive"}));
    assert!(shop.get("/metrics").await.expect(200).to_string().contains("/products/{id}"));
    shop.get("/docs/").await.expect(200);
}
