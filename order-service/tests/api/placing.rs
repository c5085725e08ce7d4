//! `POST /orders` when all services work.

use proptest::prelude::*;
use proptest::test_runner::Config;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::Money;
use testing::Received;
use tokio::runtime;
use uuid::Uuid;

use crate::fakes::{StubBehaviour, TOO_LARGE, money};
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, PEN, PHONE, Timeouts, World, client, id, order, placement, response_of, spawn,
};

#[tokio::test]
async fn returns_the_whole_order_and_its_location() {
    let world = World::new().await;
    for (orders, number) in [("/orders", 1), ("/api/orders", 2)] {
        let placed = world.client.post(orders, order(BOB, &[(PHONE, 2), (LAPTOP, 1)])).await.expect(201);
        let json = placed.json();
        assert_eq!(placed.header("location"), format!("{orders}/{}", id(&json)));
        assert_eq!(placed.header("content-type"), "application/json");
        assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
        let expected = json!({
            "id": json["id"],
            "userId": BOB,
            "products": [
                {"productId": PHONE, "name": "Phone", "quantity": 2, "price": 599},
                {"productId": LAPTOP, "name": "Laptop", "quantity": 1, "price": 999.99},
            ],
            "total": 2197.99,
            "status": "pending",
            "createdAt": json["createdAt"],
        });
        assert_eq!(json, expected);
        let read = world.client.get(placed.header("location")).await.expect(200);
        assert_eq!((read.json(), read.header("etag")), (json, placed.header("etag")));
        assert!(placed.header("etag").starts_with('"'), "{placed}");
        assert_eq!((world.products.stock(PHONE), world.products.stock(LAPTOP)), (100 - 2 * number, 50 - number));
    }
    assert_eq!(world.orders().await.len(), 2);
}

#[tokio::test]
async fn keeps_exactly_one_reservation_for_an_order() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PEN, 10_000), (PHONE, 3)])).await;
    world.wait_until_settled().await;
    let reservations = world.products.reservations();
    assert_eq!(reservations.keys().collect::<Vec<_>>(), [id(&placed)]);
    assert_eq!(reservations[id(&placed)].status, "taken");
    assert_eq!(reservations[id(&placed)].units, [(PEN, 10_000), (PHONE, 3)]);
    assert!(world.products.release.calls().is_empty());
}

#[tokio::test]
async fn assigns_increasing_uuids_of_version_7() {
    let world = World::new().await;
    let (mut last, before) = (Uuid::nil(), jiff::Timestamp::now().as_millisecond());
    for _ in 0..20 {
        let placed = world.place(order(ANN, &[(PEN, 1)])).await;
        let uuid = Uuid::parse_str(id(&placed)).unwrap();
        assert_eq!((uuid.get_version_num(), uuid.hyphenated().to_string().as_str()), (7, id(&placed)));
        let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
        let made = i64::try_from(seconds).unwrap() * 1000 + i64::from(nanos) / 1_000_000;
        assert!((before..=jiff::Timestamp::now().as_millisecond()).contains(&made), "{uuid} has another time");
        assert!(uuid > last, "{uuid} is not after {last}");
        last = uuid;
    }
}

#[tokio::test]
async fn returns_the_time_in_utc_and_rfc_3339() {
    let world = World::new().await;
    let before = jiff::Timestamp::now();
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    let created_at = placed["createdAt"].as_str().unwrap();
    assert!(created_at.contains('T') && created_at.ends_with('Z'), "{created_at}");
    let time: jiff::Timestamp = created_at.parse().unwrap();
    let tolerance = jiff::SignedDuration::from_micros(1); // the service rounds to microseconds
    assert!((before - tolerance..=jiff::Timestamp::now() + tolerance).contains(&time), "{created_at}");
}

#[tokio::test]
async fn accepts_ids_as_strings_and_returns_integers() {
    let world = World::new().await;
    let placed = world.place(json!({"userId": "2", "products": [{"productId": "3", "quantity": 4}]})).await;
    assert_eq!((&placed["userId"], &placed["products"][0]["productId"]), (&json!(2), &json!(3)));
    assert_eq!(world.products.stock(PEN), 20_000 - 4);
}

