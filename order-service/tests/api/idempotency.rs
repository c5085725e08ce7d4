//! `Idempotency-Key`: asked again, an order is not placed again.

use serde_json::{Value, json};

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, Limits, NOBODY, PEN, PHONE, World, answer, begin, eventually, expect_in_progress, id,
    order, with_timeout,
};

#[tokio::test]
async fn the_same_key_and_body_again_are_the_same_order() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.keyed("k", &wanted).send().await.expect(201);
    assert!(!first.headers.contains_key("idempotent-replayed"), "{first}");
    for orders in ["/orders", "/api/orders"] {
        let again = world.client.request("POST", orders).json(&wanted).header("idempotency-key", "k").send().await;
        let again = again.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true", "{again}");
        assert_eq!((again.json(), again.header("etag")), (first.json(), first.header("etag")));
        assert_eq!(again.header("location"), format!("{orders}/{}", id(&first.json())));
    }
    assert_eq!(world.orders().await, [first.json()]);
    assert_eq!(world.shop.stock(LAPTOP), 49);
    assert_eq!(world.shop.reservations().len(), 1);
}

#[tokio::test]
async fn a_replay_asks_no_peer() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.keyed("k", &wanted).send().await.expect(201);
    world.people.reads.is(StubBehaviour::Hanging);
    world.shop.takes.is(StubBehaviour::Hanging);
    let again = with_timeout("the replay", world.keyed("k", &wanted).send()).await.expect(201);
    assert_eq!(again.json(), first.json());
}

#[tokio::test]
async fn without_a_key_each_request_is_an_order() {
    let world = World::new().await;
    for number in 1..=3 {
        let placed = world.posting(&order(ANN, &[(LAPTOP, 1)])).send().await.expect(201);
        assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
        assert_eq!((world.orders().await.len(), world.shop.stock(LAPTOP)), (number, 50 - number as i64));
    }
}

/// What is ignored without a key does not become a mistake with one.
#[tokio::test]
async fn a_member_that_nobody_reads_may_hold_anything() {
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
async fn bodies_are_compared_as_json() {
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
            "text is no number",
        ),
        (
            r#"{"userId":1,"products":[{"productId":3,"quantity":1},{"productId":2,"quantity":3,"price":599}],"note":"ä"}"#,
            "another order of lines",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":4,"price":599},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "one unit more",
        ),
        (r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599}],"note":"ä"}"#, "a line less"),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}]}"#,
            "a member less, though one that is ignored",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3,"price":599},{"productId":3,"quantity":1}],"note":"Ä"}"#,
            "another note",
        ),
        (
            r#"{"userId":1,"products":[{"productId":2,"quantity":3},{"productId":3,"quantity":1}],"note":"ä"}"#,
            "another belief",
        ),
        (r#"{"userId":1,"products":[{"productId":404,"quantity":3}]}"#, "what could not be placed anyway"),
    ] {
        println!("{other}: {why}");
        send(other).await.expect_problem(422, "idempotency-key-reused");
    }
    assert_eq!(world.orders().await, [first.json()]);
    assert_eq!((world.shop.stock(PHONE), world.shop.stock(PEN)), (97, 20_000 - 1));
    assert_eq!(world.shop.reservations().len(), 1);
}

#[tokio::test]
async fn quotes_do_not_belong_to_a_key() {
    let world = World::new().await;
    let wanted = order(ANN, &[(PEN, 1)]);
    let first = world.keyed("\"k\"", &wanted).send().await.expect(201);
    let again = world.keyed("k", &wanted).send().await.expect(201);
    assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()));
    for other in ["K", "\"\"k\"\"", "k\"", "'k'", "kk"] {
        let another = world.keyed(other, &wanted).send().await.expect(201);
        assert!(!another.headers.contains_key("idempotent-replayed"), "{other}: {another}");
    }
}

#[tokio::test]
async fn while_the_first_is_running_the_second_is_told_to_wait() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for (hanging, key) in [(&world.people.reads, "a"), (&world.shop.takes, "b")] {
        let before = world.shop.takes.calls().len();
        hanging.is(StubBehaviour::Hanging);
        let first = begin(world.keyed(key, &wanted));
        world.shop.takes.called(before + 1).await;
        for _ in 0..3 {
            expect_in_progress(&with_timeout("409", world.keyed(key, &wanted).send()).await);
        }
        let other = with_timeout("422", world.keyed(key, &order(ANN, &[(LAPTOP, 2)])).send()).await;
        other.expect_problem(422, "idempotency-key-reused");
        hanging.is(StubBehaviour::Well);
        let first = answer(first).await.expect(201);
        let again = world.keyed(key, &wanted).send().await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()));
    }
    assert_eq!((world.orders().await.len(), world.shop.stock(LAPTOP)), (2, 48));
}

