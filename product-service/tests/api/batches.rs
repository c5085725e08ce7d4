//! Several reservations in one request: each has the result of a request of its own.

use serde_json::{Value, json};
use shared::products::{Line, ReservationBatchItem, ReservationLines};
use shared::{Id, OrderId};
use testing::Received;

use crate::bad_input::bad_reservations;
use crate::support::{LAPTOP, PHONE, Shop, UNKNOWN, expect_bad, lines, order};

/// Returns one item of a batch.
fn item(order: &str, wanted: &[(i64, u32)]) -> Value {
    json!({"orderId": order, "lines": lines(wanted)})
}

/// Returns the status of each item.
fn statuses(response: &Received) -> Vec<u64> {
    let items = response.json().as_array().cloned().unwrap_or_else(|| panic!("not a list: {response}"));
    items.iter().map(|item| item["status"].as_u64().expect("a status")).collect()
}

fn without_request_id(mut body: Value) -> Value {
    body.as_object_mut().expect("an object").remove("requestId");
    body
}

/// Returns a seeded shop in which order 1 has a reservation and order 2 is released.
async fn shop_with_reservations() -> Shop {
    let shop = Shop::seeded().await;
    shop.reserve(&order(1), &[(PHONE, 2), (LAPTOP, 1)]).await.expect(201);
    shop.release(&order(2)).await.expect(204);
    shop
}

/// Returns requests with every possible outcome: their orders and bodies.
fn all_outcomes() -> Vec<(String, Value)> {
    let of = |n, wanted: &[(i64, u32)]| (order(n), json!({"lines": lines(wanted)}));
    let mut requests = vec![
        of(10, &[(LAPTOP, 40), (PHONE, 1)]),               // 201
        of(11, &[(LAPTOP, 10)]),                           // 409, because the request before leaves 9
        of(1, &[(PHONE, 2), (LAPTOP, 1)]),                 // 200
        of(1, &[(PHONE, 2)]),                              // 409
        of(2, &[(PHONE, 1)]),                              // 409
        of(12, &[(PHONE, 1), (UNKNOWN, 1)]),               // 400
        of(13, &[(PHONE, 200), (LAPTOP, 1), (LAPTOP, 1)]), // 400
        of(14, &[(PHONE, 200), (LAPTOP, 200)]),            // 409
        of(10, &[(PHONE, 1), (LAPTOP, 40)]),               // 200
        of(10, &[(PHONE, 1), (LAPTOP, 41)]),               // 409
        of(15, &[(LAPTOP, 9)]),                            // 201
    ];
    // A body that is not an object cannot name its order.
    let bad = bad_reservations().into_iter().map(|(body, ..)| body).filter(Value::is_object);
    requests.extend(bad.zip(20..).map(|(body, n)| (order(n), body)));
    requests.push(of(16, &[(PHONE, 97)])); // 201
    requests
}

#[tokio::test]
async fn answers_each_item_like_a_request_of_its_own() {
    let (batched, single) = (shop_with_reservations().await, shop_with_reservations().await);
    let requests = all_outcomes();
    let batch = requests.iter().map(|(order, body)| {
        let mut item = body.clone();
        item["orderId"] = json!(order);
        item
    });
    let response = batched.post("/reservations", batch.collect()).await.expect(200);
    assert_eq!(statuses(&response)[..11], [201, 409, 200, 409, 409, 400, 400, 409, 200, 409, 201], "{response}");
    assert_eq!(statuses(&response).last(), Some(&201), "no unit was lost or reserved twice before it");

    let items = response.json().as_array().cloned().unwrap();
    assert_eq!(items.len(), requests.len(), "{response}");
    for ((order, body), item) in requests.into_iter().zip(items) {
        let alone = single.put(&format!("/reservations/{order}"), body.clone()).await;
        assert_eq!(item["status"], alone.status.as_u16(), "{body}");
        assert_eq!(without_request_id(item["body"].clone()), without_request_id(alone.json()), "{body}");
        if !alone.status.is_success() {
            assert_eq!(item["body"]["requestId"], response.header("x-request-id"), "the id of the batch request");
        }
        assert_eq!(batched.status(&order).await, single.status(&order).await, "{body}");
    }
    for product in [LAPTOP, PHONE] {
        assert_eq!(batched.stock(product).await, single.stock(product).await);
    }
}

