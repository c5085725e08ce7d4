//! Random requests.

use testing::{Language, fuzz};

use crate::support::World;

const LANGUAGE: Language = Language {
    calls: &[
        "GET /orders",
        "POST /orders",
        "POST /orders",
        "GET /orders/*",
        "GET /orders/*",
        "PATCH /orders/*",
        "PATCH /orders/*",
        "PATCH /orders/*",
        "PATCH /orders/*",
        "PATCH /orders/*",
    ],
    queries: &[
        "limit=2",
        "after=00000000-0000-7000-8000-000000000003",
        "userId=1",
        "status=pending",
        "limit=1000&userId=2&status=cancelled",
    ],
    bodies: &[
        r#"{"userId":1,"products":[{"productId":1,"quantity":1}]}"#,
        r#"{"userId":"2","products":[{"productId":3,"quantity":2},{"productId":2,"quantity":1,"price":599.00}]}"#,
        r#"{"userId":9,"products":[{"productId":3,"quantity":1,"price":0.11}],"more":[1,{"deep":[]}]}"#,
        r#"{"userId":1,"products":[{"productId":9,"quantity":10000}]}"#,
        r#"{"status":"confirmed"}"#,
        r#"{"status":"shipped"}"#,
        r#"{"status":"delivered"}"#,
        r#"{"status":"cancelled"}"#,
    ],
};

#[tokio::test]
async fn returns_no_5xx_to_random_requests() {
    let world = World::new().await;
    let reached = [200, 201, 304, 400, 404, 405, 409, 412, 413, 415, 422, 431];
    fuzz("order-service", &world.client, LANGUAGE, 34_000, &reached).await;
    world.wait_until_settled().await;
}
