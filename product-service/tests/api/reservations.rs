//! The reservation of one order: all units or none are reserved, and they are returned once.

use serde_json::{Value, json};

use crate::support::{LAPTOP, PHONE, Shop, UNKNOWN, lines, order};

/// Returns the expected response for [`WANTED`] in a seeded shop.
fn reserved(order: &str) -> Value {
    json!({"orderId": order, "lines": [
        {"productId": PHONE, "name": "Phone", "price": 599, "quantity": 3},
        {"productId": LAPTOP, "name": "Laptop", "price": 999.99, "quantity": 2},
    ]})
}

/// Three phones and two laptops.
const WANTED: [(i64, u32); 2] = [(PHONE, 3), (LAPTOP, 2)];

#[tokio::test]
async fn reserves_the_units_of_all_lines() {
    let shop = Shop::seeded().await;
    let response = shop.reserve(&order(1), &WANTED).await.expect(201);
    assert_eq!(response.json(), reserved(&order(1)), "the lines in the order of the request");
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (48, 97));
    shop.reserve(&order(2), &[(LAPTOP, 48)]).await.expect(201);
    assert_eq!(shop.stock(LAPTOP).await, 0, "down to the last unit");
}

#[tokio::test]
async fn returns_the_first_result_for_a_repeated_reservation() {
    let shop = Shop::seeded().await;
    let first = shop.reserve(&order(1), &WANTED).await.expect(201);
    let again = async |why: &str| {
        let second = shop.reserve(&order(1), &WANTED).await.expect(200);
        assert_eq!(second.body, first.body, "{why}");
    };
    again("immediately").await;
    shop.patch("/products/1", json!({"price": 1})).await.expect(200);
    again("after a change of the price").await;
    shop.patch("/products/1", json!({"name": "Laptop 2", "stock": 0})).await.expect(200);
    again("after a change of the name, and sold out").await;
    assert_eq!(shop.stock(LAPTOP).await, 0, "reserved once");
    shop.delete("/products/1").await.expect(204);
    again("after the removal of the product").await;
    let reordered = shop.reserve(&order(1), &[WANTED[1], WANTED[0]]).await.expect(200);
    assert_eq!(reordered.body, first.body, "the same lines in another order");
    assert_eq!(shop.stock(PHONE).await, 97);
}

#[tokio::test]
async fn names_each_unknown_product() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let rejected = shop.reserve(&order(1), &[(UNKNOWN, 1), (LAPTOP, 51), (i64::MAX, 2), (PHONE, 1)]).await;
    let problem = rejected.expect_problem(400, "product-not-found");
    assert_eq!(problem["error"], "Product not found");
    let pointers: Vec<&Value> = problem["errors"].as_array().unwrap().iter().map(|error| &error["pointer"]).collect();
    assert_eq!(
        pointers,
        ["/lines/0/productId", "/lines/2/productId"],
        "both unknown products, and not the short line: {problem}"
    );
    assert_eq!(shop.inventory().await, inventory, "all or nothing");
}

#[tokio::test]
async fn reports_the_units_left_for_each_short_line() {
    let shop = Shop::seeded().await;
    let lamp = shop.add("Lamp", 0).await;
    let inventory = shop.inventory().await;
    let rejected = shop.reserve(&order(1), &[(LAPTOP, 51), (PHONE, 100), (lamp, 1)]).await;
    let problem = rejected.expect_problem(409, "insufficient-stock");
    let error = |error: &Value| (error["pointer"].clone(), error["actual"].clone());
    let errors: Vec<_> = problem["errors"].as_array().unwrap().iter().map(error).collect();
    let short = [(json!("/lines/0/quantity"), json!(50)), (json!("/lines/2/quantity"), json!(0))];
    assert_eq!(errors, short, "each short line and no other: {problem}");
    assert_eq!(shop.inventory().await, inventory, "all or nothing");
}

#[tokio::test]
async fn leaves_the_id_free_after_a_rejection() {
    let shop = Shop::seeded().await;
    for (n, wanted, status, slug) in [
        (1, [(LAPTOP, 1), (PHONE, 101)], 409, "insufficient-stock"),
        (2, [(LAPTOP, 1), (UNKNOWN, 1)], 400, "product-not-found"),
        (3, [(LAPTOP, 1), (PHONE, 0)], 400, "invalid-request"),
    ] {
        shop.reserve(&order(n), &wanted).await.expect_problem(status, slug);
        let absent = shop.reservation(&order(n)).await.expect_problem(404, "not-found");
        assert_eq!(absent["error"], "Reservation not found", "{slug}");
        shop.reserve(&order(n), &[(LAPTOP, 1)]).await.expect(201);
    }
    assert_eq!(shop.stock(LAPTOP).await, 47);
}