#[tokio::test]
async fn rejects_a_bad_item_and_reserves_the_others() {
    let inventory = Shop::seeded().await.inventory().await;
    let good = [item(&order(1), &[(LAPTOP, 1)]), item(&order(3), &[(LAPTOP, 2)])];
    let of_order = |id: Value| json!({"orderId": id, "lines": lines(&[(PHONE, 1)])});
    let id = ["/orderId"];
    for (bad, blamed, why) in [
        (json!({"lines": lines(&[(PHONE, 1)])}), &id[..], "no order id"),
        (of_order(json!(null)), &id, "a null order id"),
        (of_order(json!(2)), &id, "a number for an order id"),
        (of_order(json!("{00000000-0000-0000-0000-000000000002}")), &id, "an order id in braces"),
        (of_order(json!("00000000000000000000000000000002")), &id, "an order id without hyphens"),
        (json!({"orderId": "x"}), &["/orderId", "/lines"], "two mistakes"),
        (json!({"orderId": order(2), "lines": []}), &["/lines"], "no lines"),
        (json!([]), &[""], "not an object"),
        (json!(null), &[""], "null"),
    ] {
        println!("{why}: {bad}");
        let shop = Shop::seeded().await;
        let response = shop.post("/reservations", json!([good[0], bad, good[1]])).await.expect(200);
        assert_eq!(statuses(&response), [201, 400, 201], "{why}: {response}");
        let problem = &response.json()[1]["body"];
        assert_eq!(problem["type"], "urn:problem-type:invalid-request", "{response}");
        assert_eq!(problem["error"], problem["detail"], "{response}");
        let pointers: Vec<&Value> = problem["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
        assert_eq!(pointers, blamed, "{why}: {response}");

        assert_eq!(shop.stock(LAPTOP).await, 47, "{why}");
        assert_eq!(shop.product(PHONE).await["stock"], inventory[1]["stock"], "{why}");
        assert_eq!(shop.status(&order(2)).await, "", "{why}");
    }
}

#[tokio::test]
async fn answers_items_for_one_order_in_sequence() {
    let shop = Shop::seeded().await;
    let (first, other) = (item(&order(1), &[(LAPTOP, 2)]), item(&order(1), &[(LAPTOP, 3)]));
    let response = shop.post("/reservations", json!([first, first, other, first])).await.expect(200);
    assert_eq!(statuses(&response), [201, 200, 409, 200], "{response}");
    let items = response.json();
    assert_eq!((&items[0]["body"], &items[0]["body"]), (&items[1]["body"], &items[3]["body"]));
    assert_eq!(items[2]["body"]["type"], "urn:problem-type:reservation-mismatch");
    assert_eq!(shop.stock(LAPTOP).await, 48, "reserved once");
}

#[tokio::test]
async fn gives_the_last_unit_to_the_first_of_two_items() {
    let shop = Shop::seeded().await;
    let lamp = shop.add("Lamp", 1).await;
    let batch = json!([item(&order(2), &[(lamp, 1)]), item(&order(1), &[(lamp, 1)])]);
    let response = shop.post("/reservations", batch).await.expect(200);
    assert_eq!(statuses(&response), [201, 409], "{response}");
    assert_eq!(response.json()[1]["body"]["errors"][0]["actual"], 0, "{response}");
    assert_eq!(shop.stock(lamp).await, 0);
}

#[tokio::test]
async fn accepts_up_to_128_items() {
    let shop = Shop::seeded().await;
    let batch = |length: u128| -> Value { (1..=length).map(|n| item(&order(n), &[(PHONE, 1)])).collect() };
    shop.post("/reservations", batch(129)).await.expect_invalid(&[""]);
    assert_eq!((shop.stock(PHONE).await, shop.status(&order(1)).await), (100, String::new()), "none of 129");

    let response = shop.post("/api/reservations", batch(128)).await.expect(200);
    let expected: Vec<u64> = (0..128).map(|n| if n < 100 { 201 } else { 409 }).collect();
    assert_eq!((statuses(&response), shop.stock(PHONE).await), (expected, 0), "{response}");
    let orders: Vec<Value> =
        response.json().as_array().unwrap()[..100].iter().map(|i| i["body"]["orderId"].clone()).collect();
    assert_eq!(orders, (1..=100).map(order).collect::<Vec<_>>(), "in the order of the items");
}

#[tokio::test]
async fn rejects_bodies_that_are_not_batches() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let one = item(&order(1), &[(LAPTOP, 1)]);
    for (body, why) in [
        (json!([]), "no items"),
        (one.clone(), "an item that is not in a list"),
        (json!({"reservations": [one]}), "a list in an object"),
        (json!("x"), "a string"),
        (json!(null), "null"),
    ] {
        println!("{why}: {body}");
        shop.post("/reservations", body).await.expect_invalid(&[""]);
    }
    for body in [String::new(), "[".to_owned(), format!("[{one}, NaN]"), format!("[{one}"), format!("[{one}] [{one}]")]
    {
        shop.send("POST", "/reservations", body).await.expect_problem(400, "malformed-json");
    }
    let text = shop.request("POST", "/reservations").bytes("text/plain", json!([one]).to_string()).send().await;
    text.expect_problem(415, "unsupported-media-type");
    let huge = json!([one, {"padding": "x".repeat(64 << 10)}]).to_string();
    shop.send("POST", "/reservations", huge).await.expect_problem(413, "payload-too-large");
    assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory, String::new()));
}

