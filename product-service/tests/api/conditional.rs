//! Changes of a product, and the entity tags that prevent lost updates.

use serde_json::{Value, json};

use crate::fakes::FaultyStore;
use crate::support::{LAPTOP, PHONE, Shop, order};

/// Returns the current tag of a product.
async fn tag(shop: &Shop, id: i64) -> String {
    let response = shop.get(&format!("/products/{id}")).await.expect(200);
    assert!(response.header("etag").starts_with('"'), "{response}");
    response.header("etag").to_owned()
}

#[tokio::test]
async fn changes_only_the_given_members() {
    let shop = Shop::seeded().await;
    let phone = shop.product(PHONE).await;
    let mut expected = shop.product(LAPTOP).await;
    for (member, value) in [("price", json!(888.8)), ("name", json!("Laptop 2")), ("stock", json!(7))] {
        expected[member] = value.clone();
        let changed = shop.patch("/products/1", json!({member: value})).await.expect(200);
        assert_eq!(changed.json(), expected, "{member}");
        assert_eq!(shop.product(LAPTOP).await, expected, "{member}");
    }
    expected["price"] = json!(1);
    expected["stock"] = json!(0);
    let changed = shop.patch("/api/products/1", json!({"price": 1, "stock": 0})).await.expect(200);
    assert_eq!(changed.json(), expected, "two members");
    assert_eq!(shop.patch("/products/1", json!({})).await.expect(200).json(), expected, "no member");
    assert_eq!(shop.product(PHONE).await, phone, "the other product is unchanged");
}

#[tokio::test]
async fn changes_the_tag_with_every_change_of_the_product() {
    let shop = Shop::seeded().await;
    let first = tag(&shop, LAPTOP).await;
    assert_eq!(tag(&shop, LAPTOP).await, first);
    assert_ne!(tag(&shop, PHONE).await, first);

    let changed = shop.patch("/products/1", json!({"stock": 49})).await.expect(200);
    let second = changed.header("etag").to_owned();
    assert_eq!(tag(&shop, LAPTOP).await, second, "the response to a change has the new tag");
    assert_ne!(second, first);

    shop.reserve(&order(1), &[(LAPTOP, 1)]).await.expect(201);
    let third = tag(&shop, LAPTOP).await;
    assert_ne!(third, second, "a unit was reserved");
    shop.release(&order(1)).await.expect(204);
    assert_ne!(tag(&shop, LAPTOP).await, third, "and released");
}

#[tokio::test]
async fn returns_304_if_the_client_has_the_current_state() {
    let shop = Shop::seeded().await;
    let tag = tag(&shop, LAPTOP).await;
    let get = async |known: &str| shop.request("GET", "/products/1").header("if-none-match", known).send().await;
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let response = get(&known).await.expect(304);
        assert!(response.body.is_empty() && response.header("etag") == tag, "{known}: {response}");
    }
    get("\"other\"").await.expect(200);
    shop.patch("/products/1", json!({"stock": 1})).await.expect(200);
    assert_eq!(get(&tag).await.expect(200).json()["stock"], 1, "the product has changed");
}

#[tokio::test]
async fn changes_and_removes_only_if_the_tag_matches() {
    let shop = Shop::seeded().await;
    let stale = tag(&shop, LAPTOP).await;
    shop.reserve(&order(1), &[(LAPTOP, 1)]).await.expect(201);
    let current = tag(&shop, LAPTOP).await;
    let inventory = shop.inventory().await;
    for seen in [stale.clone(), format!("W/{current}"), format!("{stale}, \"other\""), "\"\"".to_owned()] {
        let change = shop.request("PATCH", "/products/1").header("if-match", &seen).json(&json!({"stock": 60}));
        change.send().await.expect_problem(412, "precondition-failed");
        let removal = shop.request("DELETE", "/products/1").header("if-match", &seen).send().await;
        removal.expect_problem(412, "precondition-failed");
        assert_eq!(shop.inventory().await, inventory, "{seen}");
    }

    let change = shop.request("PATCH", "/products/1").header("if-match", &current).json(&json!({"stock": 60}));
    let changed = change.send().await.expect(200);
    assert_eq!(shop.stock(LAPTOP).await, 60);
    let removal = |seen: &str| shop.request("DELETE", "/products/1").header("if-match", seen);
    removal(&current).send().await.expect_problem(412, "precondition-failed");
    removal(&format!("{current}, {}", changed.header("etag"))).send().await.expect(204);
    shop.get("/products/1").await.expect_problem(404, "not-found");

    let change = shop.request("PATCH", "/products/2").header("if-match", "*").json(&json!({"stock": 0}));
    change.send().await.expect(200);
    shop.request("DELETE", "/products/2").header("if-match", "*").send().await.expect(204);
}

#[tokio::test]
async fn keeps_a_reservation_made_between_read_and_change() {
    let store = FaultyStore::open().await;
    let shop = Shop::with_store(store.clone());
    store.add_rivals(1);
    let change = shop.request("PATCH", "/products/1").header("if-match", "*").json(&json!({"price": 888}));
    let changed: Value = change.send().await.expect(200).json();
    assert_eq!((&changed["price"], &changed["stock"]), (&json!(888), &json!(49)), "{changed}");
    assert_eq!(shop.product(LAPTOP).await, changed);
}

#[tokio::test]
async fn rejects_a_change_after_a_reservation_in_between() {
    for method in ["PATCH", "DELETE"] {
        let store = FaultyStore::open().await;
        let shop = Shop::with_store(store.clone());
        let seen = tag(&shop, LAPTOP).await;
        store.add_rivals(1);
        let change = shop.request(method, "/products/1").header("if-match", &seen).json(&json!({"stock": 60}));
        change.send().await.expect_problem(412, "precondition-failed");
        assert_eq!(shop.stock(LAPTOP).await, 49, "{method}: the rival has its unit, and nothing else changed");
    }
}

#[tokio::test]
async fn removes_any_version_despite_a_reservation_in_between() {
    let store = FaultyStore::open().await;
    let shop = Shop::with_store(store.clone());
    store.add_rivals(1);
    shop.request("DELETE", "/products/1").header("if-match", "*").send().await.expect(204);
    shop.get("/products/1").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn does_not_retry_an_unconditional_change_because_of_reservations() {
    let store = FaultyStore::open().await;
    let shop = Shop::with_store(store.clone());
    store.add_rivals(20);
    let changed = shop.patch("/products/1", json!({"price": 888})).await.expect(200).json();
    assert_eq!(changed["stock"], 50, "the change reads nothing first, so no rival comes in between");
    shop.delete("/products/1").await.expect(204);
    shop.delete("/products/1").await.expect_problem(404, "not-found");
    shop.patch("/products/1", json!({"price": 888})).await.expect_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn lets_one_of_many_concurrent_conditional_changes_win() {
    let shop = Shop::seeded().await;
    let seen = tag(&shop, LAPTOP).await;
    let clients = (0..20).map(|n| {
        let (shop, seen) = (shop.clone(), seen.clone());
        tokio::spawn(async move {
            let change = shop.request("PATCH", "/products/1").header("if-match", &seen);
            change.json(&json!({"stock": 1000 + n})).send().await.status.as_u16()
        })
    });
    let mut outcomes = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        outcomes.push(client.await.unwrap());
    }
    outcomes.sort_unstable();
    assert_eq!((outcomes[0], &outcomes[1..]), (200, &[412; 19][..]));
}