/// What a failed attempt leaves behind under its key: nothing, at once, though the release may take its time.
#[tokio::test]
async fn a_failed_attempt_does_not_use_its_key_up() {
    let believing = json!({"userId": ANN, "products": [{"productId": PEN, "quantity": 1, "price": 7}]});
    for (wanted, status, slug) in [
        (order(NOBODY, &[(PEN, 1)]), 400, "user-not-found"),
        (order(ANN, &[(404, 1)]), 400, "product-not-found"),
        (order(ANN, &[(LAPTOP, 51)]), 409, "insufficient-stock"),
        (believing, 409, "price-changed"),
    ] {
        let world = World::new().await;
        world.shop.releases.is(StubBehaviour::Hanging);
        for _ in 0..2 {
            world.keyed("k", &wanted).send().await.expect_problem(status, slug);
        }
        let good = world.keyed("k", &order(BOB, &[(LAPTOP, 1)])).send().await.expect(201);
        assert!(!good.headers.contains_key("idempotent-replayed"), "{good}");
        world.keyed("k", &wanted).send().await.expect_problem(422, "idempotency-key-reused");
        world.shop.releases.is(StubBehaviour::Well);
        world.at_rest().await;
        let again = world.keyed("k", &order(BOB, &[(LAPTOP, 1)])).send().await.expect(201);
        assert_eq!(again.json(), good.json(), "the end of the failed attempts has not freed it");
    }
}

#[tokio::test]
async fn after_503_the_same_request_under_the_same_key_places_the_order() {
    let world = World::with(Limits { call: HOUR, order: std::time::Duration::from_secs(5) }).await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for fault in [StubBehaviour::Broken, StubBehaviour::LosingCalls, StubBehaviour::LosingAnswers] {
        world.shop.takes.is(fault);
        world.keyed("k", &wanted).send().await.expect_problem(503, "peer-unavailable");
    }
    world.shop.takes.is(StubBehaviour::Well);
    let placed = world.keyed("k", &wanted).send().await.expect(201);
    assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
    world.at_rest().await;
    assert_eq!((world.orders().await, world.shop.stock(LAPTOP)), (vec![placed.json()], 49));
}

#[tokio::test]
async fn an_order_is_replayed_as_it_stands_now() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    let first = world.keyed("k", &wanted).send().await.expect(201).json();
    for (step, status) in [(None, "pending"), (Some("confirmed"), "confirmed"), (Some("cancelled"), "cancelled")] {
        if let Some(step) = step {
            world.step(id(&first), step).await.expect(200);
        }
        let again = world.keyed("k", &wanted).send().await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true", "{again}");
        assert_eq!((id(&again.json()), &again.json()["status"]), (id(&first), &json!(status)));
    }
    world.at_rest().await; // it is cancelled for good now
    let again = world.keyed("k", &wanted).send().await.expect(201);
    assert_eq!((id(&again.json()), &again.json()["status"]), (id(&first), &json!("cancelled")));
    assert_eq!(world.shop.stock(LAPTOP), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_at_once_one_is_placed() {
    one_of_twenty_is_placed(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_at_once_one_is_placed_over_postgres() {
    if let Some(world) = World::over_postgres(Limits { call: HOUR, order: HOUR }).await {
        one_of_twenty_is_placed(world).await;
    }
}

async fn one_of_twenty_is_placed(world: World) {
    let wanted = order(ANN, &[(LAPTOP, 3)]);
    world.shop.takes.is(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..20).map(|_| begin(world.keyed("k", &wanted))).collect();
    // Some come while the first is running, some perhaps later: each is told to wait, or of the one order.
    eventually("some answers", async || requests.iter().filter(|request| request.is_finished()).count() >= 10).await;
    world.shop.takes.is(StubBehaviour::Well);
    let mut shown = Vec::new();
    let mut new = 0;
    for request in requests {
        let answer = answer(request).await;
        if answer.status == 201 {
            new += usize::from(!answer.headers.contains_key("idempotent-replayed"));
            shown.push(answer.json());
        } else {
            expect_in_progress(&answer);
        }
    }
    assert_eq!(new, 1);
    let orders: Vec<Value> = world.orders().await;
    assert_eq!(orders.len(), 1);
    assert!(shown.iter().all(|order| *order == orders[0]), "{shown:?}");
    world.at_rest().await;
    assert_eq!(world.shop.stock(LAPTOP), 47);
    assert_eq!(world.shop.reservations().len(), 1);
}

/// Nobody hangs here, so that retries meet the order in every state on its way.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_until_they_are_told_all_get_the_one_order() {
    all_get_the_one_order(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_until_they_are_told_all_get_the_one_order_over_postgres() {
    if let Some(world) = World::over_postgres(Limits { call: HOUR, order: HOUR }).await {
        all_get_the_one_order(world).await;
    }
}

async fn all_get_the_one_order(world: World) {
    for round in 0..20 {
        let (key, wanted) = (format!("k{round}"), order(ANN, &[(PEN, 1)]));
        let asking = |_| {
            let (world, key, wanted) = (world.clone(), key.clone(), wanted.clone());
            tokio::spawn(async move {
                loop {
                    let answer = world.keyed(&key, &wanted).send().await;
                    if answer.status == 201 {
                        return answer.json();
                    }
                    expect_in_progress(&answer);
                    tokio::task::yield_now().await;
                }
            })
        };
        let told = futures_util::future::join_all((0..8).map(asking).collect::<Vec<_>>());
        let told: Vec<Value> =
            with_timeout("eight answers", told).await.into_iter().map(|told| told.expect("no panic")).collect();
        assert!(told.iter().all(|order| *order == told[0]), "{told:?}");
        assert_eq!((world.orders().await.len(), world.shop.stock(PEN)), (round + 1, 20_000 - 1 - round as i64));
    }
}
