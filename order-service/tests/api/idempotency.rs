//! `Idempotency-Key`: a repeated request does not place a second order.

use serde_json::{Value, json};

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, PEN, PHONE, Timeouts, UNKNOWN_USER, World, eventually, expect_in_progress, id, order,
    response_of, spawn, with_timeout,
};

#[tokio::test]
async fn returns_the_same_order_for_the_same_key_and_body() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.post_with_key("k", &wanted).send().await.expect(201);
    assert!(!first.headers.contains_key("idempotent-replayed"), "{first}");
    for orders in ["/orders", "/api/orders"] {
        let again = world.client.request("POST", orders).json(&wanted).header("idempotency-key", "k").send().await;
        let again = again.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true", "{again}");
        assert_eq!((again.json(), again.header("etag")), (first.json(), first.header("etag")));
        assert_eq!(again.header("location"), format!("{orders}/{}", id(&first.json())));
    }
    assert_eq!(world.orders().await, [first.json()]);
    assert_eq!(world.products.stock(LAPTOP), 49);
    assert_eq!(world.products.reservations().len(), 1);
}

#[tokio::test]
async fn replays_an_order_without_calling_peers() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.post_with_key("k", &wanted).send().await.expect(201);
    world.users.read.set(StubBehaviour::Hanging);
    world.products.reserve.set(StubBehaviour::Hanging);
    let again = with_timeout("the replay", world.post_with_key("k", &wanted).send()).await.expect(201);
    assert_eq!(again.json(), first.json());
}

#[tokio::test]
async fn places_an_order_per_request_without_a_key() {
    let world = World::new().await;
    for number in 1..=3 {
        let placed = world.post_order(&order(ANN, &[(LAPTOP, 1)])).send().await.expect(201);
        assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
        assert_eq!((world.orders().await.len(), world.products.stock(LAPTOP)), (number, 50 - number as i64));
    }
}

/// With a key the whole body is fingerprinted; that must not reject members that are otherwise ignored.
#[tokio::test]
async fn accepts_any_json_in_ignored_members() {
    let world = World::new().await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for (n, odd) in ["1e999", r#""\ud800""#, deep.as_str()].into_iter().enumerate() {
        let body = format!(r#"{{"userId":1,"products":[{{"productId":2,"quantity":1}}],"x":{odd}}}"#);
        let send = async || {
            let request = world.client.request("POST", "/orders").header("idempotency-key", &format!("k{n}"));
            request.bytes("application/json", body.clone()).send().await.expect(201)
        };
        let (first, again) = (send().await, send().await);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()), "{odd}");
    }
}

#[tokio::test]
async fn rejects_a_reused_key_unless_the_bodies_are_equal_json() {
    let world = World::new().await;
    let send = async |body: &str| {
        let request = world.client.request("POST", "/orders").header("idempotency-key", "k");
        request.bytes("application/json", body.to_owned()).send().await
    };
    let first = send(
        r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}],"note":"ä"}"#,
    )
    .await
    .expect(201);
    for same in [
        r#" { "userId" : 1 , "products" : [ {"productId":2,"quantity":3,"price":599}, {"productId":3,"quantity":1}],"note":"ä"} "#,
        r#"{"note":"ä","products":[{"price":599,"quantity":3,"productId":2},{"quantity":1,"productId":3}],"userId":1}"#,
        r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599.0},{"productId":3,"quantity":1}],"note":"ä"}"#,
        r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":5.99e2},{"productId":3,"quantity":1}],"note":"\u00e4"}"#,
        "{\"userId\":1,\r\n\"products\":[{\"productId\":2,\"quantity\":3,\"pr\\u0069ce\":599},\n\t{\"productId\":3,\"quantity\":1}],\"note\":\"ä\"}",
    ] {
        let again = send(same).await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()), "{same}");
    }
    for (other, why) in [
        (
            r#"{"userId":2,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "another user",
        ),
        (
            r#"{"userId":"1","products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "a string instead of a number",
        ),
        (
            r#"{"userId":1,"products":[{"productId":3,"quantity":1},{"productId":2,"quantity":3,"price":599}],"note":"ä"}"#,
            "another order of lines",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":4,"price":599},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "one more unit",
        ),
        (r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599}],"note":"ä"}"#, "one line fewer"),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}]}"#,
            "one member fewer, although ignored",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}],"note":"Ä"}"#,
            "another note",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "no expected price",
        ),
        (r#"{"userId":1,"products":[{"productId":404,"quantity":3}]}"#, "an order that would be rejected"),
    ] {
        println!("{other}: {why}");
        send(other).await.expect_problem(422, "idempotency-key-reused");
    }
    assert_eq!(world.orders().await, [first.json()]);
    assert_eq!((world.products.stock(PHONE), world.products.stock(PEN)), (97, 20_000 - 1));
    assert_eq!(world.products.reservations().len(), 1);
}

