//! Faulty, slow or dead peers: the order fails with 503 within the timeout, and nothing is sold.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use order_service::store::MemoryStore;
use serde_json::{Value, json};
use testing::{Received, dead_peer};
use tokio::time::Instant;

use crate::fakes::{FAULTS, StubBehaviour};
use crate::support::{
    ANN, HOUR, LAPTOP, MEDIUM_TIMEOUT, PEN, PHONE, SHORT_TIMEOUT, Timeouts, World, client, eventually, id, order,
    placement, response_of, spawn, with_timeout,
};

/// For faults that need no call timeout: the order timeout ends the retries.
const LIMITED_RETRIES: Timeouts = Timeouts { call: HOUR, order: Duration::from_secs(5) };

#[track_caller]
fn expect_peer_problem(response: Received, peer: &str) {
    let problem = response.expect_problem(503, "peer-unavailable");
    assert_eq!(problem["error"], format!("{peer} does not answer"), "{problem}");
}

#[tokio::test]
async fn returns_503_and_sells_nothing_when_a_peer_is_faulty() {
    for fault in FAULTS {
        println!("product-service {fault:?}");
        let world = World::with(LIMITED_RETRIES).await;
        world.products.reserve.set(fault);
        let response = world.client.post("/orders", order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
        expect_peer_problem(response, "product-service");
        world.products.reserve.set(StubBehaviour::Normal);
        world.expect_nothing_sold().await;
        world.place(order(ANN, &[(LAPTOP, 50)])).await;
    }
    for fault in [StubBehaviour::ServerError, StubBehaviour::LostRequest] {
        println!("user-service {fault:?}");
        let world = World::with(LIMITED_RETRIES).await;
        world.users.read.set(fault);
        let response = world.client.post("/orders", order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
        expect_peer_problem(response, "user-service");
        world.users.read.set(StubBehaviour::Normal);
        world.expect_nothing_sold().await;
        world.place(order(ANN, &[(LAPTOP, 50)])).await;
    }
}

#[tokio::test]
async fn returns_503_when_both_peers_are_faulty() {
    for fault in [StubBehaviour::ServerError, StubBehaviour::LostRequest, StubBehaviour::LostResponse] {
        let world = World::with(LIMITED_RETRIES).await;
        world.users.read.set(StubBehaviour::ServerError);
        world.products.reserve.set(fault);
        world.client.post("/orders", order(ANN, &[(LAPTOP, 5)])).await.expect_problem(503, "peer-unavailable");
        world.expect_nothing_sold().await;
    }
}

#[tokio::test]
async fn treats_a_response_outside_the_contract_as_a_failure() {
    let world = World::with(LIMITED_RETRIES).await;
    let users = world.placement.peers()[0].base().clone();
    let line = json!({"productId": PEN, "name": "Pen", "price": 0.1, "quantity": 2});
    let taken = json!({"orderId": "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "lines": [line]});
    let with = |pointer: &str, value: Value| {
        let mut taken = taken.clone();
        *taken.pointer_mut(pointer).expect("a member") = value;
        taken.to_string()
    };
    let problem = |slug: &str, pointer: &str| {
        let errors = json!([{"pointer": pointer, "detail": "does not exist", "actual": 0}]);
        json!({"type": format!("urn:problem-type:{slug}"), "errors": errors}).to_string()
    };
    for (status, body, why) in [
        (200, String::new(), "an empty body"),
        (201, "{}".to_owned(), "no lines"),
        (201, with("/lines", json!([])), "no lines"),
        (201, with("/lines", json!([line, line])), "one line too many"),
        (201, with("/orderId", json!("x")), "an invalid id"),
        (201, with("/lines/0/productId", json!(PHONE)), "another product"),
        (201, with("/lines/0/quantity", json!(1)), "another quantity"),
        (201, with("/lines/0/name", json!("P\0n")), "a name with U+0000"),
        (201, with("/lines/0/price", json!(-1)), "a negative price"),
        (201, with("/lines/0/price", json!(0.001)), "a price with a tenth of a cent"),
        (202, taken.to_string(), "202 is no result"),
        (500, taken.to_string(), "a reservation with 500"),
        (204, String::new(), "no lines"),
        (302, String::new(), "a redirect"),
        (400, "User not found".to_owned(), "no problem+json"),
        (404, r#"{"error":"Not found"}"#.to_owned(), "no such route"),
        (404, "default backend - 404".to_owned(), "the page of a gateway"),
        (409, r#"{"type":"urn:problem-type:insufficient-stock"}"#.to_owned(), "a problem without errors"),
        (
            400,
            r#"{"type":"urn:problem-type:product-not-found","errors":[]}"#.to_owned(),
            "a problem that names no line",
        ),
        (400, problem("product-not-found", "/lines/1/productId"), "a line that the order does not have"),
        (404, problem("product-not-found", "/lines/0/productId"), "a problem with another status"),
        (503, problem("insufficient-stock", "/lines/0/quantity"), "a problem with another status"),
        (409, "{}".to_owned(), "no problem"),
        (429, String::new(), "rate limited"),
        (503, String::new(), "draining"),
    ] {
        println!("{status} {body}: {why}");
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let routes = axum::Router::new().fallback(async move || (status, body));
        let products = testing::stub_peer(routes).await;
        let client = client(placement(Arc::new(MemoryStore::default()), users.clone(), products, LIMITED_RETRIES));
        expect_peer_problem(client.post("/orders", order(ANN, &[(PEN, 2)])).await, "product-service");
        assert_eq!(client.get("/orders").await.expect(200).json(), json!([]));
    }
    let good = taken.to_string();
    let products = testing::stub_peer(axum::Router::new().fallback(async move || good)).await;
    let client = client(placement(Arc::new(MemoryStore::default()), users.clone(), products, LIMITED_RETRIES));
    client.post("/orders", order(ANN, &[(PEN, 2)])).await.expect(201); // the unchanged response is good
}

#[tokio::test]
async fn accepts_only_200_and_404_for_a_user() {
    let world = World::with(LIMITED_RETRIES).await;
    let products = world.placement.peers()[1].base();
    for status in [201, 204, 301, 400, 401, 403, 410, 429, 500, 502, 503] {
        println!("user-service responds with {status}");
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let routes = axum::Router::new().fallback(async move || (status, [("location", "/users/1")]));
        let users = testing::stub_peer(routes).await;
        let client = client(placement(Arc::new(MemoryStore::default()), users, products.clone(), LIMITED_RETRIES));
        expect_peer_problem(client.post("/orders", order(ANN, &[(PEN, 2)])).await, "user-service");
    }
    eventually("all units", async || world.products.stocks() == world.stocks).await;
}

/// A user does not exist if the body of the 404 is JSON, as in both tutorials. A gateway whose service is down answers
/// something else.
#[tokio::test]
async fn treats_a_404_without_json_as_an_outage() {
    let world = World::with(LIMITED_RETRIES).await;
    let products = world.placement.peers()[1].base();
    for (status, media_type, body, exists) in [
        (404, "application/json", r#"{"error":"User not found"}"#, Some(false)),
        (404, "Application/JSON; charset=utf-8", r#"{"message":"User not found"}"#, Some(false)),
        (404, "application/problem+json", r#"{"type":"urn:problem-type:not-found"}"#, Some(false)),
        (404, "text/plain", "default backend - 404", None),
        (404, "text/plain", r#"{"error":"User not found"}"#, None),
        (404, "text/html; charset=utf-8", "<html><h1>404 Not Found</h1></html>", None),
        (404, "application/json", "no Route matched", None),
        (404, "application/json", "", None),
        (404, "", "", None),
        (200, "text/html", "<html>", Some(true)),
        (200, "", "", Some(true)),
    ] {
        println!("user-service responds with {status} {media_type} {body}");
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let users = axum::Router::new().fallback(async move || (status, [("content-type", media_type)], body));
        let users = testing::stub_peer(users).await;
        let client = client(placement(Arc::new(MemoryStore::default()), users, products.clone(), LIMITED_RETRIES));
        let response = client.post("/orders", order(ANN, &[(PEN, 2)])).await;
        match exists {
            Some(true) => drop(response.expect(201)),
            Some(false) => drop(response.expect_problem(400, "user-not-found")),
            None => expect_peer_problem(response, "user-service"),
        }
    }
}

#[tokio::test]
async fn returns_503_when_a_peer_is_dead() {
    let world = World::with(LIMITED_RETRIES).await;
    let peers = world.placement.peers();
    let (users, products) = (peers[0].base(), peers[1].base());
    let dead = dead_peer().await;
    for (users, products, expected) in [(&dead, products, "user-service"), (users, &dead, "product-service")] {
        let client =
            client(placement(Arc::new(MemoryStore::default()), users.clone(), products.clone(), LIMITED_RETRIES));
        expect_peer_problem(client.post("/orders", order(ANN, &[(LAPTOP, 5)])).await, expected);
        assert_eq!(client.get("/orders").await.expect(200).json(), json!([]));
    }
    eventually("all units", async || world.products.stocks() == world.stocks).await;
}

#[tokio::test]
async fn returns_503_within_the_timeout_when_a_peer_hangs() {
    let hang = async |(timeouts, users_hang)| {
        let world = World::with(timeouts).await;
        let hanging = if users_hang { &world.users.read } else { &world.products.reserve };
        hanging.set(StubBehaviour::Hanging);
        let response = with_timeout("503", world.client.post("/orders", order(ANN, &[(LAPTOP, 5)]))).await;
        expect_peer_problem(response, if users_hang { "user-service" } else { "product-service" });
        assert_eq!(world.orders().await, [] as [Value; 0]);
        hanging.set(StubBehaviour::Normal);
        world.settle_with_another_replica().await;
        world.expect_nothing_sold().await;
    };
    let (of_a_call, of_an_order) =
        (Timeouts { call: MEDIUM_TIMEOUT, order: HOUR }, Timeouts { call: HOUR, order: MEDIUM_TIMEOUT });
    let cases = [(of_a_call, true), (of_a_call, false), (of_an_order, true), (of_an_order, false)];
    join_all(cases.map(hang)).await;
}

/// A client that waits exactly as long as an order may take still gets the answer. On a busy machine a try may take too long.
#[tokio::test]
async fn answers_before_the_time_limit_of_an_order() {
    let world = World::with(Timeouts { call: HOUR, order: MEDIUM_TIMEOUT }).await;
    world.users.read.set(StubBehaviour::Hanging);
    let in_time = async || {
        let began = Instant::now();
        expect_peer_problem(world.client.post("/orders", order(ANN, &[(LAPTOP, 5)])).await, "user-service");
        began.elapsed() < MEDIUM_TIMEOUT
    };
    eventually("an answer before the limit", in_time).await;
}

#[tokio::test]
async fn reserves_nothing_when_the_request_arrives_after_its_release() {
    // The timeout is long enough for the reservation request to be sent.
    let world = World::with(Timeouts { call: HOUR, order: MEDIUM_TIMEOUT }).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let response = with_timeout("503", world.client.post("/orders", order(ANN, &[(LAPTOP, 5)]))).await;
    expect_peer_problem(response, "product-service");
    world.products.release.wait_for_calls(1).await;
    world.wait_until_settled().await;
    assert_eq!(world.products.status(&world.last_reserved_id()), "released", "released before it was created");
    world.products.reserve.set(StubBehaviour::Normal);
    world.expect_nothing_sold().await;
}

/// The client may also retry immediately.
#[tokio::test]
async fn rejects_an_order_without_waiting_for_the_release() {
    let world = World::new().await;
    world.products.release.set(StubBehaviour::Hanging);
    let rejected = with_timeout("409", world.client.post("/orders", order(ANN, &[(LAPTOP, 51)]))).await;
    rejected.expect_problem(409, "insufficient-stock");
    world.place(order(ANN, &[(LAPTOP, 50)])).await;
    world.products.release.wait_for_calls(1).await;
    world.products.release.set(StubBehaviour::Normal);
    world.wait_until_settled().await;
    assert_eq!(world.products.stock(LAPTOP), 0);
}

#[tokio::test]
async fn serves_orders_while_both_peers_are_down() {
    let world = World::with(LIMITED_RETRIES).await;
    let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
    world.users.read.set(StubBehaviour::Hanging);
    world.products.reserve.set(StubBehaviour::Hanging);
    world.products.release.set(StubBehaviour::Hanging);
    assert_eq!(world.read(id(&placed)).await, placed);
    assert_eq!(world.orders().await, std::slice::from_ref(&placed));
    world.step(id(&placed), "confirmed").await.expect(200);
    let cancelled = world.step(id(&placed), "cancelled").await.expect(200).json();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(world.read(id(&placed)).await, cancelled);
}

#[tokio::test]
async fn returns_503_to_many_concurrent_orders_when_a_peer_hangs() {
    let world = World::with(Timeouts { call: SHORT_TIMEOUT, order: HOUR }).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..20).map(|_| spawn(world.post_order(&order(ANN, &[(LAPTOP, 1)])))).collect();
    for request in requests {
        expect_peer_problem(response_of(request).await, "product-service");
    }
    world.products.reserve.set(StubBehaviour::LostResponse);
    world.settle_with_another_replica().await;
    world.expect_nothing_sold().await;
}
