//! The way of one customer through the whole system, from registration to delivery.

use serde_json::{Value, json};
use system_tests::{System, eventually, order};

#[tokio::test]
async fn delivers_an_order_of_a_new_user() {
    let system = System::start().await;
    let account = json!({"username": "ada", "email": "ada@example.com", "password": "correct horse"});
    let ada = system.users.post("/users", account).await.expect(201).json();
    let kettle = system.add_product("Kettle", 24.90, 10).await;

    let placed = system.orders.post("/orders", order(id(&ada), kettle, 3)).await.expect(201);
    let location = placed.header("location").to_owned();
    let line = json!({"productId": kettle, "name": "Kettle", "quantity": 3, "price": 24.9});
    assert_eq!(placed.json()["products"], json!([line]), "{placed}");
    assert_eq!((&placed.json()["total"], &placed.json()["userId"]), (&json!(74.7), &ada["id"]), "{placed}");
    assert_eq!(system.stock(kettle).await, 7);

    for status in ["confirmed", "shipped", "delivered"] {
        let moved = system.orders.patch(&location, json!({"status": status})).await.expect(200);
        assert_eq!(moved.json()["status"], status, "{moved}");
        assert_eq!(system.orders.get(&location).await.expect(200).json(), moved.json());
    }
    let too_late = system.orders.patch(&location, json!({"status": "cancelled"})).await;
    too_late.expect_problem(409, "illegal-status-step");
    assert_eq!(system.stock(kettle).await, 7, "delivered units stay sold");
}

#[tokio::test]
async fn keeps_the_price_of_an_order_and_returns_the_stock_when_it_is_cancelled() {
    let system = System::start().await;
    let kettle = system.add_product("Kettle", 24.90, 10).await;
    let placed = system.orders.post("/orders", order(1, kettle, 4)).await.expect(201);
    let location = placed.header("location");

    system.products.patch(&format!("/products/{kettle}"), json!({"price": 30})).await.expect(200);
    assert_eq!(system.orders.get(location).await.json()["total"], json!(99.6));

    let cancelled = system.orders.patch(location, json!({"status": "cancelled"})).await.expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled", "{cancelled}");
    assert_eq!(eventually(10, || system.stock(kettle)).await, 10);
}

#[tokio::test]
async fn lists_orders_page_by_page_under_both_path_prefixes() {
    let system = System::start().await;
    let mut placed = Vec::new();
    for user in [1, 2, 1, 2, 1] {
        placed.push(system.orders.post("/api/orders", order(user, 1, 1)).await.expect(201).json());
    }

    for prefix in ["", "/api"] {
        let mut listed = Vec::new();
        let mut next = Some(format!("{prefix}/orders?limit=2"));
        while let Some(path) = next {
            let page = system.orders.get(&path).await.expect(200);
            listed.extend(page.json().as_array().cloned().unwrap());
            next = next_page(page.header("link"));
            assert!(next.iter().all(|next| next.starts_with(&format!("{prefix}/orders?"))), "{page}");
        }
        assert_eq!(listed, placed, "oldest first, each order once");

        let of_jane = system.orders.get(&format!("{prefix}/orders?userId=2")).await.expect(200);
        assert_eq!(of_jane.json(), json!([placed[1], placed[3]]));
        let one = system.orders.get(&format!("{prefix}/orders/{}", placed[0]["id"].as_str().unwrap())).await;
        assert_eq!(one.expect(200).json(), placed[0]);
    }
}

#[tokio::test]
async fn passes_the_users_on_from_product_service() {
    let system = System::start().await;
    for (path, next) in [("/users?limit=1", "/users?"), ("/api/users?limit=1", "/api/users?")] {
        let (own, passed_on) = (system.users.get(path).await.expect(200), system.products.get(path).await.expect(200));
        assert_eq!(passed_on.text, own.text);
        let link = next_page(passed_on.header("link"));
        assert!(link.as_ref().is_some_and(|link| link.starts_with(next)), "{passed_on}");
        let last = system.products.get(&link.unwrap()).await.expect(200);
        assert_eq!(last.json()[0]["name"], "Jane Smith", "{last}");
    }
}

fn id(thing: &Value) -> i64 {
    thing["id"].as_i64().expect("an id is an integer")
}

/// Returns the path in `Link: </orders?after=…&limit=2>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    Some(link.strip_prefix('<')?.strip_suffix(r#">; rel="next""#)?.to_owned())
}