#[tokio::test]
async fn ignores_quotes_around_a_key() {
    let world = World::new().await;
    let wanted = order(ANN, &[(PEN, 1)]);
    let first = world.post_with_key("\"k\"", &wanted).send().await.expect(201);
    let again = world.post_with_key("k", &wanted).send().await.expect(201);
    assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()));
    for other in ["K", "\"\"k\"\"", "k\"", "'k'", "kk"] {
        let another = world.post_with_key(other, &wanted).send().await.expect(201);
        assert!(!another.headers.contains_key("idempotent-replayed"), "{other}: {another}");
    }
}

#[tokio::test]
async fn returns_409_while_the_first_request_is_running() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for (hanging, key) in [(&world.users.read, "a"), (&world.products.reserve, "b")] {
        let before = world.products.reserve.calls().len();
        hanging.set(StubBehaviour::Hanging);
        let first = spawn(world.post_with_key(key, &wanted));
        world.products.reserve.wait_for_calls(before + 1).await;
        for _ in 0..3 {
            expect_in_progress(&with_timeout("409", world.post_with_key(key, &wanted).send()).await);
        }
        let other = with_timeout("422", world.post_with_key(key, &order(ANN, &[(LAPTOP, 2)])).send()).await;
        other.expect_problem(422, "idempotency-key-reused");
        hanging.set(StubBehaviour::Normal);
        let first = response_of(first).await.expect(201);
        let again = world.post_with_key(key, &wanted).send().await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()));
    }
    assert_eq!((world.orders().await.len(), world.products.stock(LAPTOP)), (2, 48));
}

/// The key is free immediately, also while the release is still running.
#[tokio::test]
async fn frees_the_key_of_a_failed_attempt() {
    let wrong_price = json!({"userId": ANN, "products": [{"productId": PEN, "quantity": 1, "price": 7}]});
    for (wanted, status, slug) in [
        (order(UNKNOWN_USER, &[(PEN, 1)]), 400, "user-not-found"),
        (order(ANN, &[(404, 1)]), 400, "product-not-found"),
        (order(ANN, &[(LAPTOP, 51)]), 409, "insufficient-stock"),
        (wrong_price, 409, "price-changed"),
    ] {
        let world = World::new().await;
        world.products.release.set(StubBehaviour::Hanging);
        for _ in 0..2 {
            world.post_with_key("k", &wanted).send().await.expect_problem(status, slug);
        }
        let good = world.post_with_key("k", &order(BOB, &[(LAPTOP, 1)])).send().await.expect(201);
        assert!(!good.headers.contains_key("idempotent-replayed"), "{good}");
        world.post_with_key("k", &wanted).send().await.expect_problem(422, "idempotency-key-reused");
        world.products.release.set(StubBehaviour::Normal);
        world.wait_until_settled().await;
        let again = world.post_with_key("k", &order(BOB, &[(LAPTOP, 1)])).send().await.expect(201);
        assert_eq!(again.json(), good.json(), "the end of the failed attempts does not free the key of the order");
    }
}

#[tokio::test]
async fn places_the_order_when_a_request_is_repeated_after_503() {
    let world = World::with(Timeouts { call: HOUR, order: std::time::Duration::from_secs(5) }).await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for fault in [StubBehaviour::ServerError, StubBehaviour::LostRequest, StubBehaviour::LostResponse] {
        world.products.reserve.set(fault);
        world.post_with_key("k", &wanted).send().await.expect_problem(503, "peer-unavailable");
    }
    world.products.reserve.set(StubBehaviour::Normal);
    let placed = world.post_with_key("k", &wanted).send().await.expect(201);
    assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    world.wait_until_settled().await;
    assert_eq!((world.orders().await, world.products.stock(LAPTOP)), (vec![placed.json()], 49));
}

