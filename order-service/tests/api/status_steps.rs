//! `PATCH /orders/{id}`: status steps.

use std::sync::Arc;

use serde_json::{Value, json};
use testing::Received;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::fakes::StubBehaviour;
use crate::flaky_store::FlakyStore;
use crate::support::{ANN, HOUR, LAPTOP, Timeouts, World, id, order, response_of, spawn};

const ALL: [&str; 5] = ["pending", "confirmed", "shipped", "delivered", "cancelled"];

/// The legal steps.
const LEGAL: [(&str, &str); 5] = [
    ("pending", "confirmed"),
    ("confirmed", "shipped"),
    ("shipped", "delivered"),
    ("pending", "cancelled"),
    ("confirmed", "cancelled"),
];

/// Places an order of five laptops and moves it to this status.
pub(crate) async fn order_with_status(world: &World, status: &str) -> Value {
    let mut placed = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    let steps: &[&str] = match status {
        "pending" => &[],
        "confirmed" => &["confirmed"],
        "shipped" => &["confirmed", "shipped"],
        "delivered" => &["confirmed", "shipped", "delivered"],
        _ => &["cancelled"],
    };
    for status in steps {
        placed = world.step(id(&placed), status).await.expect(200).json();
    }
    assert_eq!(placed["status"], status);
    placed
}

#[tokio::test]
async fn allows_exactly_five_status_steps() {
    for from in ALL {
        for to in ALL {
            println!("{from} to {to}");
            let world = World::new().await;
            let before = order_with_status(&world, from).await;
            let response = world.step(id(&before), to).await;
            let now = world.read(id(&before)).await;
            if from == to {
                assert_eq!(
                    (response.expect(200).json(), &now),
                    (before.clone(), &before),
                    "a repeated step changes nothing"
                );
            } else if LEGAL.contains(&(from, to)) {
                assert_eq!(response.expect(200).json(), now);
                let mut expected = before.clone();
                expected["status"] = json!(to);
                assert_eq!(now, expected, "only the status changes");
            } else {
                response.expect_problem(409, "illegal-status-step");
                assert_eq!(now, before);
            }
            assert_eq!(world.orders().await, std::slice::from_ref(&now));
            world.wait_until_settled().await;
            let (status, stock) = if now["status"] == "cancelled" { ("released", 50) } else { ("taken", 45) };
            assert_eq!((world.products.status(id(&before)), world.products.stock(LAPTOP)), (status, stock));
        }
    }
}

#[tokio::test]
async fn accepts_status_steps_at_the_root_and_under_api() {
    let world = World::new().await;
    let placed = order_with_status(&world, "pending").await;
    for (orders, status) in [("/api/orders", "confirmed"), ("/orders", "shipped")] {
        let path = format!("{orders}/{}", id(&placed));
        let response = world.client.patch(&path, json!({"status": status, "total": 0, "userId": 2})).await.expect(200);
        let json = response.json();
        assert_eq!((&json["status"], &json["total"], &json["userId"]), (&json!(status), &placed["total"], &json!(ANN)));
        assert_eq!(response.header("etag"), world.client.get(&path).await.header("etag"));
    }
}

#[tokio::test]
async fn shows_a_cancelled_order_immediately_before_its_units_are_back() {
    let world = World::new().await;
    world.products.release.set(StubBehaviour::Hanging);
    let placed = order_with_status(&world, "pending").await;
    let cancelled = world.step(id(&placed), "cancelled").await.expect(200);
    world.products.release.wait_for_calls(1).await;
    let read = world.client.get(&format!("/orders/{}", id(&placed))).await.expect(200);
    assert_eq!((read.json(), read.header("etag")), (cancelled.json(), cancelled.header("etag")));
    let listed = world.client.get("/orders?status=cancelled").await.expect(200).json();
    assert_eq!(listed, json!([cancelled.json()]));
    assert_eq!(world.products.stock(LAPTOP), 45);
    for status in ALL.into_iter().filter(|status| *status != "cancelled") {
        world.step(id(&placed), status).await.expect_problem(409, "illegal-status-step");
    }
    assert_eq!(world.step(id(&placed), "cancelled").await.expect(200).json(), cancelled.json());
    world.products.release.set(StubBehaviour::Normal);
    world.wait_until_settled().await;
    let after = world.client.get(&format!("/orders/{}", id(&placed))).await.expect(200);
    assert_eq!(
        (after.json(), after.header("etag")),
        (cancelled.json(), cancelled.header("etag")),
        "clients do not see the end of the release"
    );
    assert_eq!(world.products.stock(LAPTOP), 50);
}

