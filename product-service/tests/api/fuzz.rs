//! Random requests. None of them gets a 5xx.

use axum::Router;
use axum::routing::get;
use testing::{Language, fuzz, stub_peer};

use crate::support::{Shop, generous_timeouts};

const LANGUAGE: Language = Language {
    calls: &[
        "GET /products",
        "POST /products",
        "GET /products/*",
        "PATCH /products/*",
        "DELETE /products/*",
        "GET /users",
        "POST /reservations",
        "DELETE /reservations",
        "PUT /reservations/00000000-0000-7000-8000-000000000001",
        "PUT /reservations/00000000-0000-7000-8000-000000000002",
        "PUT /reservations/00000000-0000-7000-8000-000000000003",
        "GET /reservations/00000000-0000-7000-8000-000000000002",
        "DELETE /reservations/00000000-0000-7000-8000-000000000003",
    ],
    queries: &[
        "limit=2",
        "after=1",
        "ids=1,2,3",
        "name=a",
        "limit=1000&after=0",
        "ids=00000000-0000-7000-8000-000000000003,00000000-0000-7000-8000-000000000004",
    ],
    bodies: &[
        r#"{"name":"Pen","price":0.1,"stock":3}"#,
        r#"{"name":"Ink"}"#,
        r#"{"price":1000000.00,"stock":1000000000000}"#,
        r#"{"id":7,"name":"\u0041nvil","price":"1","stock":null,"more":[1,{"deep":[]}]}"#,
        r#"{"lines":[{"productId":1,"quantity":1}]}"#,
        r#"{"lines":[{"productId":"2","quantity":10000},{"productId":1,"quantity":2}]}"#,
        r#"[{"orderId":"00000000-0000-7000-8000-000000000004","lines":[{"productId":2,"quantity":1}]}]"#,
        r#"[{"orderId":"00000000-0000-7000-8000-000000000005","lines":[{"productId":9,"quantity":1}]},{"orderId":1}]"#,
    ],
};

#[tokio::test]
async fn never_returns_a_5xx_for_a_random_request() {
    let users = Router::new().route("/users", get(async || axum::Json([serde_json::json!({"id": 1})])));
    let shop = Shop::with_users(stub_peer(users).await, &generous_timeouts()).await;
    let reached = [200, 201, 204, 304, 400, 404, 405, 409, 412, 413, 415, 431];
    fuzz("product-service", &shop, LANGUAGE, 34_000, &reached).await;
}
