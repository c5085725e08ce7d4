//! Products one by one: what there is at the start, and adding, reading and removing.

use jiff::Timestamp;
use serde_json::{Value, json};
use testing::Received;

use crate::support::{LAPTOP, NOTHING, PHONE, Shop, expect_bad, ids, order};

#[tokio::test]
async fn a_new_shop_has_laptops_and_phones() {
    let shop = Shop::open().await;
    let mut products = shop.get("/products").await.expect(200).json();
    for product in products.as_array_mut().unwrap() {
        let created_at = product.as_object_mut().unwrap().remove("createdAt").unwrap();
        assert!(created_at.as_str().unwrap().parse::<Timestamp>().is_ok(), "{created_at}");
    }
    let laptop = json!({"id": 1, "name": "Laptop", "price": 999.99, "stock": 50});
    let phone = json!({"id": 2, "name": "Phone", "price": 599, "stock": 100});
    assert_eq!(products, json!([laptop, phone]));
}

#[tokio::test]
async fn a_shop_that_is_not_to_be_filled_has_nothing() {
    let shop = Shop::empty().await;
    assert_eq!(shop.get("/products").await.expect(200).json(), json!([]));
    assert_eq!(shop.add("Lamp", 1).await, 1, "ids begin at 1");
}

#[tokio::test]
async fn a_product_is_added_and_found_where_the_answer_says() {
    let shop = Shop::open().await;
    for (id, family) in [(3, ""), (4, "/api")] {
        let before = chassis::now();
        let added = shop.post(&format!("{family}/products"), json!({"name": "Lamp", "price": 19.99, "stock": 7})).await;
        let added = added.expect(201);
        let mut product = added.json();
        let created_at = product.as_object_mut().unwrap().remove("createdAt").unwrap();
        assert_eq!(product, json!({"id": id, "name": "Lamp", "price": 19.99, "stock": 7}));
        let created_at = created_at.as_str().unwrap();
        assert!((before..=chassis::now()).contains(&created_at.parse().unwrap()), "{added}");
        assert!(created_at.ends_with('Z'), "in UTC: {added}");

        assert_eq!(added.header("location"), format!("{family}/products/{id}"));
        let found = shop.get(added.header("location")).await.expect(200);
        assert_eq!((&found.body, found.header("etag")), (&added.body, added.header("etag")));
        assert_eq!(ids(&shop.get("/products").await), (1..=id).collect::<Vec<i64>>(), "the newest is last");
    }
}

#[tokio::test]
async fn what_is_not_said_of_a_product_is_nothing() {
    let shop = Shop::open().await;
    for body in [json!({"name": "Gift"}), json!({"name": "Gift", "price": null, "stock": null})] {
        let added = shop.post("/products", body).await.expect(201).json();
        assert_eq!((&added["price"], &added["stock"]), (&json!(0), &json!(0)), "{added}");
    }
}

#[tokio::test]
async fn what_a_client_cannot_decide_is_ignored() {
    let shop = Shop::open().await;
    let body =
        json!({"id": 77, "name": "Lamp", "createdAt": "1999-12-31T00:00:00Z", "version": 9, "colour": {"r": []}});
    let added = shop.post("/products", body.clone()).await.expect(201).json();
    assert_eq!(added["id"], 3, "{added}");
    assert_ne!(added["createdAt"], body["createdAt"]);
    let members: Vec<&String> = added.as_object().unwrap().keys().collect();
    assert_eq!(members, ["createdAt", "id", "name", "price", "stock"]);
    let changed = shop.patch("/products/3", json!({"id": 1, "createdAt": "1999-12-31T00:00:00Z", "stock": 2})).await;
    let changed = changed.expect(200).json();
    assert_eq!((&changed["id"], &changed["createdAt"]), (&added["id"], &added["createdAt"]));
}

#[tokio::test]
async fn a_name_has_1_to_200_characters_and_a_stock_its_bounds() {
    let shop = Shop::open().await;
    for (name, stock) in [("x", 0), ("ж".repeat(200).as_str(), 1), ("🦀 \"a\" \\ % _", 1_000_000_000_000_i64)] {
        let body = json!({"name": name, "stock": stock});
        let added = shop.post("/products", body.clone()).await.expect(201).json();
        assert_eq!(json!({"name": added["name"], "stock": added["stock"]}), body);
        assert_eq!(shop.product(added["id"].as_i64().unwrap()).await, added);
    }
}

