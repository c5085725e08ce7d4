//! Several reservations in one call: each as if it had been asked for alone.

use serde_json::{Value, json};
use testing::Received;

use crate::reservations::impossible;
use crate::support::{LAPTOP, NOTHING, PHONE, Shop, expect_bad, lines, order};

/// One item of a batch.
fn take(order: &str, wanted: &[(i64, u32)]) -> Value {
    json!({"orderId": order, "lines": lines(wanted)})
}

/// The status of each item.
fn statuses(answer: &Received) -> Vec<u64> {
    let items = answer.json().as_array().cloned().unwrap_or_else(|| panic!("no list: {answer}"));
    items.iter().map(|item| item["status"].as_u64().expect("a status")).collect()
}

fn without_request_id(mut body: Value) -> Value {
    body.as_object_mut().expect("an object").remove("requestId");
    body
}

/// Orders of which one was taken before and one released, in a shop of 50 laptops and 100 phones.
async fn shop_with_a_past() -> Shop {
    let shop = Shop::open().await;
    shop.take(&order(1), &[(PHONE, 2), (LAPTOP, 1)]).await.expect(201);
    shop.release(&order(2)).await.expect(204);
    shop
}

/// Takes with every outcome that there is: their orders and bodies.
fn all_outcomes() -> Vec<(String, Value)> {
    let of = |n, wanted: &[(i64, u32)]| (order(n), json!({"lines": lines(wanted)}));
    let mut takes = vec![
        of(10, &[(LAPTOP, 40), (PHONE, 1)]),               // 201
        of(11, &[(LAPTOP, 10)]),                           // 409, for the one before has left 9
        of(1, &[(PHONE, 2), (LAPTOP, 1)]),                 // 200
        of(1, &[(PHONE, 2)]),                              // 409
        of(2, &[(PHONE, 1)]),                              // 409
        of(12, &[(PHONE, 1), (NOTHING, 1)]),               // 400
        of(13, &[(PHONE, 200), (LAPTOP, 1), (LAPTOP, 1)]), // 400
        of(14, &[(PHONE, 200), (LAPTOP, 200)]),            // 409
        of(10, &[(PHONE, 1), (LAPTOP, 40)]),               // 200
        of(10, &[(PHONE, 1), (LAPTOP, 41)]),               // 409
        of(15, &[(LAPTOP, 9)]),                            // 201
    ];
    // Of those that are no objects, nothing says whose they are.
    let bad = impossible().into_iter().map(|(body, ..)| body).filter(Value::is_object);
    takes.extend(bad.zip(20..).map(|(body, n)| (order(n), body)));
    takes.push(of(16, &[(PHONE, 97)])); // 201
    takes
}

#[tokio::test]
async fn each_is_answered_as_its_own_call_would_be() {
    let (together, single) = (shop_with_a_past().await, shop_with_a_past().await);
    let takes = all_outcomes();
    let batch = takes.iter().map(|(order, body)| {
        let mut item = body.clone();
        item["orderId"] = json!(order);
        item
    });
    let answer = together.post("/reservations", batch.collect()).await.expect(200);
    assert_eq!(statuses(&answer)[..11], [201, 409, 200, 409, 409, 400, 400, 409, 200, 409, 201], "{answer}");
    assert_eq!(statuses(&answer).last(), Some(&201), "nothing of what stands before it was lost or taken twice");

    let items = answer.json().as_array().cloned().unwrap();
    assert_eq!(items.len(), takes.len(), "{answer}");
    for ((order, body), item) in takes.into_iter().zip(items) {
        let alone = single.put(&format!("/reservations/{order}"), body.clone()).await;
        assert_eq!(item["status"], alone.status.as_u16(), "{body}");
        assert_eq!(without_request_id(item["body"].clone()), without_request_id(alone.json()), "{body}");
        if !alone.status.is_success() {
            assert_eq!(item["body"]["requestId"], answer.header("x-request-id"), "its own is that of the call");
        }
        assert_eq!(together.status(&order).await, single.status(&order).await, "{body}");
    }
    for product in [LAPTOP, PHONE] {
        assert_eq!(together.stock(product).await, single.stock(product).await);
    }
}

