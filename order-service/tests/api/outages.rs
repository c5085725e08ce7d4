//! Peers that are away, slow or out of their minds: 503 within the deadline, and nothing is sold.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use order_service::store::MemoryStore;
use serde_json::{Value, json};
use testing::{Received, dead_peer};

use crate::fakes::{FAULTS, StubBehaviour};
use crate::support::{
    ANN, ENOUGH, HOUR, LAPTOP, Limits, PEN, PHONE, SOON, World, answer, begin, client, eventually, id, order,
    placement, with_timeout,
};

/// For calls that fail by themselves: more time than that takes, and an end to trying again.
const PATIENT: Limits = Limits { call: HOUR, order: Duration::from_secs(5) };

#[track_caller]
fn expect_peer_problem(answer: Received, peer: &str) {
    let problem = answer.expect_problem(503, "peer-unavailable");
    assert_eq!(problem["error"], format!("{peer} does not answer"), "{problem}");
}

#[tokio::test]
async fn a_fault_of_either_peer_is_503_and_nothing_is_sold() {
    for fault in FAULTS {
        println!("product-service {fault:?}");
        let world = World::with(PATIENT).await;
        world.shop.takes.is(fault);
        let answer = world.client.post("/orders", order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
        expect_peer_problem(answer, "product-service");
        world.shop.takes.is(StubBehaviour::Well);
        world.nothing_happened().await;
        world.place(order(ANN, &[(LAPTOP, 50)])).await;
    }
    for fault in [StubBehaviour::Broken, StubBehaviour::LosingCalls] {
        println!("user-service {fault:?}");
        let world = World::with(PATIENT).await;
        world.people.reads.is(fault);
        let answer = world.client.post("/orders", order(ANN, &[(LAPTOP, 5), (PEN, 1)])).await;
        expect_peer_problem(answer, "user-service");
        world.people.reads.is(StubBehaviour::Well);
        world.nothing_happened().await;
        world.place(order(ANN, &[(LAPTOP, 50)])).await;
    }
}

#[tokio::test]
async fn both_peers_at_fault_are_503_too() {
    for fault in [StubBehaviour::Broken, StubBehaviour::LosingCalls, StubBehaviour::LosingAnswers] {
        let world = World::with(PATIENT).await;
        world.people.reads.is(StubBehaviour::Broken);
        world.shop.takes.is(fault);
        world.client.post("/orders", order(ANN, &[(LAPTOP, 5)])).await.expect_problem(503, "peer-unavailable");
        world.nothing_happened().await;
    }
}

/// The wire's other words that mean neither yes nor no.
#[tokio::test]
async fn an_answer_that_the_contract_does_not_have_is_none() {
    let world = World::with(PATIENT).await;
    let users = world.placement.peers()[0].base().clone();
    let line = json!({"productId": PEN, "name": "Pen", "price": 0.1, "quantity": 2});
    let taken = json!({"orderId": "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "lines": [line]});
    let with = |pointer: &str, value: Value| {
        let mut taken = taken.clone();
        *taken.pointer_mut(pointer).expect("a member") = value;
        taken.to_string()
    };
    for (status, body, why) in [
        (200, String::new(), "nothing"),
        (201, "{}".to_owned(), "no lines"),
        (201, with("/lines", json!([])), "no lines"),
        (201, with("/lines", json!([line, line])), "a line too many"),
        (201, with("/orderId", json!("x")), "an id that is none"),
        (201, with("/lines/0/productId", json!(PHONE)), "another product"),
        (201, with("/lines/0/quantity", json!(1)), "another quantity"),
        (201, with("/lines/0/name", json!("P\0n")), "a name that no database takes"),
        (201, with("/lines/0/price", json!(-1)), "a price that is none"),
        (201, with("/lines/0/price", json!(0.001)), "a price that is none"),
        (202, taken.to_string(), "perhaps"),
        (500, taken.to_string(), "yes and no"),
        (204, String::new(), "yes to what?"),
        (302, String::new(), "elsewhere"),
        (400, "User not found".to_owned(), "no problem+json"),
        (404, r#"{"error":"Not found"}"#.to_owned(), "there is no such route"),
        (409, r#"{"type":"urn:problem-type:insufficient-stock"}"#.to_owned(), "half a problem"),
        (409, "{}".to_owned(), "no problem"),
        (429, String::new(), "not now"),
        (503, String::new(), "draining"),
    ] {
        println!("{status} {body}: {why}");
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let routes = axum::Router::new().fallback(async move || (status, body));
        let products = testing::stub_peer(routes).await;
        let client = client(placement(Arc::new(MemoryStore::default()), users.clone(), products, PATIENT));
        expect_peer_problem(client.post("/orders", order(ANN, &[(PEN, 2)])).await, "product-service");
        assert_eq!(client.get("/orders").await.expect(200).json(), json!([]));
    }
    let good = taken.to_string();
    let products = testing::stub_peer(axum::Router::new().fallback(async move || good)).await;
    let client = client(placement(Arc::new(MemoryStore::default()), users.clone(), products, PATIENT));
    client.post("/orders", order(ANN, &[(PEN, 2)])).await.expect(201); // so the rows say what they seem to say
}

#[tokio::test]
async fn a_user_exists_or_not_by_200_and_404_and_nothing_else() {
    let world = World::with(PATIENT).await;
    let products = world.placement.peers()[1].base();
    for status in [201, 204, 301, 400, 401, 403, 410, 429, 500, 502, 503] {
        println!("user-service answers {status}");
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let routes = axum::Router::new().fallback(async move || (status, [("location", "/users/1")]));
        let users = testing::stub_peer(routes).await;
        let client = client(placement(Arc::new(MemoryStore::default()), users, products.clone(), PATIENT));
        expect_peer_problem(client.post("/orders", order(ANN, &[(PEN, 2)])).await, "user-service");
    }
    eventually("all units", async || world.shop.stocks() == world.stocks).await;
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_503() {
    let world = World::with(PATIENT).await;
    let peers = world.placement.peers();
    let (users, products) = (peers[0].base(), peers[1].base());
    let dead = dead_peer().await;
    for (users, products, to_blame) in [(&dead, products, "user-service"), (users, &dead, "product-service")] {
        let client = client(placement(Arc::new(MemoryStore::default()), users.clone(), products.clone(), PATIENT));
        expect_peer_problem(client.post("/orders", order(ANN, &[(LAPTOP, 5)])).await, to_blame);
        assert_eq!(client.get("/orders").await.expect(200).json(), json!([]));
    }
    eventually("all units", async || world.shop.stocks() == world.stocks).await;
}

#[tokio::test]
async fn a_peer_that_hangs_is_503_within_the_time_of_a_call_or_of_an_order() {
    let hang = async |(limits, users_hang)| {
        let world = World::with(limits).await;
        let hanging = if users_hang { &world.people.reads } else { &world.shop.takes };
        hanging.is(StubBehaviour::Hanging);
        let answer = with_timeout("503", world.client.post("/orders", order(ANN, &[(LAPTOP, 5)]))).await;
        expect_peer_problem(answer, if users_hang { "user-service" } else { "product-service" });
        assert_eq!(world.orders().await, [] as [Value; 0]);
        hanging.is(StubBehaviour::Well);
        world.at_rest_with_help().await;
        world.nothing_happened().await;
    };
    let (of_a_call, of_an_order) = (Limits { call: ENOUGH, order: HOUR }, Limits { call: HOUR, order: ENOUGH });
    let cases = [(of_a_call, true), (of_a_call, false), (of_an_order, true), (of_an_order, false)];
    join_all(cases.map(hang)).await;
}

#[tokio::test]
async fn a_take_that_comes_after_its_release_takes_nothing() {
    let world = World::with(Limits { call: HOUR, order: ENOUGH }).await; // for the take to be sent
    world.shop.takes.is(StubBehaviour::Hanging);
    let answer = with_timeout("503", world.client.post("/orders", order(ANN, &[(LAPTOP, 5)]))).await;
    expect_peer_problem(answer, "product-service");
    world.shop.releases.called(1).await;
    world.at_rest().await;
    assert_eq!(world.shop.status(&world.last_taken()), "released", "before anything was taken");
    world.shop.takes.is(StubBehaviour::Well);
    world.nothing_happened().await;
}

/// Not in the client's way: the answer does not wait for the release, and a client may try again at once.
#[tokio::test]
async fn a_refusal_does_not_wait_for_the_release() {
    let world = World::new().await;
    world.shop.releases.is(StubBehaviour::Hanging);
    let refused = with_timeout("409", world.client.post("/orders", order(ANN, &[(LAPTOP, 51)]))).await;
    refused.expect_problem(409, "insufficient-stock");
    world.place(order(ANN, &[(LAPTOP, 50)])).await;
    world.shop.releases.called(1).await;
    world.shop.releases.is(StubBehaviour::Well);
    world.at_rest().await;
    assert_eq!(world.shop.stock(LAPTOP), 0);
}

#[tokio::test]
async fn orders_are_read_though_both_peers_are_away() {
    let world = World::with(PATIENT).await;
    let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
    world.people.reads.is(StubBehaviour::Hanging);
    world.shop.takes.is(StubBehaviour::Hanging);
    world.shop.releases.is(StubBehaviour::Hanging);
    assert_eq!(world.read(id(&placed)).await, placed);
    assert_eq!(world.orders().await, std::slice::from_ref(&placed));
    world.step(id(&placed), "confirmed").await.expect(200);
    let cancelled = world.step(id(&placed), "cancelled").await.expect(200).json();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(world.read(id(&placed)).await, cancelled);
}

#[tokio::test]
async fn a_peer_that_hangs_for_many_at_once_is_503_for_each_and_nothing_is_sold() {
    let world = World::with(Limits { call: SOON, order: HOUR }).await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..20).map(|_| begin(world.posting(&order(ANN, &[(LAPTOP, 1)])))).collect();
    for request in requests {
        expect_peer_problem(answer(request).await, "product-service");
    }
    world.shop.takes.is(StubBehaviour::LosingAnswers);
    world.at_rest_with_help().await;
    world.nothing_happened().await;
}