#[tokio::test]
async fn replays_the_current_state_of_an_order() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.post_with_key("k", &wanted).send().await.expect(201).json();
    for (step, status) in [(None, "pending"), (Some("confirmed"), "confirmed"), (Some("cancelled"), "cancelled")] {
        if let Some(step) = step {
            world.step(id(&first), step).await.expect(200);
        }
        let again = world.post_with_key("k", &wanted).send().await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true", "{again}");
        assert_eq!((id(&again.json()), &again.json()["status"]), (id(&first), &json!(status)));
    }
    world.wait_until_settled().await; // cancelled, no longer cancelling
    let again = world.post_with_key("k", &wanted).send().await.expect(201);
    assert_eq!((id(&again.json()), &again.json()["status"]), (id(&first), &json!("cancelled")));
    assert_eq!(world.products.stock(LAPTOP), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_one_of_twenty_concurrent_orders_with_one_key() {
    one_of_twenty_is_placed(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn places_one_of_twenty_concurrent_orders_with_one_key_over_postgres() {
    if let Some(world) = World::over_postgres(Timeouts { call: HOUR, order: HOUR }).await {
        one_of_twenty_is_placed(world).await;
    }
}

async fn one_of_twenty_is_placed(world: World) {
    let wanted = order(ANN, &[(LAPTOP, 3)]);
    world.products.reserve.set(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..20).map(|_| spawn(world.post_with_key("k", &wanted))).collect();
    // Some requests arrive while the first is running, some perhaps later: those get 409 or a replay.
    eventually("some answers", async || requests.iter().filter(|request| request.is_finished()).count() >= 10).await;
    world.products.reserve.set(StubBehaviour::Normal);
    let mut returned = Vec::new();
    let mut new = 0;
    for request in requests {
        let response = response_of(request).await;
        if response.status == 201 {
            new += usize::from(!response.headers.contains_key("idempotent-replayed"));
            returned.push(response.json());
        } else {
            expect_in_progress(&response);
        }
    }
    assert_eq!(new, 1);
    let orders: Vec<Value> = world.orders().await;
    assert_eq!(orders.len(), 1);
    assert!(returned.iter().all(|order| *order == orders[0]), "{returned:?}");
    world.wait_until_settled().await;
    assert_eq!(world.products.stock(LAPTOP), 47);
    assert_eq!(world.products.reservations().len(), 1);
}

/// No peer hangs here, so the retries find the order in every state.
#[tokio::test(flavor = "multi_thread")]
async fn gives_the_same_order_to_all_clients_that_retry() {
    all_get_the_one_order(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gives_the_same_order_to_all_clients_that_retry_over_postgres() {
    if let Some(world) = World::over_postgres(Timeouts { call: HOUR, order: HOUR }).await {
        all_get_the_one_order(world).await;
    }
}

async fn all_get_the_one_order(world: World) {
    for round in 0..20 {
        let (key, wanted) = (format!("k{round}"), order(ANN, &[(PEN, 1)]));
        let retrying = |_| {
            let (world, key, wanted) = (world.clone(), key.clone(), wanted.clone());
            tokio::spawn(async move {
                loop {
                    let response = world.post_with_key(&key, &wanted).send().await;
                    if response.status == 201 {
                        return response.json();
                    }
                    expect_in_progress(&response);
                    tokio::task::yield_now().await;
                }
            })
        };
        let returned = futures_util::future::join_all((0..8).map(retrying).collect::<Vec<_>>());
        let returned: Vec<Value> =
            with_timeout("eight responses", returned).await.into_iter().map(|order| order.expect("no panic")).collect();
        assert!(returned.iter().all(|order| *order == returned[0]), "{returned:?}");
        assert_eq!((world.orders().await.len(), world.products.stock(PEN)), (round + 1, 20_000 - 1 - round as i64));
    }
}
