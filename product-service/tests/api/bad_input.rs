//! Bad input: bodies, ids and queries that are rejected, with every mistake named, and that change nothing.

use serde_json::{Value, json};

use crate::support::{LAPTOP, PHONE, Shop, expect_bad, lines, order};

/// Bodies that are not valid for a product: the body, the members to blame, and why.
fn bad_products() -> Vec<(Value, Vec<&'static str>, &'static str)> {
    let named = |name: Value| json!({"name": name, "price": 1, "stock": 1});
    let stocked = |stock: Value| json!({"name": "Lamp", "price": 1, "stock": stock});
    vec![
        (named(json!("")), vec!["/name"], "an empty name"),
        (named(json!("x".repeat(201))), vec!["/name"], "one character too many"),
        (named(json!("ж".repeat(201))), vec!["/name"], "one character too many, of two bytes each"),
        (named(json!("La\u{0}mp")), vec!["/name"], "U+0000, which PostgreSQL cannot store"),
        (named(json!("La\nmp")), vec!["/name"], "a line break"),
        (named(json!("La\u{85}mp")), vec!["/name"], "a control character beyond ASCII"),
        (named(json!(" \u{3000}\u{feff}")), vec!["/name"], "white space and an invisible character"),
        (named(json!("\u{3164}")), vec!["/name"], "a Hangul filler"),
        (named(json!(7)), vec!["/name"], "a number for a name"),
        (named(json!(["Lamp"])), vec!["/name"], "a list for a name"),
        (stocked(json!(-1)), vec!["/stock"], "a negative stock"),
        (stocked(json!(1_000_000_000_001_i64)), vec!["/stock"], "one unit too many"),
        (stocked(json!(i64::MAX)), vec!["/stock"], "the largest integer"),
        (stocked(json!(1_u64 << 63)), vec!["/stock"], "the largest integer plus one"),
        (stocked(json!(1.5)), vec!["/stock"], "half a unit"),
        (stocked(json!("7")), vec!["/stock"], "digits in a string"),
        (stocked(json!(true)), vec!["/stock"], "a boolean"),
        (json!({"name": "", "price": -1, "stock": -1}), vec!["/name", "/price", "/stock"], "three mistakes"),
        (json!([]), vec![""], "a list for a product"),
        (json!("Lamp"), vec![""], "a string for a product"),
        (json!(null), vec![""], "null for a product"),
    ]
}

#[tokio::test]
async fn rejects_a_new_product_with_bad_members() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let unnamed =
        [(json!({"price": 1}), vec!["/name"], "no name"), (json!({"name": null}), vec!["/name"], "a null name")];
    for (body, blamed, why) in bad_products().into_iter().chain(unnamed) {
        println!("{why}: {body}");
        shop.post("/products", body).await.expect_invalid(&blamed);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
}

#[tokio::test]
async fn rejects_a_change_with_bad_members() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let emptied = [
        (json!({"name": null}), vec!["/name"], "a product always has a name"),
        (json!({"price": null}), vec!["/price"], "and a price"),
        (json!({"stock": null}), vec!["/stock"], "and a stock"),
        (json!({"name": "New", "price": 5, "stock": null}), vec!["/stock"], "one mistake rejects the whole change"),
    ];
    for (body, blamed, why) in bad_products().into_iter().chain(emptied) {
        println!("{why}: {body}");
        shop.patch("/products/1", body).await.expect_invalid(&blamed);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
}