#[tokio::test]
async fn rejects_other_lines_under_a_reserved_id() {
    let shop = Shop::seeded().await;
    let first = shop.reserve(&order(1), &WANTED).await.expect(201);
    let lamp = shop.add("Lamp", 10).await;
    let inventory = shop.inventory().await;
    for (wanted, why) in [
        (vec![(PHONE, 3)], "one line less"),
        (vec![(PHONE, 3), (LAPTOP, 2), (lamp, 1)], "one line more"),
        (vec![(PHONE, 2), (LAPTOP, 2)], "fewer units"),
        (vec![(PHONE, 4), (LAPTOP, 2)], "more units"),
        (vec![(PHONE, 2), (LAPTOP, 3)], "quantities swapped"),
        (vec![(PHONE, 3), (lamp, 2)], "another product"),
        (vec![(PHONE, 3), (UNKNOWN, 2)], "an unknown product"),
        (vec![(PHONE, 3), (LAPTOP, 10_000)], "more units than exist"),
    ] {
        println!("{why}");
        shop.reserve(&order(1), &wanted).await.expect_problem(409, "reservation-mismatch");
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
    assert_eq!(shop.reserve(&order(1), &WANTED).await.expect(200).body, first.body, "the reservation stays as it was");
}

#[tokio::test]
async fn returns_released_units_once() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    shop.reserve(&order(1), &WANTED).await.expect(201);
    shop.reserve(&order(2), &WANTED).await.expect(201);
    shop.release(&order(2)).await.expect(204);
    for _ in 0..3 {
        let released = shop.release(&order(1)).await.expect(204);
        assert!(released.body.is_empty(), "{released}");
        assert_eq!(shop.inventory().await, inventory);
    }
}

#[tokio::test]
async fn adds_released_units_to_the_current_stock() {
    let shop = Shop::seeded().await;
    shop.reserve(&order(1), &WANTED).await.expect(201);
    shop.delete("/products/1").await.expect(204);
    shop.patch("/products/2", json!({"stock": 1000, "price": 1})).await.expect(200);
    shop.release(&order(1)).await.expect(204);
    assert_eq!(shop.stock(PHONE).await, 1003);
    shop.get("/products/1").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn rejects_every_reservation_after_a_release() {
    let shop = Shop::seeded().await;
    shop.reserve(&order(1), &WANTED).await.expect(201);
    let never_reserved = &order(2);
    for released in [&order(1), never_reserved] {
        shop.release(released).await.expect(204);
        for wanted in [&WANTED[..], &[(LAPTOP, 1)], &[(UNKNOWN, 1)], &[(LAPTOP, 10_000)], &WANTED] {
            shop.reserve(released, wanted).await.expect_problem(409, "reservation-released");
        }
        shop.release(released).await.expect(204);
        shop.reserve(released, &WANTED).await.expect_problem(409, "reservation-released");
    }
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (50, 100));
}

#[tokio::test]
async fn returns_a_reservation_with_its_current_status() {
    let shop = Shop::seeded().await;
    let read = async |n| shop.reservation(&order(n)).await.expect(200).json();
    let absent = shop.reservation(&order(1)).await.expect_problem(404, "not-found");
    assert_eq!(absent["error"], "Reservation not found");

    shop.reserve(&order(1), &WANTED).await.expect(201);
    shop.patch("/products/1", json!({"name": "Laptop 2", "price": 1})).await.expect(200);
    let mut taken = reserved(&order(1));
    taken["status"] = json!("taken");
    assert_eq!(read(1).await, taken, "with the names and prices at the time of the reservation");
    shop.release(&order(1)).await.expect(204);
    taken["status"] = json!("released");
    assert_eq!(read(1).await, taken, "with the same lines");

    shop.release(&order(2)).await.expect(204);
    assert_eq!(read(2).await, json!({"orderId": order(2), "status": "released", "lines": []}), "never reserved");
}

