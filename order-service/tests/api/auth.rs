//! Sign-in: who may make which call, and what each caller sees.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testing::{Client, Received, TestIssuer};

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, BOB, PEN, PHONE, World, expect_bad, expect_in_progress, id, ids, next_page, order, response_of, spawn,
};

/// The callers of the table: nobody, Ann, Bob, an admin, order-service, and a user whose token has no account.
struct Callers(TestIssuer);

const ADMIN: i64 = 7;

impl Callers {
    /// Returns the header `Authorization` of each caller.
    fn all(&self) -> [Option<String>; 6] {
        let issuer = &self.0;
        let stranger = issuer.bearer(json!({"sub": ANN.to_string()}));
        let service = issuer.order_service("order-service");
        [None, Some(issuer.user(ANN)), Some(issuer.user(BOB)), Some(issuer.admin(ADMIN)), Some(service), Some(stranger)]
    }
}

async fn send(client: &Client, call: (&str, &str), authorization: Option<&str>, body: Option<&Value>) -> Received {
    let request = client.request(call.0, call.1);
    let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
    body.into_iter().fold(request, |request, body| request.json(body)).send().await
}

/// Checks the response to a call that sign-in rejects.
#[track_caller]
fn expect_rejected(response: Received) {
    let challenge = response.header("www-authenticate").to_owned();
    let metadata = "resource_metadata=\"http://test/.well-known/oauth-protected-resource\"";
    assert!(challenge.ends_with(metadata), "{response}");
    match response.status.as_u16() {
        401 => _ = response.expect_problem(401, "unauthenticated"),
        _ => {
            assert_eq!(challenge, format!("Bearer error=\"insufficient_scope\", {metadata}"));
            response.expect_problem(403, "insufficient-scope");
        }
    }
}

#[tokio::test]
async fn lets_each_caller_make_only_its_calls() {
    let world = World::new().await;
    let callers = Callers(TestIssuer::default());
    let client = world.with_sign_in(&callers.0);
    let (status, placed) = (|status| json!({"status": status}), order(ANN, &[(PEN, 1)]));
    // For nobody, Ann, Bob, an admin, order-service and a user without an account. The order in the path is Ann's.
    let table: [(&str, Option<Value>, [u16; 6]); 7] = [
        ("GET /orders", None, [401, 200, 200, 200, 401, 200]),
        ("POST /orders", Some(placed.clone()), [401, 201, 403, 201, 401, 403]),
        ("GET /orders/{id}", None, [401, 200, 404, 200, 401, 404]),
        ("PATCH /orders/{id}", Some(status("cancelled")), [401, 200, 404, 200, 401, 404]),
        ("PATCH /orders/{id}", Some(status("confirmed")), [401, 403, 404, 200, 401, 404]),
        ("GET /livez", None, [200; 6]),
        ("GET /readyz", None, [200; 6]),
    ];
    for (call, body, expected) in &table {
        for (authorization, expected) in callers.all().iter().zip(expected) {
            let anns = world.place(placed.clone()).await;
            let before = world.orders().await;
            let (method, template) = call.split_once(' ').expect("a method and a path");
            for root in ["", "/api"] {
                let path = template.replace("{id}", id(&anns));
                let path = if template.starts_with("/orders") { format!("{root}{path}") } else { path };
                let response = send(&client, (method, &path), authorization.as_deref(), body.as_ref()).await;
                assert_eq!(response.status, *expected, "{method} {path} {authorization:?} {response}");
                if matches!(expected, 401 | 403) {
                    expect_rejected(response);
                    assert_eq!(world.orders().await, before, "a rejected call changes nothing");
                }
            }
        }
    }

    let document = client.get("/openapi.json").await.expect(200).json();
    let expected: BTreeSet<String> = table.iter().map(|(call, ..)| (*call).to_owned()).collect();
    assert_eq!(testing::documented_calls(&document), expected, "each documented call is in the table");
}