#[tokio::test]
async fn rejects_product_bodies_that_are_not_json() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for (method, path) in [("POST", "/products"), ("PATCH", "/products/1")] {
        for body in ["", "{", "{\"name\": \"Lamp\"", "{\"name\": Lamp}", "name=Lamp", "{} {}"] {
            shop.send(method, path, body).await.expect_problem(400, "malformed-json");
        }
        let form = shop.request(method, path).bytes("application/x-www-form-urlencoded", "name=Lamp").send().await;
        form.expect_problem(415, "unsupported-media-type");
        let huge = json!({"name": "Lamp", "padding": "x".repeat(64 << 10)}).to_string();
        shop.send(method, path, huge).await.expect_problem(413, "payload-too-large");
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn rejects_a_product_id_that_is_not_an_integer_from_1() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for (id, why) in [
        ("0", "ids begin at 1"),
        ("-1", "a negative number"),
        ("01", "a leading zero"),
        ("+1", "a sign"),
        ("1.0", "a fraction"),
        ("1e0", "an exponent"),
        ("9223372036854775808", "one above the largest id"),
        ("99999999999999999999", "far above the largest id"),
        ("laptop", "a name"),
        ("%31%20", "a space at the end"),
        ("%00", "U+0000"),
    ] {
        println!("{why}: {id}");
        let path = format!("/products/{id}");
        expect_bad(shop.get(&path).await, &["id"]);
        expect_bad(shop.patch(&path, json!({"stock": 0})).await, &["id"]);
        expect_bad(shop.delete(&path).await, &["id"]);
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn rejects_a_bad_product_query() {
    let shop = Shop::seeded().await;
    let too_many = format!("ids=1{}", ",1".repeat(128));
    for (query, parameter, why) in [
        ("limit=0", "limit", "an empty page"),
        ("limit=1001", "limit", "above the maximum, which is not applied silently"),
        ("limit=-1", "limit", "a negative number"),
        ("limit=1.5", "limit", "a fraction"),
        ("limit=", "limit", "no number"),
        ("limit=ten", "limit", "a word"),
        ("limit=99999999999999999999", "limit", "a number that does not fit"),
        ("limit=1&limit=1", "limit", "twice"),
        ("after=0", "after", "not an id"),
        ("after=x", "after", "a letter"),
        ("after=9223372036854775808", "after", "one above the largest id"),
        ("ids=", "ids", "no ids"),
        ("ids=1,,2", "ids", "a gap"),
        ("ids=1,2,", "ids", "a gap at the end"),
        ("ids=1,x", "ids", "a letter among the ids"),
        ("ids=0", "ids", "ids begin at 1"),
        ("ids=1,%202", "ids", "a space"),
        ("ids=1&ids=2", "ids", "twice"),
        (too_many.as_str(), "ids", "129 ids"),
        ("name=a&name=b", "name", "twice"),
    ] {
        println!("{why}: {query}");
        expect_bad(shop.get(&format!("/products?{query}")).await, &[parameter]);
    }
    expect_bad(shop.get("/products?limit=0&after=0&ids=").await, &["limit", "after", "ids"]);
}

#[tokio::test]
async fn rejects_unknown_query_parameters_of_every_call() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for (query, unknown) in [
        ("ids[]=2&ids[]=9", vec!["ids[]"]),
        ("colour=red&colour=blue&&=", vec!["colour", ""]),
        ("Name=lap&limit=0", vec!["limit", "Name"]),
    ] {
        expect_bad(shop.get(&format!("/products?{query}")).await, &unknown);
    }
    let problem = shop.get("/products?names=lap").await.expect_problem(400, "invalid-request");
    assert_eq!(problem["detail"], "names: is unknown; this call has limit, after, name and ids");
    let reservation = format!("/reservations/{}", order(1));
    for (method, path) in [
        ("POST", "/products"),
        ("GET", "/products/1"),
        ("PATCH", "/products/1"),
        ("DELETE", "/products/1"),
        ("PUT", &reservation),
        ("GET", &reservation),
        ("DELETE", &reservation),
        ("POST", "/reservations"),
        ("DELETE", "/reservations"),
    ] {
        for root in ["", "/api"] {
            let query = match (method, path) {
                ("DELETE", "/reservations") => format!("x=1&ids={}", order(1)),
                _ => "x=1".to_owned(),
            };
            let request = shop.request(method, &format!("{root}{path}?{query}"));
            expect_bad(request.json(&json!({"lines": lines(&[(LAPTOP, 1)])})).send().await, &["x"]);
        }
    }
    assert_eq!(shop.inventory().await, inventory);
    assert_eq!(shop.status(&order(1)).await, "", "no reservation, and no tombstone");
}

/// JSON Schema calls `1.0` an integer.
#[tokio::test]
async fn accepts_a_whole_number_in_each_of_its_forms() {
    let shop = Shop::seeded().await;
    for (n, (id, units)) in [("1", "1"), ("1.0", "1.0"), ("1e0", "0.1E1"), ("\"1\"", "10e-1")].into_iter().enumerate() {
        let body = format!(r#"{{"lines": [{{"productId": {id}, "quantity": {units}}}]}}"#);
        shop.send("PUT", &format!("/reservations/{}", order(n as u128)), &*body).await.expect(201);
        let item = format!(r#"[{{"orderId": "{}", {}]"#, order(10 + n as u128), &body[1..]);
        let answer = shop.send("POST", "/reservations", item).await.expect(200).json();
        assert_eq!(answer[0]["status"], 201, "{answer}");
        let added =
            shop.send("POST", "/products", format!(r#"{{"name": "Lamp", "stock": {units}}}"#)).await.expect(201);
        assert_eq!(added.json()["stock"], 1, "{units}");
        let changed = shop.send("PATCH", "/products/2", format!(r#"{{"stock": {units}}}"#)).await.expect(200);
        assert_eq!(changed.json()["stock"], 1, "{units}");
    }
    assert_eq!(shop.stock(LAPTOP).await, 50 - 8);
}

/// Bodies that are not valid for a reservation: the body, the members to blame, and why.
pub(crate) fn bad_reservations() -> Vec<(Value, Vec<&'static str>, &'static str)> {
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
        (json!({"lines": [1, [1, 1]]}), vec!["/lines/0", "/lines/1"], "lines that are not objects"),
        (json!({"lines": [{}]}), vec!["/lines/0/productId", "/lines/0/quantity"], "an empty line"),
        bad_line(units(json!(0)), "a quantity of zero"),
        bad_line(units(json!(-1)), "a negative quantity"),
        bad_line(units(json!(10_001)), "one unit too many"),
        bad_line(units(json!(4_294_967_297_u64)), "a number that wraps to 1 in 32 bits"),
        bad_line(units(json!(1.5)), "half a unit"),
        bad_line(units(json!("1")), "a string for a quantity"),
        bad_line(units(json!(null)), "a null quantity"),
        bad_line(units(json!([1])), "a list for a quantity"),
        bad_line(of(json!(0)), "ids begin at 1"),
        bad_line(of(json!(-1)), "a negative id"),
        bad_line(of(json!(1.5)), "a fraction for an id"),
        bad_line(of(json!(1_u64 << 63)), "one above the largest id"),
        bad_line(of(json!("Laptop")), "a name for an id"),
        bad_line(of(json!("01")), "a leading zero"),
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
            "a product twice, the second time as a string",
        ),
        (
            json!({"lines": [{"productId": 1, "quantity": 0}, {"productId": 2, "quantity": 1}, {"productId": 0}]}),
            vec!["/lines/0/quantity", "/lines/2/productId", "/lines/2/quantity"],
            "three mistakes in one response",
        ),
        (json!([{"productId": 1, "quantity": 1}]), vec![""], "only the lines"),
        (json!(7), vec![""], "a number"),
    ]
}

#[tokio::test]
async fn rejects_a_bad_reservation() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let path = format!("/reservations/{}", order(1));
    for (body, blamed, why) in bad_reservations() {
        println!("{why}: {body}");
        shop.put(&path, body).await.expect_invalid(&blamed);
        assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory.clone(), String::new()), "{why}");
    }
    for body in ["", "{\"lines\": [", "{\"lines\": [{\"productId\": 1, \"quantity\": NaN}]}", "lines"] {
        shop.send("PUT", &path, body).await.expect_problem(400, "malformed-json");
    }
    let valid = json!({"lines": lines(&[(LAPTOP, 1)])}).to_string();
    let text = shop.request("PUT", &path).bytes("text/plain", valid).send().await;
    text.expect_problem(415, "unsupported-media-type");
    assert_eq!((shop.inventory().await, shop.status(&order(1)).await), (inventory, String::new()));
}

#[tokio::test]
async fn rejects_an_order_id_that_is_not_a_hyphenated_uuid() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    let wanted = [(LAPTOP, 1)];
    for (id, why) in [
        ("1", "a number"),
        ("order", "a word"),
        ("019a2b3c4d5e7f608a9b0c1d2e3f4a5b", "without hyphens"),
        ("%7B019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b%7D", "in braces"),
        ("urn:uuid:019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "a URN"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5", "a digit short"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5bc", "a digit too many"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5g", "a letter that is not a digit"),
        ("019a2b3c4-d5e-7f60-8a9b-0c1d2e3f4a5b", "a hyphen in the wrong place"),
        ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5%20", "a space"),
        (
            "%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9%C3%A9",
            "36 bytes of é",
        ),
    ] {
        println!("{why}: {id}");
        expect_bad(shop.reserve(id, &wanted).await, &["orderId"]);
        expect_bad(shop.reservation(id).await, &["orderId"]);
        expect_bad(shop.release(id).await, &["orderId"]);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
    let (lower, upper) = ("019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b", "019A2B3C-4D5E-7F60-8A9B-0C1D2E3F4A5B");
    let reserved = shop.reserve(upper, &wanted).await.expect(201).json();
    assert_eq!(reserved["orderId"], lower, "upper case means the same digits");
    shop.reserve(lower, &wanted).await.expect(200);
}