/// What no product can be, with what is to blame.
fn impossible() -> Vec<(Value, Vec<&'static str>, &'static str)> {
    let named = |name: Value| json!({"name": name, "price": 1, "stock": 1});
    let stocked = |stock: Value| json!({"name": "Lamp", "price": 1, "stock": stock});
    vec![
        (named(json!("")), vec!["/name"], "an empty name"),
        (named(json!("x".repeat(201))), vec!["/name"], "one character too many"),
        (named(json!("ж".repeat(201))), vec!["/name"], "the same in two bytes each"),
        (named(json!("La\u{0}mp")), vec!["/name"], "U+0000, which no database takes"),
        (named(json!("La\nmp")), vec!["/name"], "a line break"),
        (named(json!("La\u{85}mp")), vec!["/name"], "a control character beyond ASCII"),
        (named(json!(7)), vec!["/name"], "a number for a name"),
        (named(json!(["Lamp"])), vec!["/name"], "a list for a name"),
        (stocked(json!(-1)), vec!["/stock"], "less than nothing"),
        (stocked(json!(1_000_000_000_001_i64)), vec!["/stock"], "one unit too many"),
        (stocked(json!(i64::MAX)), vec!["/stock"], "the largest integer"),
        (stocked(json!(1_u64 << 63)), vec!["/stock"], "and one more"),
        (stocked(json!(1.5)), vec!["/stock"], "half a unit"),
        (stocked(json!("7")), vec!["/stock"], "digits in a string"),
        (stocked(json!(true)), vec!["/stock"], "yes"),
        (
            json!({"name": "", "price": -1, "stock": -1}),
            vec!["/name", "/price", "/stock"],
            "three mistakes, told at once",
        ),
        (json!([]), vec![""], "a list for a product"),
        (json!("Lamp"), vec![""], "a string for a product"),
        (json!(null), vec![""], "nothing for a product"),
    ]
}

#[tokio::test]
async fn what_no_product_can_be_is_not_added() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let unnamed =
        [(json!({"price": 1}), vec!["/name"], "no name"), (json!({"name": null}), vec!["/name"], "a null name")];
    for (body, blamed, why) in impossible().into_iter().chain(unnamed) {
        println!("{why}: {body}");
        shop.post("/products", body).await.expect_invalid(&blamed);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
}

#[tokio::test]
async fn what_no_product_can_be_no_product_becomes() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    let emptied = [
        (json!({"name": null}), vec!["/name"], "no product is without a name"),
        (json!({"price": null}), vec!["/price"], "or a price"),
        (json!({"stock": null}), vec!["/stock"], "or a stock"),
        (json!({"name": "New", "price": 5, "stock": null}), vec!["/stock"], "one mistake spoils the rest"),
    ];
    for (body, blamed, why) in impossible().into_iter().chain(emptied) {
        println!("{why}: {body}");
        shop.patch("/products/1", body).await.expect_invalid(&blamed);
        assert_eq!(shop.inventory().await, inventory, "{why}");
    }
}

#[tokio::test]
async fn what_is_no_json_is_no_product() {
    let shop = Shop::open().await;
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

#[track_caller]
fn is_no_product(answer: Received) {
    assert_eq!(answer.expect_problem(404, "not-found")["error"], "Product not found");
}

#[tokio::test]
async fn a_product_that_is_not_there_is_not_found() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    for path in [format!("/products/{NOTHING}"), format!("/api/products/{}", i64::MAX)] {
        is_no_product(shop.get(&path).await);
        is_no_product(shop.patch(&path, json!({"name": "Lamp"})).await);
        is_no_product(shop.delete(&path).await);
        is_no_product(shop.request("DELETE", &path).header("if-match", "*").send().await);
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn what_is_no_id_is_refused() {
    let shop = Shop::open().await;
    let inventory = shop.inventory().await;
    for (id, why) in [
        ("0", "ids begin at 1"),
        ("-1", "nothing is below"),
        ("01", "one thing has one address"),
        ("+1", "so no sign"),
        ("1.0", "whole numbers only"),
        ("1e0", "written as such"),
        ("9223372036854775808", "one too large"),
        ("99999999999999999999", "and much too large"),
        ("laptop", "a name is no id"),
        ("%31%20", "a space behind it"),
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
async fn a_removed_product_is_gone_for_good() {
    let shop = Shop::open().await;
    let phone = shop.product(PHONE).await;
    let removed = shop.delete("/products/1").await.expect(204);
    assert!(removed.body.is_empty(), "{removed}");
    is_no_product(shop.get("/products/1").await);
    is_no_product(shop.delete("/products/1").await);
    assert_eq!(shop.inventory().await, json!([phone]), "the other one stays");
    assert_eq!(ids(&shop.get("/products?ids=1,2").await), [2]);
    let refused = shop.take(&order(1), &[(LAPTOP, 1)]).await;
    refused.expect_problem(400, "product-not-found");
    shop.delete("/products/2").await.expect(204);
    assert_eq!(shop.add("Lamp", 1).await, 3, "no id is given twice, not even the last one");
}
