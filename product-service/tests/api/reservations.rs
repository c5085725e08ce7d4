//! The reservation of one order: taken whole or not at all, and given back once.

use serde_json::{Value, json};

use crate::support::{LAPTOP, NOTHING, PHONE, Shop, expect_bad, lines, order};

/// What a reservation of three phones and two laptops answers, from a shop that has just opened.
fn reserved(order: &str) -> Value {
    json!({"orderId": order, "lines": [
        {"productId": PHONE, "name": "Phone", "price": 599, "quantity": 3},
        {"productId": LAPTOP, "name": "Laptop", "price": 999.99, "quantity": 2},
    ]})
}

const WANTED: [(i64, u32); 2] = [(PHONE, 3), (LAPTOP, 2)];

#[tokio::test]
async fn the_units_of_all_lines_are_taken() {
    let shop = Shop::open().await;
    let taken = shop.take(&order(1), &WANTED).await.expect(201);
    assert_eq!(taken.json(), reserved(&order(1)), "the lines in the order asked");
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (48, 97));
    shop.take(&order(2), &[(LAPTOP, 48)]).await.expect(201);
    assert_eq!(shop.stock(LAPTOP).await, 0, "down to the last");
}

#[tokio::test]
async fn a_take_repeated_is_answered_as_the_first_time() {
    let shop = Shop::open().await;
    let first = shop.take(&order(1), &WANTED).await.expect(201);
    let again = async |why: &str| {
        let second = shop.take(&order(1), &WANTED).await.expect(200);
        assert_eq!(second.body, first.body, "{why}");
    };
    again("at once").await;
    shop.patch("/products/1", json!({"price": 1})).await.expect(200);
    again("though it is cheaper now").await;
    shop.patch("/products/1", json!({"name": "Laptop 2", "stock": 0})).await.expect(200);
    again("though it is sold out, and called something else").await;
    assert_eq!(shop.stock(LAPTOP).await, 0, "taken once");
    shop.delete("/products/1").await.expect(204);
    again("though the product is gone").await;
    let turned = shop.take(&order(1), &[WANTED[1], WANTED[0]]).await.expect(200);
    assert_eq!(turned.body, first.body, "the same lines in another order are the same");
    assert_eq!(shop.stock(PHONE).await, 97);
}

#[tokio::test]
async fn an_unknown_product_is_named() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let refused = shop.take(&order(1), &[(NOTHING, 1), (LAPTOP, 51), (i64::MAX, 2), (PHONE, 1)]).await;
    let problem = refused.expect_problem(400, "product-not-found");
    assert_eq!(problem["error"], "Product not found");
    let pointers: Vec<&Value> = problem["errors"].as_array().unwrap().iter().map(|error| &error["pointer"]).collect();
    assert_eq!(
        pointers,
        ["/lines/0/productId", "/lines/2/productId"],
        "each of them, and not the short one: {problem}"
    );
    assert_eq!(shop.inventory().await, inventory, "all or nothing");
}

#[tokio::test]
async fn too_little_stock_is_told_line_by_line_with_what_is_left() {
    let shop = Shop::open().await;
    let lamp = shop.add("Lamp", 0).await;
    let inventory = shop.inventory().await;
    let refused = shop.take(&order(1), &[(LAPTOP, 51), (PHONE, 100), (lamp, 1)]).await;
    let problem = refused.expect_problem(409, "insufficient-stock");
    let told = |error: &Value| (error["pointer"].clone(), error["actual"].clone());
    let told: Vec<_> = problem["errors"].as_array().unwrap().iter().map(told).collect();
    let short = [(json!("/lines/0/quantity"), json!(50)), (json!("/lines/2/quantity"), json!(0))];
    assert_eq!(told, short, "each short line and no other: {problem}");
    assert_eq!(shop.inventory().await, inventory, "all or nothing");
}