/// Releases the reservations of several orders in one request.
async fn release_many(shop: &Shop, orders: &[String]) -> Received {
    shop.delete(&format!("/reservations?ids={}", orders.join(","))).await
}

#[tokio::test]
async fn releases_each_reservation_like_a_request_of_its_own() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for n in 1..=4 {
        shop.reserve(&order(n), &[(LAPTOP, 1), (PHONE, 2)]).await.expect(201);
    }
    shop.release(&order(2)).await.expect(204);
    let several = [order(1), order(2), order(5), order(3), order(1)];
    for _ in 0..2 {
        let released = release_many(&shop, &several).await.expect(204);
        assert!(released.body.is_empty(), "{released}");
        assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (49, 98), "each once, and not the fourth");
    }
    for released in &several {
        assert_eq!(shop.status(released).await, "released");
        shop.reserve(released, &[(LAPTOP, 1), (PHONE, 2)]).await.expect_problem(409, "reservation-released");
    }
    assert_eq!(shop.status(&order(4)).await, "taken");
    shop.delete(&format!("/api/reservations?ids={}", order(4))).await.expect(204);
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn releases_up_to_128_reservations() {
    let shop = Shop::seeded().await;
    let orders: Vec<String> = (1..=129).map(order).collect();
    shop.reserve(&orders[127], &[(LAPTOP, 1)]).await.expect(201);
    expect_bad(release_many(&shop, &orders).await, &["ids"]);
    assert_eq!((shop.stock(LAPTOP).await, shop.status(&orders[0]).await), (49, String::new()), "none of 129");
    release_many(&shop, &orders[..128]).await.expect(204);
    assert_eq!(shop.stock(LAPTOP).await, 50);
    for released in &orders[..128] {
        assert_eq!(shop.status(released).await, "released");
    }
}

#[tokio::test]
async fn rejects_bad_queries_of_a_release() {
    let shop = Shop::seeded().await;
    shop.reserve(&order(1), &[(LAPTOP, 1)]).await.expect(201);
    let one = order(1);
    for (query, why) in [
        (String::new(), "no query"),
        ("?".to_owned(), "an empty query"),
        ("?ids=".to_owned(), "no ids"),
        (format!("?ids={one},"), "a gap"),
        (format!("?ids={one},x"), "a letter among the ids"),
        (format!("?ids=1,{one}"), "the id of a product"),
        (format!("?ids={one},%7B{one}%7D"), "an id in braces"),
        (format!("?ids={one},{}", one.replace('-', "")), "an id without hyphens"),
        (format!("?ids={one},%20{one}"), "a space"),
        (format!("?ids={one};{one}"), "separated by semicolons"),
        (format!("?ids={one}&ids={one}"), "twice"),
    ] {
        println!("{why}: {query}");
        expect_bad(shop.delete(&format!("/reservations{query}")).await, &["ids"]);
        assert_eq!((shop.stock(LAPTOP).await, shop.status(&one).await.as_str()), (49, "taken"), "{why}");
    }
    expect_bad(shop.delete(&format!("/reservations?id={one}")).await, &["ids", "id"]);
    assert_eq!(shop.status(&one).await, "taken");
}

#[tokio::test]
async fn uses_the_request_id_of_each_item_in_its_problem() {
    let shop = Shop::seeded().await;
    let ids = [json!("one"), json!("other"), json!("two words"), Value::Null];
    let named = |(n, id): (u32, &Value)| {
        let mut item = item(&order(n.into()), &[(UNKNOWN, 1)]);
        item["requestId"] = id.clone();
        item
    };
    let items: Vec<Value> = (1..).zip(&ids).map(named).collect();
    let sending = shop.request("POST", "/reservations").header("x-request-id", "all").json(&json!(items));
    let responses = sending.send().await.expect(200).json();
    let used: Vec<_> = responses.as_array().unwrap().iter().map(|item| item["body"]["requestId"].clone()).collect();
    assert_eq!(used, ["one", "other", "all", "all"]);
}

/// `shared` declares the bodies that order-service sends, and this service declares those that it reads.
#[tokio::test]
async fn reads_the_bodies_that_order_service_sends() {
    let shop = Shop::seeded().await;
    let body = |lines| serde_json::to_value(ReservationLines { lines }).unwrap();
    let lines = vec![Line { product_id: Id::new(LAPTOP).unwrap(), quantity: 2 }];
    shop.put(&format!("/reservations/{}", order(1)), body(lines.clone())).await.expect(201);

    let order_id: OrderId = order(2).parse().unwrap();
    let (request_id, traceparent) = (Some("one".to_owned()), None);
    let item = ReservationBatchItem { order_id, lines, request_id, traceparent };
    let response = shop.post("/reservations", serde_json::to_value([item]).unwrap()).await.expect(200);
    assert_eq!(statuses(&response), [201], "{response}");
    assert_eq!(shop.stock(LAPTOP).await, 46);
}