#[tokio::test]
async fn returns_404_for_an_unknown_order() {
    let world = World::new().await;
    order_with_status(&world, "pending").await;
    for unknown in [Uuid::now_v7(), Uuid::nil(), Uuid::max()] {
        let path = format!("/orders/{unknown}");
        assert_eq!(world.client.get(&path).await.expect_problem(404, "not-found")["error"], "Order not found");
        for status in ALL {
            world.client.patch(&path, json!({"status": status})).await.expect_problem(404, "not-found");
        }
        let change = world.client.request("PATCH", &path).header("if-match", "*").json(&json!({"status": "cancelled"}));
        change.send().await.expect_problem(412, "precondition-failed");
    }
}

/// Returns a world with a confirmed order, where `count` status steps wait for each other after they have read it.
async fn world_with_concurrent_steps(count: usize) -> (World, Value) {
    let store = Arc::new(FlakyStore::default());
    let world = World::over(store.clone(), Timeouts { call: HOUR, order: HOUR }).await;
    let confirmed = order_with_status(&world, "confirmed").await;
    store.synchronize_steps(count);
    (world, confirmed)
}

/// Requests a status step in a task of its own.
fn spawn_step(world: &World, path: &str, status: &str) -> JoinHandle<Received> {
    spawn(world.client.request("PATCH", path).json(&json!({"status": status})))
}

#[tokio::test]
async fn accepts_one_of_many_equal_concurrent_steps() {
    for status in ["shipped", "cancelled"] {
        for (if_match, others) in [(true, 412), (false, 200)] {
            let (world, confirmed) = world_with_concurrent_steps(10).await;
            let path = format!("/orders/{}", id(&confirmed));
            let tag = world.client.get(&path).await.header("etag").to_owned();
            let request = || {
                let request = world.client.request("PATCH", &path).json(&json!({"status": status}));
                if if_match { request.header("if-match", &tag) } else { request }
            };
            let mut statuses = Vec::new();
            for request in (0..10).map(|_| spawn(request())).collect::<Vec<_>>() {
                statuses.push(response_of(request).await.status.as_u16());
            }
            statuses.sort_unstable();
            assert_eq!(statuses[0], 200, "{statuses:?}");
            assert!(statuses[1..].iter().all(|status| *status == others), "{statuses:?}");
            world.wait_until_settled().await;
            assert_eq!(world.products.stock(LAPTOP), if status == "shipped" { 45 } else { 50 }, "released once");
        }
    }
}

#[tokio::test]
async fn ships_or_cancels_an_order_and_never_both() {
    for pair in [["shipped", "cancelled"], ["cancelled", "shipped"]] {
        let (world, confirmed) = world_with_concurrent_steps(2).await;
        let path = format!("/orders/{}", id(&confirmed));
        let [one, other] = pair.map(|status| spawn_step(&world, &path, status));
        let statuses = [response_of(one).await.status.as_u16(), response_of(other).await.status.as_u16()];
        assert!(statuses == [200, 409] || statuses == [409, 200], "{statuses:?}");
        let won = pair[usize::from(statuses[1] == 200)];
        assert_eq!(world.read(id(&confirmed)).await["status"], won);
        world.wait_until_settled().await;
        assert_eq!(world.products.stock(LAPTOP), if won == "shipped" { 45 } else { 50 });
    }
}

/// A cancellation is legal before and after the concurrent confirmation, so it must succeed.
#[tokio::test]
async fn retries_a_step_from_the_current_status_after_a_race() {
    for pair in [["confirmed", "cancelled"], ["cancelled", "confirmed"]] {
        let store = Arc::new(FlakyStore::default());
        let world = World::over(store.clone(), Timeouts { call: HOUR, order: HOUR }).await;
        let pending = order_with_status(&world, "pending").await;
        let path = format!("/orders/{}", id(&pending));
        store.synchronize_steps(2);
        for (request, status) in pair.map(|status| (spawn_step(&world, &path, status), status)) {
            let response = response_of(request).await;
            if status == "cancelled" {
                assert_eq!(response.expect(200).json()["status"], "cancelled");
            } else {
                assert!([200, 409].contains(&response.status.as_u16()), "{response}");
            }
        }
        world.wait_until_settled().await;
        assert_eq!(
            (world.read(id(&pending)).await["status"].as_str(), world.products.stock(LAPTOP)),
            (Some("cancelled"), 50)
        );
    }
}