#[tokio::test]
async fn places_an_order_without_a_user_for_the_caller() {
    let world = World::new().await;
    let issuer = TestIssuer::default();
    let client = world.with_sign_in(&issuer);
    let own = json!({"products": [{"productId": PEN, "quantity": 1}]});
    let post = async |authorization: String, body: &Value| {
        send(&client, ("POST", "/orders"), Some(&authorization), Some(body)).await
    };
    assert_eq!(post(issuer.user(ANN), &own).await.expect(201).json()["userId"], ANN);
    let null = json!({"userId": null, "products": own["products"]});
    assert_eq!(post(issuer.user(BOB), &null).await.expect(201).json()["userId"], BOB);
    assert_eq!(post(issuer.admin(ANN), &own).await.expect(201).json()["userId"], ANN);
    assert_eq!(post(issuer.admin(ADMIN), &order(BOB, &[(PEN, 1)])).await.expect(201).json()["userId"], BOB);

    // Without an account, and while sign-in is off, the user is named with all other mistakes.
    let wrong = json!({"products": [{"productId": 0, "quantity": 0}]});
    let mistakes = ["/userId", "/products/0/productId", "/products/0/quantity"];
    let admin = || issuer.bearer(json!({"sub": "x", "roles": ["admin"]}));
    post(admin(), &wrong).await.expect_invalid(&mistakes);
    world.client.post("/orders", wrong.clone()).await.expect_invalid(&mistakes);
    post(issuer.user(ANN), &wrong).await.expect_invalid(&mistakes[1..]);
    for body in [&own, &wrong, &order(ANN, &[(PEN, 1)])] {
        expect_rejected(post(issuer.bearer(json!({"sub": "1"})), body).await.expect(403));
    }
    for wrong in [json!(0), json!("x"), json!({"id": 1})] {
        let body = json!({"userId": wrong, "products": own["products"]});
        post(issuer.user(ANN), &body).await.expect_invalid(&["/userId"]);
    }
}

#[tokio::test]
async fn lists_only_own_orders_whatever_the_filter() {
    let world = World::new().await;
    let issuer = TestIssuer::default();
    let client = world.with_sign_in(&issuer);
    let mut anns = Vec::new();
    for _ in 0..3 {
        anns.push(id(&world.place(order(ANN, &[(PEN, 1)])).await).to_owned());
        world.place(order(BOB, &[(PEN, 1)])).await;
    }
    let list = async |authorization: String, path: &str| send(&client, ("GET", path), Some(&authorization), None).await;
    let count =
        async |authorization, path: &str| list(authorization, path).await.expect(200).json().as_array().unwrap().len();

    let own = list(issuer.user(ANN), "/orders").await.expect(200).json();
    assert_eq!(ids(own.as_array().unwrap()), anns);
    assert_eq!(list(issuer.user(ANN), "/orders?userId=1").await.json(), own);
    assert_eq!(count(issuer.user(ANN), "/orders?status=cancelled").await, 0);
    let foreign = list(issuer.user(ANN), "/orders?userId=2&limit=1").await.expect(200);
    assert_eq!((foreign.json(), foreign.header("link")), (json!([]), ""));
    assert_eq!(count(issuer.bearer(json!({"sub": "1"})), "/orders").await, 0);
    expect_bad(list(issuer.user(ANN), "/orders?user_id=2").await, &["user_id"]);
    assert_eq!(count(issuer.admin(ADMIN), "/orders").await, 6);
    assert_eq!(count(issuer.admin(ADMIN), "/orders?userId=2").await, 3);

    let (mut path, mut seen) = ("/orders?limit=2".to_owned(), Vec::new());
    while !path.is_empty() {
        let page = list(issuer.user(ANN), &path).await.expect(200);
        seen.extend(ids(page.json().as_array().unwrap()).into_iter().map(str::to_owned));
        path = next_page(&page);
    }
    assert_eq!(seen, anns, "the pages have neither foreign orders nor gaps");
}

