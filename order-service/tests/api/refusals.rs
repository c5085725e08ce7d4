//! Orders that cannot be placed, though all three services are well: each is told what holds, and nothing comes of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fakes::{FAULTS, StubBehaviour};
use crate::support::{ANN, ENOUGH, HOUR, LAPTOP, Limits, NOBODY, NOTHING, PEN, PHONE, World, answer, begin, id, order};

/// Checks what is blamed: `(pointer, actual)` of each error.
#[track_caller]
fn expect_blamed(problem: &Value, blamed: &[(&str, Value)]) {
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {problem}"));
    let told: Vec<(&str, Value)> =
        errors.iter().map(|error| (error["pointer"].as_str().expect("a pointer"), error["actual"].clone())).collect();
    assert_eq!(told, blamed, "{problem}");
    assert!(errors.iter().all(|error| error["detail"].is_string()), "{problem}");
}

#[tokio::test]
async fn an_unknown_user_is_told_in_the_tutorials_words() {
    let world = World::new().await;
    for path in ["/orders", "/api/orders"] {
        let refused = world.client.post(path, order(NOBODY, &[(LAPTOP, 1)])).await;
        let problem = refused.expect_problem(400, "user-not-found");
        assert_eq!(problem["error"], "User not found");
        expect_blamed(&problem, &[("/userId", Value::Null)]);
        world.nothing_happened().await;
    }
    assert_eq!(world.shop.takes.calls().len(), 2, "and what was taken meanwhile was released");
}

#[tokio::test]
async fn each_unknown_product_is_blamed() {
    let world = World::new().await;
    let refused = world.client.post("/orders", order(ANN, &[(PEN, 1), (NOTHING, 1), (PHONE, 1), (405, 1)])).await;
    let problem = refused.expect_problem(400, "product-not-found");
    expect_blamed(&problem, &[("/products/1/productId", Value::Null), ("/products/3/productId", Value::Null)]);
    world.nothing_happened().await;
}

#[tokio::test]
async fn each_short_line_is_told_what_is_left() {
    let world = World::new().await;
    let refused = world.client.post("/orders", order(ANN, &[(LAPTOP, 51), (PEN, 5), (PHONE, 10_000)])).await;
    let problem = refused.expect_problem(409, "insufficient-stock");
    expect_blamed(&problem, &[("/products/0/quantity", json!(50)), ("/products/2/quantity", json!(100))]);
    world.nothing_happened().await;

    world.place(order(ANN, &[(LAPTOP, 50)])).await;
    let refused = world.client.post("/orders", order(ANN, &[(LAPTOP, 1)])).await;
    let problem = refused.expect_problem(409, "insufficient-stock");
    expect_blamed(&problem, &[("/products/0/quantity", json!(0))]);
}

#[tokio::test]
async fn a_price_that_does_not_hold_is_answered_with_the_one_that_does() {
    let world = World::new().await;
    for (laptop, phone, blamed) in [
        (json!(999.98), json!(599), vec![("/products/0/price", json!(999.99))]),
        (json!(0), json!(null), vec![("/products/0/price", json!(999.99))]),
        (json!(999.99), json!(9_999_999_999_999.99), vec![("/products/2/price", json!(599))]),
        (json!(1000), json!(598.99), vec![("/products/0/price", json!(999.99)), ("/products/2/price", json!(599))]),
    ] {
        let lines = json!([
            {"productId": LAPTOP, "quantity": 1, "price": laptop},
            {"productId": PEN, "quantity": 1},
            {"productId": PHONE, "quantity": 2, "price": phone},
        ]);
        let refused = world.client.post("/orders", json!({"userId": ANN, "products": lines})).await;
        expect_blamed(&refused.expect_problem(409, "price-changed"), &blamed);
        world.nothing_happened().await;
    }
    let believing =
        |cents: f64| json!({"userId": ANN, "products": [{"productId": PHONE, "quantity": 1, "price": cents}]});
    world.place(believing(599.0)).await;
    world.shop.offer(PHONE, "Phone", 60_100, 100);
    let refused = world.client.post("/orders", believing(599.0)).await;
    expect_blamed(&refused.expect_problem(409, "price-changed"), &[("/products/0/price", json!(601))]);
    world.place(believing(601.0)).await;
}

/// Of several reasons, one that is certain is told rather than a peer that does not answer: asking again is no use.
#[tokio::test]
async fn what_is_certainly_wrong_is_told_whatever_else_fails() {
    let short = order(ANN, &[(LAPTOP, 51)]);
    let unknown = order(ANN, &[(NOTHING, 1)]);
    let believed = json!({"userId": ANN, "products": [{"productId": PEN, "quantity": 1, "price": 99}]});
    for fault in [StubBehaviour::Broken, StubBehaviour::LosingCalls] {
        for (order, status, slug) in [
            (&short, 409, "insufficient-stock"),
            (&unknown, 400, "product-not-found"),
            (&believed, 409, "price-changed"),
        ] {
            println!("{slug} and user-service {fault:?}");
            let world = World::with(Limits { call: HOUR, order: Duration::from_secs(5) }).await;
            world.people.reads.is(fault);
            world.client.post("/orders", order.clone()).await.expect_problem(status, slug);
            world.nothing_happened().await;
        }
    }
    for fault in FAULTS {
        println!("an unknown user and product-service {fault:?}");
        let world = World::with(Limits { call: HOUR, order: Duration::from_secs(5) }).await;
        world.shop.takes.is(fault);
        world.client.post("/orders", order(NOBODY, &[(PEN, 1)])).await.expect_problem(400, "user-not-found");
        world.nothing_happened().await;
    }
}

#[tokio::test]
async fn what_is_certainly_wrong_is_told_though_the_other_peer_hangs() {
    let limits = Limits { call: HOUR, order: ENOUGH };
    let world = World::with(limits).await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let unknown_user = begin(world.posting(&order(NOBODY, &[(PEN, 1)])));
    let other = World::with(limits).await;
    other.people.reads.is(StubBehaviour::Hanging);
    let too_many = begin(other.posting(&order(ANN, &[(LAPTOP, 51)])));
    answer(unknown_user).await.expect_problem(400, "user-not-found");
    answer(too_many).await.expect_problem(409, "insufficient-stock");
    world.shop.takes.is(StubBehaviour::Well); // the take is late
    world.nothing_happened().await;
    other.nothing_happened().await;
}

#[tokio::test]
async fn a_duplicate_of_a_refused_take_that_comes_late_takes_nothing() {
    let world = World::new().await;
    let wanted = json!({"lines": [{"productId": LAPTOP, "quantity": 51}]});
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect_problem(409, "insufficient-stock");
    world.nothing_happened().await;
    world.shop.offer(LAPTOP, "Laptop", 99_999, 1000);
    let (status, problem) = world.shop.take(&world.last_taken(), &wanted);
    assert_eq!((status, &problem["type"]), (409, &json!("urn:problem-type:reservation-released")));
    assert_eq!(world.shop.stock(LAPTOP), 1000);
}

#[tokio::test]
async fn one_refused_order_does_not_touch_another() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 49)])).await;
    for _ in 0..3 {
        world.client.post("/orders", order(ANN, &[(LAPTOP, 2)])).await.expect_problem(409, "insufficient-stock");
        world.client.post("/orders", order(NOBODY, &[(LAPTOP, 1)])).await.expect_problem(400, "user-not-found");
        world.at_rest().await;
    }
    assert_eq!(world.orders().await, std::slice::from_ref(&placed));
    assert_eq!((world.shop.status(id(&placed)), world.shop.stock(LAPTOP)), ("taken", 1));
}
