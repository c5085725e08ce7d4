//! What one client sees when a service dies. No order is lost, and no stock stays taken.

use serde_json::json;
use system_tests::{Signal, System, eventually, order};

const LAPTOP: i64 = 1;

#[tokio::test]
async fn sells_nothing_without_user_service_and_serves_everything_else() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect(201);
    system.users.kill().await;

    system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect_problem(503, "peer-unavailable");
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "the rejected order took no stock");

    let read = system.orders.get(placed.header("location")).await.expect(200);
    assert_eq!(read.json(), placed.json());
    assert_eq!(system.orders.get("/orders").await.expect(200).json(), json!([placed.json()]));
    system.products.get("/products").await.expect(200);
    let passed_on = system.products.get("/users").await.expect_problem(503, "peer-unavailable");
    assert_eq!(passed_on["error"], "Error fetching users");

    let peers = json!({"user-service": "down", "product-service": "up"});
    let seen = async || system.orders.get("/readyz").await.expect(200).json()["peers"].take();
    assert_eq!(
        eventually(peers.clone(), seen).await,
        peers,
        "the outage of a peer is reported, and the service stays ready"
    );
}

#[tokio::test]
async fn rejects_new_orders_without_product_service_and_shows_old_ones() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect(201);
    system.products.kill().await;

    system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect_problem(503, "peer-unavailable");
    let listed = system.orders.get("/orders").await.expect(200);
    assert_eq!(listed.json(), json!([placed.json()]), "the rejected order is not listed");
}

#[tokio::test]
async fn releases_a_take_that_is_executed_late() {
    let system = System::start_as(|launch| launch.env("PEER_TIMEOUT_SECONDS", 0.5)).await.unwrap();
    system.products.signal(Signal::Freeze).await;
    system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect_problem(503, "peer-unavailable");

    system.products.signal(Signal::Thaw).await; // now it reads the take, although order-service has given up
    let released =
        async || system.products.log().iter().any(|line| line.contains(r#""method":"DELETE","route":"/reservations"#));
    assert!(eventually(true, released).await, "{:#?}", system.orders.log());
    assert_eq!(eventually(50, || system.stock(LAPTOP)).await, 50, "{:#?}", system.products.log());
}

#[tokio::test]
async fn places_orders_again_when_the_peers_are_back() {
    let mut system = System::start().await;
    system.users.kill().await;
    system.products.kill().await;
    system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect_problem(503, "peer-unavailable");

    system.users.restart().await;
    system.products.restart().await; // in memory, with fifty laptops
    let status = eventually(201, async || system.orders.post("/orders", order(1, LAPTOP, 1)).await.status).await;
    assert_eq!(status, 201, "{:#?}", system.orders.log());
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "only the order with 201 is sold");
}

#[tokio::test]
async fn releases_a_cancelled_order_after_an_outage_of_product_service() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect(201);
    let release = format!("/reservations/{}", placed.json()["id"].as_str().unwrap());
    system.products.kill().await;

    let cancelled = system.orders.patch(placed.header("location"), json!({"status": "cancelled"})).await.expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled", "clients see it immediately");

    system.products.restart().await; // it has lost the reservation, so it can only know it from the release
    let released = async || {
        let reservation = system.products.get(&release).await;
        reservation.status == 200 && reservation.json()["status"] == "released"
    };
    assert!(eventually(true, released).await, "{:#?}", system.orders.log());
}