#[tokio::test]
async fn one_that_is_bad_does_not_touch_the_others() {
    let inventory = Shop::open().await.inventory().await;
    let good = [take(&order(1), &[(LAPTOP, 1)]), take(&order(3), &[(LAPTOP, 2)])];
    let of_order = |id: Value| json!({"orderId": id, "lines": lines(&[(PHONE, 1)])});
    let id = ["/orderId"];
    for (bad, blamed, why) in [
        (json!({"lines": lines(&[(PHONE, 1)])}), &id[..], "no order"),
        (of_order(json!(null)), &id, "a null order"),
        (of_order(json!(2)), &id, "a number for an order"),
        (of_order(json!("{00000000-0000-0000-0000-000000000002}")), &id, "an order in braces"),
        (of_order(json!("00000000000000000000000000000002")), &id, "an order without hyphens"),
        (json!({"orderId": "x"}), &["/orderId", "/lines"], "two mistakes"),
        (json!({"orderId": order(2), "lines": []}), &["/lines"], "no lines"),
        (json!([]), &[""], "no object"),
        (json!(null), &[""], "nothing"),
    ] {
        println!("{why}: {bad}");
        let shop = Shop::open().await;
        let answer = shop.post("/reservations", json!([good[0], bad, good[1]])).await.expect(200);
        assert_eq!(statuses(&answer), [201, 400, 201], "{why}: {answer}");
        let problem = &answer.json()[1]["body"];
        assert_eq!(problem["type"], "urn:problem-type:invalid-request", "{answer}");
        assert_eq!(problem["error"], problem["detail"], "{answer}");
        let pointers: Vec<&Value> = problem["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
        assert_eq!(pointers, blamed, "{why}: {answer}");

        assert_eq!(shop.stock(LAPTOP).await, 47, "{why}");
        assert_eq!(shop.product(PHONE).await["stock"], inventory[1]["stock"], "{why}");
        assert_eq!(shop.status(&order(2)).await, "", "{why}");
    }
}

#[tokio::test]
async fn two_for_the_same_order_are_one_after_the_other() {
    let shop = Shop::open().await;
    let (first, other) = (take(&order(1), &[(LAPTOP, 2)]), take(&order(1), &[(LAPTOP, 3)]));
    let answer = shop.post("/reservations", json!([first, first, other, first])).await.expect(200);
    assert_eq!(statuses(&answer), [201, 200, 409, 200], "{answer}");
    let items = answer.json();
    assert_eq!((&items[0]["body"], &items[0]["body"]), (&items[1]["body"], &items[3]["body"]));
    assert_eq!(items[2]["body"]["type"], "urn:problem-type:reservation-mismatch");
    assert_eq!(shop.stock(LAPTOP).await, 48, "taken once");
}

#[tokio::test]
async fn two_for_the_last_unit_and_the_first_gets_it() {
    let shop = Shop::open().await;
    let lamp = shop.add("Lamp", 1).await;
    let batch = json!([take(&order(2), &[(lamp, 1)]), take(&order(1), &[(lamp, 1)])]);
    let answer = shop.post("/reservations", batch).await.expect(200);
    assert_eq!(statuses(&answer), [201, 409], "{answer}");
    assert_eq!(answer.json()[1]["body"]["errors"][0]["actual"], 0, "{answer}");
    assert_eq!(shop.stock(lamp).await, 0);
}

#[tokio::test]
async fn a_batch_has_1_to_128_takes() {
    let shop = Shop::open().await;
    let batch = |length: u128| -> Value { (1..=length).map(|n| take(&order(n), &[(PHONE, 1)])).collect() };
    let answer = shop.post("/reservations", batch(129)).await;
    answer.expect_invalid(&[""]);
    assert_eq!((shop.stock(PHONE).await, shop.status(&order(1)).await), (100, String::new()), "none of 129");

    let answer = shop.post("/api/reservations", batch(128)).await.expect(200);
    let expected: Vec<u64> = (0..128).map(|n| if n < 100 { 201 } else { 409 }).collect();
    assert_eq!((statuses(&answer), shop.stock(PHONE).await), (expected, 0), "{answer}");
    let orders: Vec<Value> =
        answer.json().as_array().unwrap()[..100].iter().map(|i| i["body"]["orderId"].clone()).collect();
    assert_eq!(orders, (1..=100).map(order).collect::<Vec<_>>(), "in the order asked");
}

#[tokio::test]
async fn what_is_no_batch_is_refused() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let one = take(&order(1), &[(LAPTOP, 1)]);
    for (body, why) in [
        (json!([]), "no takes"),
        (one.clone(), "a take that is not in a list"),
        (json!({"reservations": [one]}), "a list in an object"),
        (json!("x"), "a string"),
        (json!(null), "nothing"),
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

/// Releases several orders in one call.
async fn release(shop: &Shop, orders: &[String]) -> Received {
    shop.delete(&format!("/reservations?ids={}", orders.join(","))).await
}

#[tokio::test]
async fn several_are_released_each_as_by_its_own_call() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    for n in 1..=4 {
        shop.take(&order(n), &[(LAPTOP, 1), (PHONE, 2)]).await.expect(201);
    }
    shop.release(&order(2)).await.expect(204);
    let several = [order(1), order(2), order(5), order(3), order(1)];
    for _ in 0..2 {
        let released = release(&shop, &several).await.expect(204);
        assert!(released.body.is_empty(), "{released}");
        assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (49, 98), "each once, and not the fourth");
    }
    for gone in &several {
        assert_eq!(shop.status(gone).await, "released");
        shop.take(gone, &[(LAPTOP, 1), (PHONE, 2)]).await.expect_problem(409, "reservation-released");
    }
    assert_eq!(shop.status(&order(4)).await, "taken");
    shop.delete(&format!("/api/reservations?ids={}", order(4))).await.expect(204);
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn up_to_128_are_released_in_one_call() {
    let shop = Shop::open().await;
    let orders: Vec<String> = (1..=129).map(order).collect();
    shop.take(&orders[127], &[(LAPTOP, 1)]).await.expect(201);
    expect_bad(release(&shop, &orders).await, &["ids"]);
    assert_eq!((shop.stock(LAPTOP).await, shop.status(&orders[0]).await), (49, String::new()), "none of 129");
    release(&shop, &orders[..128]).await.expect(204);
    assert_eq!(shop.stock(LAPTOP).await, 50);
    for released in &orders[..128] {
        assert_eq!(shop.status(released).await, "released");
    }
}

#[tokio::test]
async fn what_does_not_say_what_to_release_is_refused() {
    let shop = Shop::open().await;
    shop.take(&order(1), &[(LAPTOP, 1)]).await.expect(201);
    let one = order(1);
    for (query, why) in [
        (String::new(), "nothing"),
        ("?".to_owned(), "an empty query"),
        (format!("?id={one}"), "another parameter"),
        ("?ids=".to_owned(), "no ids"),
        (format!("?ids={one},"), "a gap"),
        (format!("?ids={one},x"), "junk"),
        (format!("?ids=1,{one}"), "the id of a product"),
        (format!("?ids={one},%7B{one}%7D"), "an id in braces"),
        (format!("?ids={one},{}", one.replace('-', "")), "an id without hyphens"),
        (format!("?ids={one},%20{one}"), "a space"),
        (format!("?ids={one};{one}"), "parted by something else"),
        (format!("?ids={one}&ids={one}"), "twice"),
    ] {
        println!("{why}: {query}");
        expect_bad(shop.delete(&format!("/reservations{query}")).await, &["ids"]);
        assert_eq!((shop.stock(LAPTOP).await, shop.status(&one).await.as_str()), (49, "taken"), "{why}");
    }
}

#[tokio::test]
async fn each_is_told_what_went_wrong_by_the_id_of_its_own_request() {
    let shop = Shop::open().await;
    let ids = [json!("one"), json!("other"), json!("two words"), Value::Null];
    let named = |(n, id): (u32, &Value)| {
        let mut take = take(&order(n.into()), &[(NOTHING, 1)]);
        take["requestId"] = id.clone();
        take
    };
    let takes: Vec<Value> = (1..).zip(&ids).map(named).collect();
    let sending = shop.request("POST", "/reservations").header("x-request-id", "all").json(&json!(takes));
    let answers = sending.send().await.expect(200).json();
    let told: Vec<_> = answers.as_array().unwrap().iter().map(|answer| answer["body"]["requestId"].clone()).collect();
    assert_eq!(told, ["one", "other", "all", "all"]);
}
