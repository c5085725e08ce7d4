//! Orders that are rejected although all services work: the client learns why, and nothing is sold.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fakes::{FAULTS, StubBehaviour};
use crate::support::{
    ANN, HOUR, LAPTOP, MEDIUM_TIMEOUT, PEN, PHONE, Timeouts, UNKNOWN_PRODUCT, UNKNOWN_USER, World, id, order,
    response_of, spawn,
};

/// Checks `(pointer, actual)` of each error.
#[track_caller]
fn expect_errors(problem: &Value, expected: &[(&str, Value)]) {
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {problem}"));
    let actual: Vec<(&str, Value)> =
        errors.iter().map(|error| (error["pointer"].as_str().expect("a pointer"), error["actual"].clone())).collect();
    assert_eq!(actual, expected, "{problem}");
    assert!(errors.iter().all(|error| error["detail"].is_string()), "{problem}");
}

#[tokio::test]
async fn rejects_an_unknown_user_with_the_message_of_the_tutorial() {
    let world = World::new().await;
    for path in ["/orders", "/api/orders"] {
        let rejected = world.client.post(path, order(UNKNOWN_USER, &[(LAPTOP, 1)])).await;
        let problem = rejected.expect_problem(400, "user-not-found");
        assert_eq!(problem["error"], "User not found");
        expect_errors(&problem, &[("/userId", Value::Null)]);
        world.expect_nothing_sold().await;
    }
    assert_eq!(world.products.reserve.calls().len(), 2, "the stock was reserved concurrently, and released");
}

#[tokio::test]
async fn names_each_unknown_product() {
    let world = World::new().await;
    let rejected =
        world.client.post("/orders", order(ANN, &[(PEN, 1), (UNKNOWN_PRODUCT, 1), (PHONE, 1), (405, 1)])).await;
    let problem = rejected.expect_problem(400, "product-not-found");
    expect_errors(&problem, &[("/products/1/productId", Value::Null), ("/products/3/productId", Value::Null)]);
    world.expect_nothing_sold().await;
}

#[tokio::test]
async fn reports_the_units_left_for_each_short_line() {
    let world = World::new().await;
    let rejected = world.client.post("/orders", order(ANN, &[(LAPTOP, 51), (PEN, 5), (PHONE, 10_000)])).await;
    let problem = rejected.expect_problem(409, "insufficient-stock");
    expect_errors(&problem, &[("/products/0/quantity", json!(50)), ("/products/2/quantity", json!(100))]);
    world.expect_nothing_sold().await;

    world.place(order(ANN, &[(LAPTOP, 50)])).await;
    let rejected = world.client.post("/orders", order(ANN, &[(LAPTOP, 1)])).await;
    let problem = rejected.expect_problem(409, "insufficient-stock");
    expect_errors(&problem, &[("/products/0/quantity", json!(0))]);
}

#[tokio::test]
async fn rejects_a_wrong_price_and_reports_the_real_one() {
    let world = World::new().await;
    for (laptop, phone, expected) in [
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
        let rejected = world.client.post("/orders", json!({"userId": ANN, "products": lines})).await;
        expect_errors(&rejected.expect_problem(409, "price-changed"), &expected);
        world.expect_nothing_sold().await;
    }
    let with_price =
        |cents: f64| json!({"userId": ANN, "products": [{"productId": PHONE, "quantity": 1, "price": cents}]});
    world.place(with_price(599.0)).await;
    world.products.set_product(PHONE, "Phone", 60_100, 100);
    let rejected = world.client.post("/orders", with_price(599.0)).await;
    expect_errors(&rejected.expect_problem(409, "price-changed"), &[("/products/0/price", json!(601))]);
    world.place(with_price(601.0)).await;
}

/// A retry cannot cure such an error, so it is more useful to the client than a 503.
#[tokio::test]
async fn reports_a_permanent_error_rather_than_a_faulty_peer() {
    let short = order(ANN, &[(LAPTOP, 51)]);
    let unknown = order(ANN, &[(UNKNOWN_PRODUCT, 1)]);
    let wrong_price = json!({"userId": ANN, "products": [{"productId": PEN, "quantity": 1, "price": 99}]});
    for fault in [StubBehaviour::ServerError, StubBehaviour::LostRequest] {
        for (order, status, slug) in [
            (&short, 409, "insufficient-stock"),
            (&unknown, 400, "product-not-found"),
            (&wrong_price, 409, "price-changed"),
        ] {
            println!("{slug} and user-service {fault:?}");
            let world = World::with(Timeouts { call: HOUR, order: Duration::from_secs(5) }).await;
            world.users.read.set(fault);
            world.client.post("/orders", order.clone()).await.expect_problem(status, slug);
            world.expect_nothing_sold().await;
        }
    }
    for fault in FAULTS {
        println!("an unknown user and product-service {fault:?}");
        let world = World::with(Timeouts { call: HOUR, order: Duration::from_secs(5) }).await;
        world.products.reserve.set(fault);
        world.client.post("/orders", order(UNKNOWN_USER, &[(PEN, 1)])).await.expect_problem(400, "user-not-found");
        world.expect_nothing_sold().await;
    }
}

#[tokio::test]
async fn reports_a_permanent_error_while_the_other_peer_hangs() {
    let timeouts = Timeouts { call: HOUR, order: MEDIUM_TIMEOUT };
    let world = World::with(timeouts).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let unknown_user = spawn(world.post_order(&order(UNKNOWN_USER, &[(PEN, 1)])));
    let other = World::with(timeouts).await;
    other.users.read.set(StubBehaviour::Hanging);
    let too_many = spawn(other.post_order(&order(ANN, &[(LAPTOP, 51)])));
    response_of(unknown_user).await.expect_problem(400, "user-not-found");
    response_of(too_many).await.expect_problem(409, "insufficient-stock");
    world.products.reserve.set(StubBehaviour::Normal); // the reservation is late
    world.expect_nothing_sold().await;
    other.expect_nothing_sold().await;
}

#[tokio::test]
async fn reserves_nothing_for_a_late_duplicate_of_a_rejected_reservation() {
    let world = World::new().await;
    let wanted = json!({"lines": [{"productId": LAPTOP, "quantity": 51}]});
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect_problem(409, "insufficient-stock");
    world.expect_nothing_sold().await;
    world.products.set_product(LAPTOP, "Laptop", 99_999, 1000);
    let (status, problem) = world.products.put_reservation(&world.last_reserved_id(), &wanted);
    assert_eq!((status, &problem["type"]), (409, &json!("urn:problem-type:reservation-released")));
    assert_eq!(world.products.stock(LAPTOP), 1000);
}

#[tokio::test]
async fn rejects_an_order_without_affecting_others() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 49)])).await;
    for _ in 0..3 {
        world.client.post("/orders", order(ANN, &[(LAPTOP, 2)])).await.expect_problem(409, "insufficient-stock");
        world.client.post("/orders", order(UNKNOWN_USER, &[(LAPTOP, 1)])).await.expect_problem(400, "user-not-found");
        world.wait_until_settled().await;
    }
    assert_eq!(world.orders().await, std::slice::from_ref(&placed));
    assert_eq!((world.products.status(id(&placed)), world.products.stock(LAPTOP)), ("taken", 1));
}