#[tokio::test]
async fn releases_only_if_the_etag_matches() {
    let shop = Shop::seeded().await;
    shop.reserve(&order(1), &WANTED).await.expect(201);
    let path = format!("/reservations/{}", order(1));
    let taken = shop.reservation(&order(1)).await.expect(200).header("etag").to_owned();
    let unchanged = shop.request("GET", &path).header("if-none-match", &taken).send().await.expect(304);
    assert!(unchanged.body.is_empty());

    let release = async |tag: &str| shop.request("DELETE", &path).header("if-match", tag).send().await;
    release("\"other\"").await.expect_problem(412, "precondition-failed");
    assert_eq!(shop.reservation(&order(1)).await.json()["status"], "taken");
    release(&taken).await.expect(204);
    assert_eq!(shop.reservation(&order(1)).await.json()["status"], "released");
    release(&taken).await.expect_problem(412, "precondition-failed");
}

#[tokio::test]
async fn creates_nothing_when_if_match_fails() {
    let shop = Shop::seeded().await;
    let path = format!("/reservations/{}", order(1));
    for tag in ["*", "\"0123456789abcdef\""] {
        for method in ["GET", "PUT", "DELETE"] {
            let request = shop.request(method, &path).header("if-match", tag).json(&json!({"lines": lines(&WANTED)}));
            request.send().await.expect_problem(412, "precondition-failed");
        }
    }
    shop.reservation(&order(1)).await.expect_problem(404, "not-found");
    shop.reserve(&order(1), &WANTED).await.expect(201);
}

#[tokio::test]
async fn reserves_and_releases_only_if_the_preconditions_hold() {
    let shop = Shop::seeded().await;
    let path = format!("/reservations/{}", order(1));
    let call = async |method: &str, header: &'static str, tag: &str| {
        let request = shop.request(method, &path).header(header, tag).json(&json!({"lines": lines(&WANTED)}));
        request.send().await
    };
    call("PUT", "if-none-match", "*").await.expect(201);
    call("PUT", "if-none-match", "*").await.expect_problem(412, "precondition-failed");
    let taken = shop.reservation(&order(1)).await.header("etag").to_owned();
    for (header, tag) in [("if-none-match", "*"), ("if-none-match", &*taken), ("if-match", "\"other\"")] {
        for method in ["PUT", "DELETE"] {
            call(method, header, tag).await.expect_problem(412, "precondition-failed");
        }
    }
    call("PUT", "if-match", &taken).await.expect(200);
    call("PUT", "if-none-match", "\"other\"").await.expect(200);
    call("DELETE", "if-none-match", "\"other\"").await.expect(204);
    assert_eq!(shop.status(&order(1)).await, "released");
}

#[tokio::test]
async fn accepts_100_lines_and_10000_units_and_no_more() {
    let shop = Shop::seeded().await;
    let mut wanted = Vec::new();
    for n in 0..100 {
        wanted.push((shop.add(&format!("Thing {n}"), 10_000).await, if n == 99 { 10_000 } else { 1 }));
    }
    let reserved = shop.reserve(&order(1), &wanted).await.expect(201).json();
    assert_eq!(reserved["lines"].as_array().unwrap().len(), 100);
    for (product, quantity) in &wanted {
        assert_eq!(shop.stock(*product).await, 10_000 - i64::from(*quantity));
    }
    wanted.push((LAPTOP, 1));
    shop.reserve(&order(2), &wanted).await.expect_invalid(&["/lines"]);
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(wanted[0].0).await), (50, 9_999), "101 lines are too many");
}

#[tokio::test]
async fn accepts_string_ids_and_ignores_unknown_members() {
    let shop = Shop::seeded().await;
    let body = json!({"orderId": order(7), "id": 3, "lines": [
        {"productId": "2", "quantity": 3, "price": "cheap", "name": []},
        {"productId": 1, "quantity": 2, "id": null},
    ]});
    let response = shop.put(&format!("/reservations/{}", order(1)), body).await.expect(201);
    assert_eq!(response.json(), reserved(&order(1)), "ids as integers, for the order in the path");
    shop.reserve(&order(1), &WANTED).await.expect(200);
    assert_eq!(shop.status(&order(7)).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sells_the_last_unit_once() {
    let shop = Shop::seeded().await;
    let lamp = shop.add("Lamp", 1).await;
    let buyers = (0..20).map(|n| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.reserve(&order(n), &[(lamp, 1)]).await.status.as_u16() })
    });
    let mut outcomes = Vec::new();
    for buyer in buyers.collect::<Vec<_>>() {
        outcomes.push(buyer.await.unwrap());
    }
    outcomes.sort_unstable();
    assert_eq!((outcomes[0], &outcomes[1..]), (201, &[409; 19][..]));
    assert_eq!(shop.stock(lamp).await, 0);
}
