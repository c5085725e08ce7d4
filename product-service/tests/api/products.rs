//! Single products: the seed, adding, reading and removing.

use jiff::Timestamp;
use serde_json::json;
use testing::Received;

use crate::support::{LAPTOP, PHONE, Shop, UNKNOWN, ids, order};

#[tokio::test]
async fn seeds_laptops_and_phones() {
    let shop = Shop::seeded().await;
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
async fn starts_empty_without_a_seed() {
    let shop = Shop::empty().await;
    assert_eq!(shop.get("/products").await.expect(200).json(), json!([]));
    assert_eq!(shop.add("Lamp", 1).await, 1, "ids begin at 1");
}

#[tokio::test]
async fn adds_a_product_and_returns_its_location() {
    let shop = Shop::seeded().await;
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
async fn defaults_price_and_stock_to_zero() {
    let shop = Shop::seeded().await;
    for body in [json!({"name": "Gift"}), json!({"name": "Gift", "price": null, "stock": null})] {
        let added = shop.post("/products", body).await.expect(201).json();
        assert_eq!((&added["price"], &added["stock"]), (&json!(0), &json!(0)), "{added}");
    }
}

#[tokio::test]
async fn ignores_unknown_and_read_only_members() {
    let shop = Shop::seeded().await;
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
async fn accepts_names_and_stocks_at_their_bounds() {
    let shop = Shop::seeded().await;
    for (name, stock) in [("x", 0), ("ж".repeat(200).as_str(), 1), ("🦀 \"a\" \\ % _", 1_000_000_000_000_i64)] {
        let body = json!({"name": name, "stock": stock});
        let added = shop.post("/products", body.clone()).await.expect(201).json();
        assert_eq!(json!({"name": added["name"], "stock": added["stock"]}), body);
        assert_eq!(shop.product(added["id"].as_i64().unwrap()).await, added);
    }
}

#[track_caller]
fn expect_not_found(response: Received) {
    assert_eq!(response.expect_problem(404, "not-found")["error"], "Product not found");
}

#[tokio::test]
async fn returns_404_for_an_unknown_product() {
    let shop = Shop::seeded().await;
    let inventory = shop.inventory().await;
    for path in [format!("/products/{UNKNOWN}"), format!("/api/products/{}", i64::MAX)] {
        expect_not_found(shop.get(&path).await);
        expect_not_found(shop.patch(&path, json!({"name": "Lamp"})).await);
        expect_not_found(shop.delete(&path).await);
        let expected = shop.request("DELETE", &path).header("if-match", "*").send().await;
        expected.expect_problem(412, "precondition-failed");
    }
    assert_eq!(shop.inventory().await, inventory);
}

#[tokio::test]
async fn removes_a_product_and_never_reuses_its_id() {
    let shop = Shop::seeded().await;
    let phone = shop.product(PHONE).await;
    let removed = shop.delete("/products/1").await.expect(204);
    assert!(removed.body.is_empty(), "{removed}");
    expect_not_found(shop.get("/products/1").await);
    expect_not_found(shop.delete("/products/1").await);
    assert_eq!(shop.inventory().await, json!([phone]), "the other product stays");
    assert_eq!(ids(&shop.get("/products?ids=1,2").await), [2]);
    let rejected = shop.reserve(&order(1), &[(LAPTOP, 1)]).await;
    rejected.expect_problem(400, "product-not-found");
    shop.delete("/products/2").await.expect(204);
    assert_eq!(shop.add("Lamp", 1).await, 3, "the id of the last product is not reused either");
}
