//! `GET /orders`: filters and pages.

use serde_json::{Value, json};

use crate::support::{ANN, BOB, PEN, World, id, ids, next_page, order};

/// Returns a world with 30 orders, of Ann and Bob in turn. Every third is confirmed, every fifth is cancelled.
async fn world_with_30_orders() -> (World, Vec<Value>) {
    let world = World::new().await;
    let mut orders = Vec::new();
    for n in 0..30 {
        let placed = world.place(order([ANN, BOB][n % 2], &[(PEN, 1)])).await;
        if n % 5 == 0 {
            world.step(id(&placed), "cancelled").await.expect(200);
        } else if n % 3 == 0 {
            world.step(id(&placed), "confirmed").await.expect(200);
        }
        orders.push(world.read(id(&placed)).await);
    }
    (world, orders)
}

#[tokio::test]
async fn lists_no_orders_at_first() {
    let world = World::new().await;
    for path in ["/orders", "/api/orders", "/orders?userId=1&status=pending"] {
        let response = world.client.get(path).await.expect(200);
        assert_eq!((response.json(), response.header("content-type")), (json!([]), "application/json"));
        assert!(!response.headers.contains_key("link"), "{response}");
    }
}

#[tokio::test]
async fn lists_orders_as_a_plain_array_oldest_first() {
    let (world, orders) = world_with_30_orders().await;
    for path in ["/orders", "/api/orders"] {
        assert_eq!(world.client.get(path).await.expect(200).json(), json!(orders));
    }
}

#[tokio::test]
async fn finds_exactly_the_matching_orders_page_by_page_for_each_filter() {
    let (world, orders) = world_with_30_orders().await;
    for user in [None, Some(ANN), Some(BOB), Some(3)] {
        for status in [None, Some("pending"), Some("confirmed"), Some("shipped"), Some("delivered"), Some("cancelled")]
        {
            let matches = |order: &&Value| {
                user.is_none_or(|user| order["userId"] == user) && status.is_none_or(|status| order["status"] == status)
            };
            let expected: Vec<&Value> = orders.iter().filter(matches).collect();
            let user = user.map(|user| format!("userId={user}"));
            let status = status.map(|status| format!("status={status}"));
            let filter = [user, status].into_iter().flatten().collect::<Vec<_>>().join("&");
            for orders in ["/orders", "/api/orders"] {
                let all = world.client.get(&format!("{orders}?{filter}")).await.expect(200);
                assert_eq!(all.json(), json!(expected), "{filter}");
                assert!(!all.headers.contains_key("link"), "{all}");
                for limit in [1, 4, expected.len().max(1), 1000] {
                    let first = format!("{orders}?limit={limit}&{filter}");
                    assert_eq!(
                        follow_links(&world, &first, limit).await,
                        expected.iter().copied().cloned().collect::<Vec<_>>()
                    );
                }
            }
        }
    }
}

/// Follows the links from `path` to the last page. Checks that every page except the last has a link, with the same path.
async fn follow_links(world: &World, path: &str, limit: usize) -> Vec<Value> {
    let (mut seen, mut next) = (Vec::new(), path.to_owned());
    while !next.is_empty() {
        let page = world.client.get(&next).await.expect(200);
        let rows = page.json().as_array().expect("a plain array").clone();
        assert!(rows.len() <= limit && (!rows.is_empty() || seen.is_empty()), "{page}");
        seen.extend(rows);
        next = next_page(&page);
        let path = path.split('?').next().expect("a path");
        assert!(next.is_empty() || next.starts_with(&format!("{path}?")), "{page}");
    }
    seen
}

#[tokio::test]
async fn returns_100_orders_per_page_by_default() {
    let world = World::new().await;
    let mut placed = Vec::new();
    for _ in 0..102 {
        placed.push(world.place(order(ANN, &[(PEN, 1)])).await);
    }
    let page = world.client.get("/orders?userId=1").await.expect(200);
    assert_eq!(page.json(), json!(placed[..100]));
    let next = next_page(&page);
    assert!(next.contains("userId=1"), "{next}");
    assert_eq!(world.client.get(&next).await.expect(200).json(), json!(placed[100..]));
    assert_eq!(world.client.get("/orders?limit=1000").await.expect(200).json(), json!(placed));
}

#[tokio::test]
async fn starts_a_page_after_any_id_even_one_outside_the_filter() {
    let (world, orders) = world_with_30_orders().await;
    let all = ids(&orders);
    let after = all[5]; // cancelled, and Bob's
    let listed = world.client.get(&format!("/orders?after={after}&userId=1&status=pending")).await.expect(200).json();
    let expected = orders[6..].iter().filter(|order| order["userId"] == ANN && order["status"] == "pending");
    assert_eq!(listed, json!(expected.collect::<Vec<_>>()));
    assert_eq!(world.client.get(&format!("/orders?after={}", all[29])).await.expect(200).json(), json!([]));
}

#[tokio::test]
async fn misses_no_order_while_orders_leave_the_filter() {
    let (world, orders) = world_with_30_orders().await;
    let pending: Vec<&str> = orders.iter().filter(|order| order["status"] == "pending").map(id).collect();
    let (mut seen, mut next) = (Vec::new(), "/orders?status=pending&limit=2".to_owned());
    while !next.is_empty() {
        let page = world.client.get(&next).await.expect(200);
        let rows = page.json().as_array().unwrap().clone();
        for order in &rows {
            world.step(id(order), "confirmed").await.expect(200);
        }
        seen.extend(rows.iter().map(|order| id(order).to_owned()));
        next = next_page(&page);
    }
    assert_eq!(seen, pending);
    assert_eq!(world.client.get("/orders?status=pending").await.expect(200).json(), json!([]));
}
