//! Invalid requests: each row says why it is invalid. No peer is called and nothing is sold.

use serde_json::{Value, json};
use testing::{Received, Sending};

use crate::support::{ANN, LAPTOP, PEN, World, expect_bad, id, order};

/// Sends a request that order-service must reject without calling a peer.
async fn rejected(world: &World, request: Sending) -> Received {
    let response = request.send().await;
    assert!(response.status.is_client_error(), "{response}");
    world.expect_no_peer_calls();
    world.expect_nothing_sold().await;
    response
}

fn post(world: &World, body: &str) -> Sending {
    world.client.request("POST", "/orders").bytes("application/json", body.to_owned())
}

fn lines(count: i64) -> Value {
    (0..count).map(|n| json!({"productId": 1000 + n, "quantity": 1})).collect()
}

#[tokio::test]
async fn points_to_every_bad_member() {
    let world = World::new().await;
    let bad_lengths = [json!([]), lines(101), lines(500)];
    let not_a_list = [json!(null), json!({}), json!({"0": {}}), json!("1"), json!(1), json!(true)];
    for products in bad_lengths.into_iter().chain(not_a_list) {
        let body = json!({"userId": ANN, "products": products}).to_string();
        rejected(&world, post(&world, &body)).await.expect_invalid(&["/products"]);
    }
    for (line, why, pointer) in [
        ("null", "not an object", "/products/0"),
        ("[]", "not an object", "/products/0"),
        ("[1,1]", "not an object", "/products/0"),
        ("1", "not an object", "/products/0"),
        ("\"1\"", "not an object", "/products/0"),
        (r#"{"quantity":1}"#, "missing product", "/products/0/productId"),
        (r#"{"productId":null,"quantity":1}"#, "missing product", "/products/0/productId"),
        (r#"{"productId":0,"quantity":1}"#, "ids start at 1", "/products/0/productId"),
        (r#"{"productId":-1,"quantity":1}"#, "negative", "/products/0/productId"),
        (r#"{"productId":1.5,"quantity":1}"#, "a fraction", "/products/0/productId"),
        (r#"{"productId":"01","quantity":1}"#, "a leading zero", "/products/0/productId"),
        (r#"{"productId":"","quantity":1}"#, "empty", "/products/0/productId"),
        (r#"{"productId":[1],"quantity":1}"#, "a list", "/products/0/productId"),
        (r#"{"productId":9223372036854775808,"quantity":1}"#, "too large", "/products/0/productId"),
        (r#"{"productId":1}"#, "missing quantity", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":null}"#, "missing quantity", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":0}"#, "zero", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":10001}"#, "one too many", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":-1}"#, "negative", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":1.5}"#, "a fraction", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":"1"}"#, "text", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":4294967297}"#, "1 modulo 2^32", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":1e999}"#, "out of range", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":true}"#, "not a number", "/products/0/quantity"),
        (r#"{"productId":1,"quantity":1,"price":-1}"#, "negative", "/products/0/price"),
        (r#"{"productId":1,"quantity":1,"price":19.999}"#, "a tenth of a cent", "/products/0/price"),
        (r#"{"productId":1,"quantity":1,"price":"1"}"#, "text", "/products/0/price"),
        (r#"{"productId":1,"quantity":1,"price":1e999}"#, "out of range", "/products/0/price"),
        (r#"{"productId":1,"quantity":1,"price":[]}"#, "a list", "/products/0/price"),
        (r#"{"productId":1,"quantity":1,"quantity":1}"#, "given twice", "/products/0/quantity"),
        (r#"{"productId":1,"productId":2,"quantity":1}"#, "given twice", "/products/0/productId"),
        (r#"{"productId":1,"quantity":1,"price":null,"price":1}"#, "given twice", "/products/0/price"),
        (r#"{"productId":1,"quantity":1},{"productId":"1","quantity":2}"#, "a product twice", "/products/1/productId"),
    ] {
        println!("{line}: {why}");
        let body = format!(r#"{{"userId":1,"products":[{line}]}}"#);
        rejected(&world, post(&world, &body)).await.expect_invalid(&[pointer]);
    }
    for (user, why) in [
        (r#""userId":0,"#, "ids start at 1"),
        (r#""userId":null,"#, "missing user"),
        ("", "missing user"),
        (r#""userId":"x","#, "not a number"),
        (r#""userId":"","#, "empty"),
        (r#""userId":"01","#, "a leading zero"),
        (r#""userId":"+1","#, "a sign"),
        (r#""userId":1.5,"#, "a fraction"),
        (r#""userId":-1,"#, "negative"),
        (r#""userId":9223372036854775808,"#, "too large"),
        (r#""userId":"9223372036854775808","#, "too large"),
        (r#""userId":{"id":1},"#, "an object"),
        (r#""userId":1,"userId":1,"#, "given twice"),
        (r#""userid":1,"#, "another member"),
    ] {
        println!("{user}: {why}");
        let body = format!(r#"{{{user}"products":[{{"productId":1,"quantity":1}}]}}"#);
        rejected(&world, post(&world, &body)).await.expect_invalid(&["/userId"]);
    }
}

#[tokio::test]
async fn reports_all_bad_members_in_one_response() {
    let world = World::new().await;
    for (body, pointer) in [
        ("{}", vec!["/userId", "/products"]),
        (r#"{"userId":0,"products":null}"#, vec!["/userId", "/products"]),
        (
            r#"{"products":[{},7,{"productId":1,"quantity":0,"price":-1}]}"#,
            vec![
                "/userId",
                "/products/0/productId",
                "/products/0/quantity",
                "/products/1",
                "/products/2/quantity",
                "/products/2/price",
            ],
        ),
        (
            r#"{"userId":0,"products":[{"productId":1,"quantity":1},{"productId":2,"quantity":1},{"productId":1,"quantity":1},{"productId":2,"quantity":1},{"productId":1,"quantity":1}]}"#,
            vec!["/userId", "/products/2/productId", "/products/3/productId", "/products/4/productId"],
        ),
        (
            r#"{"userId":1,"products":[{"productId":1,"quantity":0},{"productId":1,"quantity":1},{"productId":1,"quantity":1}]}"#,
            vec!["/products/0/quantity", "/products/1/productId", "/products/2/productId"],
        ),
        (r#"{"userId":1,"userId":2,"products":[],"products":[]}"#, vec!["/userId", "/products"]),
    ] {
        println!("{body}");
        rejected(&world, post(&world, body)).await.expect_invalid(&pointer);
    }
}

#[tokio::test]
async fn accepts_values_at_the_limits() {
    let world = World::new().await;
    for n in 0..100 {
        world.products.set_product(1000 + n, "Thing", 1, 1);
    }
    world.place(json!({"userId": ANN, "products": lines(100)})).await;
    world.place(order(ANN, &[(PEN, 10_000)])).await;
    let last = i64::MAX;
    world.products.set_product(last, "The last thing", 100_000_000, 1);
    world.place(json!({"userId": ANN, "products": [{"productId": last, "quantity": 1, "price": 1_000_000}]})).await;
    let unknown_user = json!({"userId": last.to_string(), "products": [{"productId": PEN, "quantity": 1}]});
    world.client.post("/orders", unknown_user).await.expect_problem(400, "user-not-found");
}

#[tokio::test]
async fn rejects_a_body_that_is_not_a_json_object() {
    let world = World::new().await;
    let good = order(ANN, &[(PEN, 1)]).to_string();
    for body in ["[]", &format!("[{good}]"), "null", "1", "\"x\"", "true"] {
        rejected(&world, post(&world, body)).await.expect_invalid(&[""]);
    }
    for body in ["", " ", "{", "}", "userId=1", "{'userId':1}", &good[1..], &format!("{good}{good}"), "\u{feff}{}"] {
        rejected(&world, post(&world, body)).await.expect_problem(400, "malformed-json");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "text/json", ""] {
        let request = world.client.request("POST", "/orders").bytes(content_type, good.clone());
        rejected(&world, request).await.expect_problem(415, "unsupported-media-type");
    }
    let untyped = world.post_order(&order(ANN, &[(PEN, 1)])).without("content-type");
    rejected(&world, untyped).await.expect_problem(415, "unsupported-media-type");
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(64 << 10));
    rejected(&world, post(&world, &large)).await.expect_problem(413, "payload-too-large");
}

#[tokio::test]
async fn accepts_keys_of_1_to_255_visible_characters_given_once() {
    let world = World::new().await;
    let (longest, too_long) = ("x".repeat(255), "x".repeat(256));
    let quoted = format!("\"{too_long}\"");
    let bad = ["", "\"\"", " ", "a b", "\"a b\"", "a\tb", "caf\u{e9}", "\u{1f511}", too_long.as_str(), &quoted];
    for key in bad {
        println!("{key:?}");
        expect_bad(rejected(&world, world.post_with_key(key, &order(ANN, &[(PEN, 1)]))).await, &["idempotency-key"]);
    }
    for (one, other) in [("a", "b"), ("a", "a")] {
        let twice = world.post_with_key(one, &order(ANN, &[(PEN, 1)])).header("idempotency-key", other);
        expect_bad(rejected(&world, twice).await, &["idempotency-key"]);
    }
    for key in ["a", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "\"", &longest, &format!("\"{}\"", "y".repeat(255))] {
        world.post_with_key(key, &order(ANN, &[(PEN, 1)])).send().await.expect(201);
    }
}

#[tokio::test]
async fn does_not_consume_the_key_of_a_bad_body() {
    let world = World::new().await;
    rejected(&world, world.post_with_key("k", &order(ANN, &[(PEN, 0)])))
        .await
        .expect_invalid(&["/products/0/quantity"]);
    let placed = world.post_with_key("k", &order(ANN, &[(PEN, 1)])).send().await.expect(201);
    assert!(!placed.headers.contains_key("idempotent-replayed"), "{placed}");
}

#[tokio::test]
async fn rejects_an_unknown_status() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
    let path = format!("/orders/{}", id(&placed));
    for (body, why) in [
        ("{}", "missing"),
        (r#"{"status":null}"#, "missing"),
        (r#"{"status":""}"#, "empty"),
        (r#"{"status":"paid"}"#, "unknown"),
        (r#"{"status":"Confirmed"}"#, "another case"),
        (r#"{"status":" confirmed"}"#, "a space"),
        (r#"{"status":"placing"}"#, "an internal state"),
        (r#"{"status":"aborting"}"#, "an internal state"),
        (r#"{"status":"cancelling"}"#, "an internal state"),
        (r#"{"status":1}"#, "not a string"),
        (r#"{"status":["confirmed"]}"#, "a list"),
        (r#"{"status":{"confirmed":null}}"#, "an object"),
        (r#"{"status":"confirmed","status":"confirmed"}"#, "given twice"),
        (r#"{"Status":"confirmed"}"#, "another member"),
    ] {
        println!("{body}: {why}");
        let request = world.client.request("PATCH", &path).bytes("application/json", body);
        request.send().await.expect_invalid(&["/status"]);
        assert_eq!(world.read(id(&placed)).await, placed);
    }
    let request = world.client.request("PATCH", &path).bytes("application/json", "\"confirmed\"");
    request.send().await.expect_invalid(&[""]);
    let request = world.client.request("PATCH", &path).bytes("application/json", "confirmed");
    request.send().await.expect_problem(400, "malformed-json");
    let request = world.client.request("PATCH", &path).bytes("text/plain", r#"{"status":"confirmed"}"#);
    request.send().await.expect_problem(415, "unsupported-media-type");
    assert_eq!(world.read(id(&placed)).await, placed);
}

#[tokio::test]
async fn rejects_an_id_that_is_not_a_hyphenated_uuid() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    let simple = id(&placed).replace('-', "");
    for bad in ["1", "x", "undefined", &simple, &format!("%7B{}%7D", id(&placed)), &format!("urn:uuid:{}", id(&placed))]
    {
        for path in [format!("/orders/{bad}"), format!("/api/orders/{bad}")] {
            expect_bad(world.client.get(&path).await, &["id"]);
            expect_bad(world.client.patch(&path, json!({"status": "cancelled"})).await, &["id"]);
        }
    }
    assert_eq!(world.orders().await, [placed]);
}

#[tokio::test]
async fn rejects_bad_query_parameters() {
    let world = World::new().await;
    let placed = world.place(order(ANN, &[(PEN, 1)])).await;
    for (query, why, pointer) in [
        ("userId=0", "ids start at 1", vec!["userId"]),
        ("userId=x", "not a number", vec!["userId"]),
        ("userId=01", "a leading zero", vec!["userId"]),
        ("userId=", "empty", vec!["userId"]),
        ("userId=1,2", "two", vec!["userId"]),
        ("userId=9223372036854775808", "too large", vec!["userId"]),
        ("userId=1&userId=2", "twice", vec!["userId"]),
        ("status=", "empty", vec!["status"]),
        ("status=paid", "unknown", vec!["status"]),
        ("status=PENDING", "another case", vec!["status"]),
        ("status=placing", "an internal state", vec!["status"]),
        ("status=cancelling", "an internal state", vec!["status"]),
        ("status=pending&status=pending", "twice", vec!["status"]),
        ("limit=0", "zero", vec!["limit"]),
        ("limit=1001", "above the maximum", vec!["limit"]),
        ("limit=-1", "negative", vec!["limit"]),
        ("limit=x", "not a number", vec!["limit"]),
        ("after=1", "not a UUID", vec!["after"]),
        ("after=", "empty", vec!["after"]),
        ("user_id=1", "unknown parameter", vec!["user_id"]),
        ("limit=0&after=x&userId=x&status=x", "all at once", vec!["limit", "after", "userId", "status"]),
    ] {
        println!("{query}: {why}");
        for path in ["/orders", "/api/orders"] {
            expect_bad(world.client.get(&format!("{path}?{query}")).await, &pointer);
        }
    }
    for good in ["", "limit=1000", "after=00000000-0000-0000-0000-000000000000"] {
        assert_eq!(world.client.get(&format!("/orders?{good}")).await.expect(200).json(), json!([placed]), "{good}");
    }
}