#[tokio::test]
async fn ignores_members_that_clients_may_not_set() {
    let world = World::new().await;
    let body = json!({
        "id": "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b",
        "_id": {"$oid": [null]},
        "userId": ANN,
        "products": [{"productId": LAPTOP, "quantity": 2, "name": "Rubbish", "total": 0.01, "stock": -1}],
        "total": 0.01,
        "status": "delivered",
        "createdAt": "1999-12-31T23:59:59Z",
        "color": null,
    });
    let placed = world.place(body).await;
    assert_ne!(placed["id"], "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b");
    assert_eq!(placed["products"], json!([{"productId": LAPTOP, "name": "Laptop", "quantity": 2, "price": 999.99}]));
    assert_eq!((&placed["total"], &placed["status"]), (&json!(1999.98), &json!("pending")));
    assert!(!placed["createdAt"].as_str().unwrap().starts_with("1999"), "{placed}");
    assert_eq!(placed.as_object().unwrap().len(), 6, "{placed}");
}

#[tokio::test]
async fn accepts_every_notation_of_the_right_price() {
    let world = World::new().await;
    for price in ["599", "599.0", "599.00", "5.99e2", "null"] {
        let body = format!(r#"{{"userId":1,"products":[{{"productId":2,"quantity":1,"price":{price}}}]}}"#);
        let request = world.client.request("POST", "/orders").bytes("application/json", body);
        assert_eq!(request.send().await.expect(201).json()["total"], 599, "{price}");
    }
}

#[tokio::test]
async fn keeps_the_names_and_prices_at_the_time_of_the_order() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PHONE, 2)])).await;
    world.products.set_product(PHONE, "Old phone", 1, 7);
    assert_eq!(world.read(id(&placed)).await, placed);
    assert_eq!(world.orders().await, [placed]);
    let later = world.place(order(ANN, &[(PHONE, 2)])).await;
    assert_eq!(later["products"], json!([{"productId": PHONE, "name": "Old phone", "quantity": 2, "price": 0.01}]));
}

#[tokio::test]
async fn hides_an_order_until_it_is_placed() {
    let world = World::new().await;
    for hanging in [&world.users.read, &world.products.reserve] {
        let before = world.orders().await;
        hanging.set(StubBehaviour::Hanging);
        let calls = world.products.reserve.calls().len();
        let placing = spawn(world.post_order(&order(ANN, &[(PEN, 1)])));
        world.products.reserve.wait_for_calls(calls + 1).await;
        let own = world.last_reserved_id();
        assert_eq!(world.orders().await, before);
        assert_eq!(world.client.get("/orders?userId=1&status=pending").await.expect(200).json(), json!(before));
        for path in ["/orders", "/api/orders"] {
            world.client.get(&format!("{path}/{own}")).await.expect_problem(404, "not-found");
            let change = world.client.patch(&format!("{path}/{own}"), json!({"status": "cancelled"})).await;
            change.expect_problem(404, "not-found");
        }
        hanging.set(StubBehaviour::Normal);
        let placed = response_of(placing).await.expect(201).json();
        assert_eq!(id(&placed), own);
        assert_eq!(world.orders().await.last(), Some(&placed));
    }
}

#[tokio::test]
async fn calls_both_peers_concurrently() {
    let world = World::new().await;
    world.users.read.set(StubBehaviour::Hanging);
    world.products.reserve.set(StubBehaviour::Hanging);
    let placing = spawn(world.post_order(&order(ANN, &[(PEN, 1)])));
    world.users.read.wait_for_calls(1).await;
    world.products.reserve.wait_for_calls(1).await;
    world.users.read.set(StubBehaviour::Normal);
    world.products.reserve.set(StubBehaviour::Normal);
    response_of(placing).await.expect(201);
}

#[tokio::test]
async fn ignores_the_body_of_a_200_for_a_user() {
    let world = World::new().await;
    world.users.read.set(StubBehaviour::Garbage);
    world.place(order(ANN, &[(PEN, 1)])).await;
    for body in ["", "null", "{}", "[]", "{\"error\":\"User not found\"}", "<html>", "\u{0}"] {
        let users = testing::stub_peer(axum::Router::new().fallback(async move || body)).await;
        let products = world.placement.peers()[1].base().clone();
        let timeouts = Timeouts { call: HOUR, order: HOUR };
        let client = client(placement(order_service::store::memory(), users, products, timeouts));
        client.post("/orders", order(ANN, &[(PEN, 1)])).await.expect(201);
    }
}

#[tokio::test]
async fn keeps_the_path_of_a_peer_url() {
    let world = World::new().await;
    let peers = world.placement.peers();
    let (users, products) = (peers[0].base(), peers[1].base());
    for (base, expected) in [("", "/users/1"), ("/api/v2", "/api/v2/users/1"), ("/api/v2/", "/api/v2/users/1")] {
        let timeouts = Timeouts { call: HOUR, order: HOUR };
        let users = users.join(base).unwrap();
        let client = client(placement(order_service::store::memory(), users, products.clone(), timeouts));
        client.post("/orders", order(ANN, &[(PEN, 1)])).await.expect(201);
        assert_eq!(world.users.read.calls().pop().unwrap().path, expected);
    }
}

