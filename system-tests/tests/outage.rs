//! What one customer sees when a process dies, and that nothing is lost or kept by it.

use serde_json::json;
use system_tests::{Signal, System, eventually, order};

const LAPTOP: i64 = 1;

#[tokio::test]
async fn without_user_service_nothing_is_sold_and_all_else_works() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect(201);
    system.users.kill().await;

    system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect_problem(503, "peer-unavailable");
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "the refused order took no stock");

    let read = system.orders.get(placed.header("location")).await.expect(200);
    assert_eq!(read.json(), placed.json());
    assert_eq!(system.orders.get("/orders").await.expect(200).json(), json!([placed.json()]));
    system.products.get("/products").await.expect(200);
    let passage = system.products.get("/users").await.expect_problem(503, "peer-unavailable");
    assert_eq!(passage["error"], "Error fetching users");

    let peers = json!({"user-service": "down", "product-service": "up"});
    let told = async || system.orders.get("/readyz").await.expect(200).json()["peers"].take();
    assert_eq!(eventually(peers.clone(), told).await, peers, "a peer's outage is told, and does not spread");
}

#[tokio::test]
async fn without_product_service_an_order_is_refused_and_can_still_be_read() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect(201);
    system.products.kill().await;

    system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect_problem(503, "peer-unavailable");
    let listed = system.orders.get("/orders").await.expect(200);
    assert_eq!(listed.json(), json!([placed.json()]), "and the refused order is not there");
}

#[tokio::test]
async fn a_take_that_is_carried_out_late_is_given_back() {
    let system = System::start_as(|launch| launch.env("PEER_TIMEOUT_SECONDS", 0.5)).await.unwrap();
    system.products.signal(Signal::Freeze).await;
    system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect_problem(503, "peer-unavailable");

    system.products.signal(Signal::Thaw).await; // now it reads the take that nobody waits for any more
    let released =
        async || system.products.log().iter().any(|line| line.contains(r#""method":"DELETE","route":"/reservations"#));
    assert!(eventually(true, released).await, "{:#?}", system.orders.log());
    assert_eq!(eventually(50, || system.stock(LAPTOP)).await, 50, "{:#?}", system.products.log());
}

#[tokio::test]
async fn orders_work_again_as_soon_as_the_peers_are_back() {
    let mut system = System::start().await;
    system.users.kill().await;
    system.products.kill().await;
    system.orders.post("/orders", order(1, LAPTOP, 1)).await.expect_problem(503, "peer-unavailable");

    system.users.restart().await;
    system.products.restart().await; // in memory, with the seed's fifty laptops
    let status = eventually(201, async || system.orders.post("/orders", order(1, LAPTOP, 1)).await.status).await;
    assert_eq!(status, 201, "{:#?}", system.orders.log());
    assert_eq!(eventually(49, || system.stock(LAPTOP)).await, 49, "only the order that was answered with 201 is sold");
}

#[tokio::test]
async fn a_cancellation_outlives_an_outage_of_product_service() {
    let mut system = System::start().await;
    let placed = system.orders.post("/orders", order(1, LAPTOP, 5)).await.expect(201);
    let release = format!("/reservations/{}", placed.json()["id"].as_str().unwrap());
    system.products.kill().await;

    let cancelled = system.orders.patch(placed.header("location"), json!({"status": "cancelled"})).await.expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled", "it reads so at once");

    system.products.restart().await; // which has forgotten the reservation, so the release is all it can know of it
    let released = async || {
        let reservation = system.products.get(&release).await;
        reservation.status == 200 && reservation.json()["status"] == "released"
    };
    assert!(eventually(true, released).await, "{:#?}", system.orders.log());
}