#[tokio::test]
async fn a_refused_take_leaves_its_id_free() {
    let shop = Shop::open().await;
    for (n, wanted, status, slug) in [
        (1, [(LAPTOP, 1), (PHONE, 101)], 409, "insufficient-stock"),
        (2, [(LAPTOP, 1), (NOTHING, 1)], 400, "product-not-found"),
        (3, [(LAPTOP, 1), (PHONE, 0)], 400, "invalid-request"),
    ] {
        shop.take(&order(n), &wanted).await.expect_problem(status, slug);
        let unknown = shop.reservation(&order(n)).await.expect_problem(404, "not-found");
        assert_eq!(unknown["error"], "Reservation not found", "{slug}");
        shop.take(&order(n), &[(LAPTOP, 1)]).await.expect(201);
    }
    assert_eq!(shop.stock(LAPTOP).await, 47);
}

#[tokio::test]
async fn other_lines_under_a_taken_id_are_refused() {
    let shop = Shop::open().await;
    let first = shop.take(&order(1), &WANTED).await.expect(201);
    let lamp = shop.add("Lamp", 10).await;
    let inventory = shop.inventory().await;
    for (wanted, why) in [
        (vec![(PHONE, 3)], "a line less"),
        (vec![(PHONE, 3), (LAPTOP, 2), (lamp, 1)], "a line more"),
        (vec![(PHONE, 2), (LAPTOP, 2)], "fewer units"),
        (vec![(PHONE, 4), (LAPTOP, 2)], "more units"),
        (vec![(PHONE, 2), (LAPTOP, 3)], "changed over"),
        (vec![(PHONE, 3), (lamp, 2)], "another product"),
        (vec![(PHONE, 3), (NOTHING, 2)], "one that does not exist"),
        (vec![(PHONE, 3), (LAPTOP, 10_000)], "more than there is"),
    ] {
        println!("{why}");
        shop.take(&order(1), &wanted).await.expect_problem(409, "reservation-mismatch");
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
    assert_eq!(shop.take(&order(1), &WANTED).await.expect(200).body, first.body, "what was taken stays taken");
}

#[tokio::test]
async fn the_units_are_given_back_once() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    shop.take(&order(1), &WANTED).await.expect(201);
    shop.take(&order(2), &WANTED).await.expect(201);
    shop.release(&order(2)).await.expect(204);
    for _ in 0..3 {
        let released = shop.release(&order(1)).await.expect(204);
        assert!(released.body.is_empty(), "{released}");
        assert_eq!(shop.inventory().await, inventory);
    }
}

#[tokio::test]
async fn the_units_go_back_to_what_has_become_of_the_products() {
    let shop = Shop::open().await;
    shop.take(&order(1), &WANTED).await.expect(201);
    shop.delete("/products/1").await.expect(204);
    shop.patch("/products/2", json!({"stock": 1000, "price": 1})).await.expect(200);
    shop.release(&order(1)).await.expect(204);
    assert_eq!(shop.stock(PHONE).await, 1003);
    shop.get("/products/1").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn what_was_released_can_never_be_taken_again() {
    let shop = Shop::open().await;
    shop.take(&order(1), &WANTED).await.expect(201);
    for released in [&order(1), &order(2)] {
        // The second was never seen before.
        shop.release(released).await.expect(204);
        for wanted in [&WANTED[..], &[(LAPTOP, 1)], &[(NOTHING, 1)], &[(LAPTOP, 10_000)], &WANTED] {
            shop.take(released, wanted).await.expect_problem(409, "reservation-released");
        }
        shop.release(released).await.expect(204);
        shop.take(released, &WANTED).await.expect_problem(409, "reservation-released");
    }
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(PHONE).await), (50, 100));
}

#[tokio::test]
async fn a_reservation_is_shown_as_it_stands() {
    let shop = Shop::open().await;
    let shown = async |n| shop.reservation(&order(n)).await.expect(200).json();
    let unknown = shop.reservation(&order(1)).await.expect_problem(404, "not-found");
    assert_eq!(unknown["error"], "Reservation not found");

    shop.take(&order(1), &WANTED).await.expect(201);
    shop.patch("/products/1", json!({"name": "Laptop 2", "price": 1})).await.expect(200);
    let mut taken = reserved(&order(1));
    taken["status"] = json!("taken");
    assert_eq!(shown(1).await, taken, "at the names and prices of then");
    shop.release(&order(1)).await.expect(204);
    taken["status"] = json!("released");
    assert_eq!(shown(1).await, taken, "with the lines that it had");

    shop.release(&order(2)).await.expect(204);
    assert_eq!(shown(2).await, json!({"orderId": order(2), "status": "released", "lines": []}), "never taken");
}