#[tokio::test]
async fn answers_for_a_foreign_order_as_for_a_missing_one() {
    let world = World::new().await;
    let issuer = TestIssuer::default();
    let client = world.with_sign_in(&issuer);
    let anns = world.place(order(ANN, &[(PEN, 1)])).await;
    let tag = world.client.get(&format!("/orders/{}", id(&anns))).await.header("etag").to_owned();
    let missing = "00000000-0000-7000-8000-000000000000";
    let mut answers = 0;
    for (name, value) in [("accept", "*/*"), ("if-match", "*"), ("if-match", &*tag), ("if-match", "\"x\"")]
        .into_iter()
        .chain([("if-none-match", "*"), ("if-none-match", &*tag), ("if-none-match", "\"x\"")])
    {
        for (method, body) in [
            ("GET", None),
            ("HEAD", None),
            ("PATCH", Some(json!({"status": "cancelled"}))),
            ("PATCH", Some(json!({"status": "confirmed"}))),
            ("PATCH", Some(json!({"status": "pending"}))),
            ("PATCH", Some(json!({"status": 1}))),
        ] {
            let answer = async |order: &str| {
                let request = client.request(method, &format!("/orders/{order}")).header(name, value);
                let request = request.header("authorization", &issuer.user(BOB)).header("x-request-id", "the-same");
                body.iter().fold(request, |request, body| request.json(body)).send().await.to_string()
            };
            let (foreign, absent) = (answer(id(&anns)).await, answer(missing).await);
            assert_eq!(foreign, absent, "{method} with {name}: {value}");
            assert!(
                foreign.starts_with("404") || foreign.starts_with("412") || foreign.starts_with("400"),
                "{foreign}"
            );
            answers += 1;
        }
    }
    assert_eq!(answers, 42);
    assert_eq!(world.read(id(&anns)).await, anns, "nothing has changed");
}

#[tokio::test]
async fn keeps_the_idempotency_keys_of_callers_apart() {
    let world = World::new().await;
    let issuer = TestIssuer::default();
    let client = world.with_sign_in(&issuer);
    let request = |authorization: &str, body: &Value| {
        client
            .request("POST", "/orders")
            .header("authorization", authorization)
            .header("idempotency-key", "k")
            .json(body)
    };
    let (ann, bob, admin) = (issuer.user(ANN), issuer.user(BOB), issuer.admin(ADMIN));
    let own = json!({"products": [{"productId": PEN, "quantity": 1}]});
    let anns = order(ANN, &[(PEN, 1)]);

    let before = world.post_with_key("k", &anns).send().await.expect(201).json(); // by a client before sign-in was on
    let mut orders = vec![id(&before).to_owned()];
    for (caller, body) in [(&ann, &own), (&bob, &own), (&admin, &anns)] {
        let first = request(caller, body).send().await.expect(201);
        assert_eq!(first.header("idempotent-replayed"), "", "{first}");
        let again = request(caller, body).send().await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", first.json()));
        orders.push(id(&first.json()).to_owned());
    }
    request(&ann, &order(ANN, &[(PHONE, 1)])).send().await.expect_problem(422, "idempotency-key-reused");
    orders.sort_unstable();
    orders.dedup();
    assert_eq!(orders.len(), 4, "four callers, four orders");
    // A refreshed token is the same caller, and an admin who orders for Ann does not use her keys.
    let refreshed = issuer.bearer(json!({"sub": ANN.to_string(), "user_id": ANN, "jti": "another"}));
    assert_eq!(request(&refreshed, &own).send().await.expect(201).header("idempotent-replayed"), "true");
    let again = world.post_with_key("k", &anns).send().await.expect(201).json();
    assert_eq!(id(&again), id(&before));
}

#[tokio::test]
async fn does_not_block_the_key_of_another_caller() {
    let world = World::new().await;
    let issuer = TestIssuer::default();
    let client = world.with_sign_in(&issuer);
    let own = json!({"products": [{"productId": PEN, "quantity": 1}]});
    let post = |user| {
        let request = client.request("POST", "/orders").header("authorization", &issuer.user(user));
        request.header("idempotency-key", "k").json(&own)
    };
    world.products.reserve.set(StubBehaviour::Hanging);
    let anns = spawn(post(ANN));
    world.products.reserve.wait_for_calls(1).await;
    expect_in_progress(&post(ANN).send().await);
    let bobs = spawn(post(BOB));
    world.users.read.wait_for_calls(2).await; // so it was not refused
    world.products.reserve.set(StubBehaviour::Normal);
    for order in [anns, bobs] {
        response_of(order).await.expect(201);
    }
}
