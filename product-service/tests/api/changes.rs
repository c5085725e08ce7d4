//! Changing a product, and the tags by which nobody overwrites what he has not seen.

use serde_json::{Value, json};

use crate::fakes::ShakyStore;
use crate::support::{LAPTOP, PHONE, Shop, order};

/// The tag of a product as it stands.
async fn tag(shop: &Shop, id: i64) -> String {
    let answer = shop.get(&format!("/products/{id}")).await.expect(200);
    assert!(answer.header("etag").starts_with('"'), "{answer}");
    answer.header("etag").to_owned()
}

#[tokio::test]
async fn a_change_is_of_the_members_that_are_given() {
    let shop = Shop::open().await;
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
    assert_eq!(changed.json(), expected, "two at once");
    assert_eq!(shop.patch("/products/1", json!({})).await.expect(200).json(), expected, "none");
    assert_eq!(shop.product(PHONE).await, phone, "of this product only");
}

#[tokio::test]
async fn a_tag_stands_for_what_a_product_is() {
    let shop = Shop::open().await;
    let first = tag(&shop, LAPTOP).await;
    assert_eq!(tag(&shop, LAPTOP).await, first);
    assert_ne!(tag(&shop, PHONE).await, first);

    let changed = shop.patch("/products/1", json!({"stock": 49})).await.expect(200);
    let second = changed.header("etag").to_owned();
    assert_eq!(tag(&shop, LAPTOP).await, second, "the answer to a change has the new one");
    assert_ne!(second, first);

    shop.take(&order(1), &[(LAPTOP, 1)]).await.expect(201);
    let third = tag(&shop, LAPTOP).await;
    assert_ne!(third, second, "a unit was taken");
    shop.release(&order(1)).await.expect(204);
    assert_ne!(tag(&shop, LAPTOP).await, third, "and came back");
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let shop = Shop::open().await;
    let tag = tag(&shop, LAPTOP).await;
    let ask = async |known: &str| shop.request("GET", "/products/1").header("if-none-match", known).send().await;
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let answer = ask(&known).await.expect(304);
        assert!(answer.body.is_empty() && answer.header("etag") == tag, "{known}: {answer}");
    }
    ask("\"other\"").await.expect(200);
    shop.patch("/products/1", json!({"stock": 1})).await.expect(200);
    assert_eq!(ask(&tag).await.expect(200).json()["stock"], 1, "it is another now");
}

#[tokio::test]
async fn a_change_or_removal_is_of_the_state_that_was_seen() {
    let shop = Shop::open().await;
    let stale = tag(&shop, LAPTOP).await;
    shop.take(&order(1), &[(LAPTOP, 1)]).await.expect(201);
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
async fn a_unit_taken_between_look_and_change_is_not_put_back() {
    let store = ShakyStore::open().await;
    let shop = Shop::over(store.clone());
    store.send_rivals(1);
    let change = shop.request("PATCH", "/products/1").header("if-match", "*").json(&json!({"price": 888}));
    let changed: Value = change.send().await.expect(200).json();
    assert_eq!((&changed["price"], &changed["stock"]), (&json!(888), &json!(49)), "{changed}");
    assert_eq!(shop.product(LAPTOP).await, changed);
}

#[tokio::test]
async fn a_unit_taken_between_look_and_change_is_a_change_too() {
    for method in ["PATCH", "DELETE"] {
        let store = ShakyStore::open().await;
        let shop = Shop::over(store.clone());
        let seen = tag(&shop, LAPTOP).await;
        store.send_rivals(1);
        let change = shop.request(method, "/products/1").header("if-match", &seen).json(&json!({"stock": 60}));
        change.send().await.expect_problem(412, "precondition-failed");
        assert_eq!(shop.stock(LAPTOP).await, 49, "{method}: the rival has its unit, and nothing else happened");
    }
}

#[tokio::test]
async fn a_product_whose_unit_is_taken_meanwhile_is_removed_all_the_same() {
    let store = ShakyStore::open().await;
    let shop = Shop::over(store.clone());
    store.send_rivals(1);
    shop.request("DELETE", "/products/1").header("if-match", "*").send().await.expect(204);
    shop.get("/products/1").await.expect_problem(404, "not-found");
}

#[tokio::test]
async fn who_changes_whatever_there_is_is_not_kept_from_it_by_takes() {
    let store = ShakyStore::open().await;
    let shop = Shop::over(store.clone());
    store.send_rivals(20);
    let changed = shop.patch("/products/1", json!({"price": 888})).await.expect(200).json();
    assert_eq!(changed["stock"], 50, "all twenty were quicker");
    shop.delete("/products/1").await.expect(204);
    shop.delete("/products/1").await.expect_problem(404, "not-found");
    shop.patch("/products/1", json!({"price": 888})).await.expect_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_change_the_same_state_one_succeeds() {
    let shop = Shop::open().await;
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