#[tokio::test]
async fn a_reservation_has_a_tag_and_is_released_only_as_it_was_seen() {
    let shop = Shop::open().await;
    shop.take(&order(1), &WANTED).await.expect(201);
    let path = format!("/reservations/{}", order(1));
    let taken = shop.reservation(&order(1)).await.expect(200).header("etag").to_owned();
    let known = shop.request("GET", &path).header("if-none-match", &taken).send().await.expect(304);
    assert!(known.body.is_empty());

    let release = async |tag: &str| shop.request("DELETE", &path).header("if-match", tag).send().await;
    release("\"other\"").await.expect_problem(412, "precondition-failed");
    assert_eq!(shop.reservation(&order(1)).await.json()["status"], "taken");
    release(&taken).await.expect(204);
    assert_eq!(shop.reservation(&order(1)).await.json()["status"], "released");
    release(&taken).await.expect_problem(412, "precondition-failed");
}

#[tokio::test]
async fn lines_may_be_1_to_100_of_1_to_10000_units_each() {
    let shop = Shop::open().await;
    let mut wanted = Vec::new();
    for n in 0..100 {
        wanted.push((shop.add(&format!("Thing {n}"), 10_000).await, if n == 99 { 10_000 } else { 1 }));
    }
    let taken = shop.take(&order(1), &wanted).await.expect(201).json();
    assert_eq!(taken["lines"].as_array().unwrap().len(), 100);
    for (product, quantity) in &wanted {
        assert_eq!(shop.stock(*product).await, 10_000 - i64::from(*quantity));
    }
    wanted.push((LAPTOP, 1));
    shop.take(&order(2), &wanted).await.expect_invalid(&["/lines"]);
    assert_eq!((shop.stock(LAPTOP).await, shop.stock(wanted[0].0).await), (50, 9_999), "101 lines are too many");
}

#[tokio::test]
async fn ids_in_a_body_may_be_strings_and_unknown_members_anything() {
    let shop = Shop::open().await;
    let body = json!({"orderId": order(7), "id": 3, "lines": [
        {"productId": "2", "quantity": 3, "price": "cheap", "name": []},
        {"productId": 1, "quantity": 2, "id": null},
    ]});
    let taken = shop.put(&format!("/reservations/{}", order(1)), body).await.expect(201);
    assert_eq!(taken.json(), reserved(&order(1)), "answered as integers, and for the order in the path");
    shop.take(&order(1), &WANTED).await.expect(200);
    assert_eq!(shop.status(&order(7)).await, "");
}