#[tokio::test]
async fn forwards_request_id_and_traceparent_to_the_peers() {
    let world = World::new().await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = world.post_order(&order(ANN, &[(PEN, 1)])).header("x-request-id", "abc-1");
    let placed = request.header("traceparent", traceparent).send().await.expect(201);
    assert_eq!(placed.header("x-request-id"), "abc-1");
    for call in [world.users.read.calls().pop().unwrap(), world.products.reserve.calls().pop().unwrap()] {
        assert_eq!(
            (&call.headers["x-request-id"], &call.headers["traceparent"]),
            (&"abc-1".parse().unwrap(), &traceparent.parse().unwrap()),
            "{call:?}"
        );
    }
}

#[tokio::test]
async fn accepts_the_largest_possible_total() {
    let most = [(100_000_000, 10_000); 100];
    assert_eq!(total_of(&most).await, "1000000000000");
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, ..Config::default() })]

    /// The total in the response has exactly the digits of the sum of price times quantity.
    #[test]
    fn computes_the_total_exactly_to_the_cent(lines in prop::collection::vec((0..=100_000_000_i64, 1..=10_000_i64), 1..=100)) {
        let cents: i128 = lines.iter().map(|(cents, quantity)| i128::from(*cents) * i128::from(*quantity)).sum();
        let decimal = format!("{}.{:02}", cents / 100, cents % 100);
        let shortest = decimal.trim_end_matches('0').trim_end_matches('.');
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        prop_assert_eq!(runtime.block_on(total_of(&lines)), shortest);
    }
}

/// Places an order with these `(cents, quantity)` lines and returns the digits of its total.
async fn total_of(lines: &[(i64, i64)]) -> String {
    let world = World::new().await;
    let wanted: Vec<(i64, i64)> = (1000..).zip(lines).map(|(product, (_, quantity))| (product, *quantity)).collect();
    for ((product, _), (cents, _)) in wanted.iter().zip(lines) {
        world.products.set_product(*product, "Thing", *cents, 10_000);
    }
    let placed = world.client.post("/orders", order(ANN, &wanted)).await.expect(201);
    assert!(placed.body.len() < TOO_LARGE);
    check_lines(&placed, lines);
    let read = world.client.get(placed.header("location")).await;
    assert_eq!(digits(&read), digits(&placed));
    digits(&placed)
}

/// Checks that each line has the price of its product.
fn check_lines(placed: &Received, lines: &[(i64, i64)]) {
    let json = placed.json();
    let shown = json["products"].as_array().expect("lines");
    assert_eq!(shown.len(), lines.len());
    for (line, (cents, quantity)) in shown.iter().zip(lines) {
        let price: Money = serde_json::from_value(line["price"].clone()).expect("an amount");
        assert_eq!((price.cents(), line["quantity"].as_i64()), (*cents, Some(*quantity)), "{line}");
        assert_eq!(line["price"].as_f64(), money(*cents).as_f64(), "{line}");
    }
}

/// Returns the digits of the total in a response.
fn digits(order: &Received) -> String {
    #[derive(Deserialize)]
    struct Total<'a> {
        #[serde(borrow)]
        total: &'a RawValue,
    }
    let order: Total<'_> = serde_json::from_slice(&order.body).expect("an order");
    order.total.get().to_owned()
}

#[tokio::test]
async fn sells_each_unit_once_to_concurrent_orders() {
    let world = World::new().await;
    let requests: Vec<_> =
        (0..70).map(|n| spawn(world.post_order(&order(1 + n % 2, &[(LAPTOP, 1), (PEN, 2)])))).collect();
    let mut placed = Vec::new();
    for request in requests {
        let response = response_of(request).await;
        match response.status.as_u16() {
            201 => placed.push(id(&response.json()).to_owned()),
            _ => drop(response.expect_problem(409, "insufficient-stock")),
        }
    }
    placed.sort();
    let orders = world.orders().await;
    let shown: Vec<&str> = orders.iter().map(|order: &Value| id(order)).collect();
    assert_eq!(shown, placed);
    assert_eq!(placed.len(), 50, "as many as the stock");
    world.wait_until_settled().await;
    assert_eq!((world.products.stock(LAPTOP), world.products.stock(PEN)), (0, 20_000 - 2 * 50));
}