/// What cannot be taken, with what is to blame.
pub(crate) fn impossible() -> Vec<(Value, Vec<&'static str>, &'static str)> {
    let one = |product: Value, quantity: Value| json!({"lines": [{"productId": product, "quantity": quantity}]});
    let of = |product: Value| (one(product, json!(1)), vec!["/lines/0/productId"]);
    let units = |quantity: Value| (one(json!(LAPTOP), quantity), vec!["/lines/0/quantity"]);
    let bad_line = |(body, blamed): (Value, Vec<&'static str>), why| (body, blamed, why);
    vec![
        (json!({}), vec!["/lines"], "no lines"),
        (json!({"lines": null}), vec!["/lines"], "null lines"),
        (json!({"lines": []}), vec!["/lines"], "0 lines"),
        (json!({"lines": {"0": {"productId": 1, "quantity": 1}}}), vec!["/lines"], "an object of lines"),
        (json!({"lines": "1"}), vec!["/lines"], "a string of lines"),
        (json!({"lines": lines(&(1..=101).map(|id| (id, 1)).collect::<Vec<_>>())}), vec!["/lines"], "101 lines"),
        (json!({"lines": [1, [1, 1]]}), vec!["/lines/0", "/lines/1"], "lines that are no objects"),
        (json!({"lines": [{}]}), vec!["/lines/0/productId", "/lines/0/quantity"], "an empty line"),
        bad_line(units(json!(0)), "no units"),
        bad_line(units(json!(-1)), "units given away"),
        bad_line(units(json!(10_001)), "one unit too many"),
        bad_line(units(json!(4_294_967_297_u64)), "which is 1 in 32 bits"),
        bad_line(units(json!(1.5)), "half a unit"),
        bad_line(units(json!("1")), "a string of units"),
        bad_line(units(json!(null)), "null units"),
        bad_line(units(json!([1])), "a list of units"),
        bad_line(of(json!(0)), "ids begin at 1"),
        bad_line(of(json!(-1)), "nothing is below"),
        bad_line(of(json!(1.5)), "half a product"),
        bad_line(of(json!(1_u64 << 63)), "an id too large"),
        bad_line(of(json!("Laptop")), "a name for an id"),
        bad_line(of(json!("01")), "one thing has one id"),
        bad_line(of(json!("")), "an empty id"),
        bad_line(of(json!(null)), "a null id"),
        (
            json!({"lines": lines(&[(LAPTOP, 1), (PHONE, 1), (LAPTOP, 2)])}),
            vec!["/lines/2/productId"],
            "a product twice",
        ),
        (
            json!({"lines": [{"productId": 1, "quantity": 1}, {"productId": "1", "quantity": 1}]}),
            vec!["/lines/1/productId"],
            "the same, the second time as a string",
        ),
        (
            json!({"lines": [{"productId": 1, "quantity": 0}, {"productId": 2, "quantity": 1}, {"productId": 0}]}),
            vec!["/lines/0/quantity", "/lines/2/productId", "/lines/2/quantity"],
            "three mistakes, told at once",
        ),
        (json!([{"productId": 1, "quantity": 1}]), vec![""], "only the lines"),
        (json!(7), vec![""], "a number"),
    ]
}

#[tokio::test]
async fn what_cannot_be_taken_is_not() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let path = format!("/reservations/{}", order(1));
    for (body, blamed, why) in impossible() {
        println!("{why}: {body}");
        shop.put(&path, body).await.expect_invalid(&blamed);
        assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory.clone(), String::new()), "{why}");
    }
    for body in ["", "{\"lines\": [", "{\"lines\": [{\"productId\": 1, \"quantity\": NaN}]}", "lines"] {
        shop.send("PUT", &path, body).await.expect_problem(400, "malformed-json");
    }
    let text = shop.request("PUT", &path).bytes("text/plain", json!({"lines": lines(&WANTED)}).to_string());
    text.send().await.expect_problem(415, "unsupported-media-type");
    assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory, String::new()));
}

#[tokio::test]
async fn the_id_of_an_order_is_a_uuid_with_hyphens() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    for (id, why) in [
        ("1", "a number"),
        ("order", "a word"),
        ("019a2b3c4d5e7f608a9b0c1d2e3f4a5b", "without hyphens"),
        ("%7B019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b%7D", "in braces"),
        ("urn:uuid:019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "a URN"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5", "a digit short"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5bc", "a digit long"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5g", "no digit"),
        ("019a2b3c4-d5e-7f60-8a9b-0c1d2e3f4a5b", "a hyphen out of place"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5%20", "a space"),
        (
            "%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9",
            "36 bytes of é",
        ),
    ] {
        println!("{why}: {id}");
        expect_bad(shop.take(id, &WANTED).await, &["orderId"]);
        expect_bad(shop.reservation(id).await, &["orderId"]);
        expect_bad(shop.release(id).await, &["orderId"]);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
    let (small, large) = ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "019A2B3C-4D5E-7F60-8A9B-0C1D2E3F4A5B");
    let taken = shop.take(large, &WANTED).await.expect(201).json();
    assert_eq!(taken["orderId"], small, "capitals are the same digits");
    shop.take(small, &WANTED).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_unit_is_sold_once() {
    let shop = Shop::open().await;
    let lamp = shop.add("Lamp", 1).await;
    let buyers = (0..20).map(|n| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.take(&order(n), &[(lamp, 1)]).await.status.as_u16() })
    });
    let mut outcomes = Vec::new();
    for buyer in buyers.collect::<Vec<_>>() {
        outcomes.push(buyer.await.unwrap());
    }
    outcomes.sort_unstable();
    assert_eq!((outcomes[0], &outcomes[1..]), (201, &[409; 19][..]));
    assert_eq!(shop.stock(lamp).await, 0);
}
