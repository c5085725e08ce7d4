//! `PATCH /orders/{id}`: the steps of an order's life.

use std::sync::Arc;

use serde_json::{Value, json};
use testing::Received;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::fakes::StubBehaviour;
use crate::store_away::Flaky;
use crate::support::{ANN, HOUR, LAPTOP, Limits, World, answer, begin, id, order};

const ALL: [&str; 5] = ["pending", "confirmed", "shipped", "delivered", "cancelled"];

/// The ways there are.
const LEGAL: [(&str, &str); 5] = [
    ("pending", "confirmed"),
    ("confirmed", "shipped"),
    ("shipped", "delivered"),
    ("pending", "cancelled"),
    ("confirmed", "cancelled"),
];

/// A new order of five laptops, taken to this state.
async fn order_that_is(world: &World, status: &str) -> Value {
    let mut placed = world.place(order(ANN, &[(LAPTOP, 5)])).await;
    let way: &[&str] = match status {
        "pending" => &[],
        "confirmed" => &["confirmed"],
        "shipped" => &["confirmed", "shipped"],
        "delivered" => &["confirmed", "shipped", "delivered"],
        _ => &["cancelled"],
    };
    for status in way {
        placed = world.step(id(&placed), status).await.expect(200).json();
    }
    assert_eq!(placed["status"], status);
    placed
}

#[tokio::test]
async fn of_all_steps_there_are_five() {
    for from in ALL {
        for to in ALL {
            println!("{from} to {to}");
            let world = World::new().await;
            let before = order_that_is(&world, from).await;
            let answer = world.step(id(&before), to).await;
            let now = world.read(id(&before)).await;
            if LEGAL.contains(&(from, to)) {
                assert_eq!(answer.expect(200).json(), now);
                let mut expected = before.clone();
                expected["status"] = json!(to);
                assert_eq!(now, expected, "nothing but the status");
            } else {
                answer.expect_problem(409, "illegal-status-step");
                assert_eq!(now, before);
            }
            assert_eq!(world.orders().await, std::slice::from_ref(&now));
            world.at_rest().await;
            let (status, stock) = if now["status"] == "cancelled" { ("released", 50) } else { ("taken", 45) };
            assert_eq!((world.shop.status(id(&before)), world.shop.stock(LAPTOP)), (status, stock));
        }
    }
}

#[tokio::test]
async fn both_path_families_step() {
    let world = World::new().await;
    let placed = order_that_is(&world, "pending").await;
    for (orders, status) in [("/api/orders", "confirmed"), ("/orders", "shipped")] {
        let path = format!("{orders}/{}", id(&placed));
        let answer = world.client.patch(&path, json!({"status": status, "total": 0, "userId": 2})).await.expect(200);
        let json = answer.json();
        assert_eq!((&json["status"], &json["total"], &json["userId"]), (&json!(status), &placed["total"], &json!(ANN)));
        assert_eq!(answer.header("etag"), world.client.get(&path).await.header("etag"));
    }
}

#[tokio::test]
async fn a_cancelled_order_reads_so_at_once_though_its_units_are_not_back_yet() {
    let world = World::new().await;
    world.shop.releases.is(StubBehaviour::Hanging);
    let placed = order_that_is(&world, "pending").await;
    let cancelled = world.step(id(&placed), "cancelled").await.expect(200);
    world.shop.releases.called(1).await;
    let read = world.client.get(&format!("/orders/{}", id(&placed))).await.expect(200);
    assert_eq!((read.json(), read.header("etag")), (cancelled.json(), cancelled.header("etag")));
    let listed = world.client.get("/orders?status=cancelled").await.expect(200).json();
    assert_eq!(listed, json!([cancelled.json()]));
    assert_eq!(world.shop.stock(LAPTOP), 45);
    for status in ALL {
        world.step(id(&placed), status).await.expect_problem(409, "illegal-status-step");
    }
    world.shop.releases.is(StubBehaviour::Well);
    world.at_rest().await;
    let after = world.client.get(&format!("/orders/{}", id(&placed))).await.expect(200);
    assert_eq!(
        (after.json(), after.header("etag")),
        (cancelled.json(), cancelled.header("etag")),
        "no client sees that"
    );
    assert_eq!(world.shop.stock(LAPTOP), 50);
}

#[tokio::test]
async fn an_unknown_order_is_not_found() {
    let world = World::new().await;
    order_that_is(&world, "pending").await;
    for unknown in [Uuid::now_v7(), Uuid::nil(), Uuid::max()] {
        let path = format!("/orders/{unknown}");
        assert_eq!(world.client.get(&path).await.expect_problem(404, "not-found")["error"], "Order not found");
        for status in ALL {
            world.client.patch(&path, json!({"status": status})).await.expect_problem(404, "not-found");
        }
        let change = world.client.request("PATCH", &path).header("if-match", "*").json(&json!({"status": "cancelled"}));
        change.send().await.expect_problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_step_is_taken_only_from_where_the_client_has_seen_the_order() {
    let world = World::new().await;
    let placed = order_that_is(&world, "pending").await;
    let path = format!("/orders/{}", id(&placed));
    let first = world.client.get(&path).await.header("etag").to_owned();
    let patch = |tag: &str, status: &str| {
        world.client.request("PATCH", &path).header("if-match", tag).json(&json!({"status": status})).send()
    };
    let second = patch(&first, "confirmed").await.expect(200).header("etag").to_owned();
    assert_ne!(first, second);
    for stale in [&first, "\"other\"", "", &format!("W/{second}")] {
        for status in ["shipped", "cancelled", "pending"] {
            patch(stale, status).await.expect_problem(412, "precondition-failed");
        }
        assert_eq!(world.read(id(&placed)).await["status"], "confirmed");
    }
    patch(&second, "pending").await.expect_problem(409, "illegal-status-step");
    patch(&format!("\"other\", {second}"), "shipped").await.expect(200);
    patch("*", "delivered").await.expect(200);
    assert_eq!(world.shop.stock(LAPTOP), 45);
}

#[tokio::test]
async fn what_a_client_has_is_not_sent_again() {
    let world = World::new().await;
    let placed = order_that_is(&world, "pending").await;
    for orders in ["/orders", "/api/orders"] {
        let path = format!("{orders}/{}", id(&placed));
        let tag = world.client.get(&path).await.header("etag").to_owned();
        let again = world.client.request("GET", &path).header("if-none-match", &tag).send().await.expect(304);
        assert!(again.body.is_empty() && again.header("etag") == tag, "{again}");
    }
    let path = format!("/orders/{}", id(&placed));
    let tag = world.client.get(&path).await.header("etag").to_owned();
    world.step(id(&placed), "confirmed").await.expect(200);
    let changed = world.client.request("GET", &path).header("if-none-match", &tag).send().await.expect(200);
    assert_eq!(changed.json()["status"], "confirmed");
}

/// A world in which so many steps of an order are asked for at the same moment.
async fn crowded(crowd: usize) -> (World, Value) {
    let store = Arc::new(Flaky::default());
    let world = World::over(store.clone(), Limits { call: HOUR, order: HOUR }).await;
    let confirmed = order_that_is(&world, "confirmed").await;
    store.gathers(crowd);
    (world, confirmed)
}

/// Asks for a step in a task of its own.
fn step_of(world: &World, path: &str, status: &str) -> JoinHandle<Received> {
    begin(world.client.request("PATCH", path).json(&json!({"status": status})))
}

#[tokio::test]
async fn of_many_who_take_the_same_step_one_does() {
    for status in ["shipped", "cancelled"] {
        for (if_match, too_late) in [(true, 412), (false, 409)] {
            let (world, confirmed) = crowded(10).await;
            let path = format!("/orders/{}", id(&confirmed));
            let tag = world.client.get(&path).await.header("etag").to_owned();
            let request = || {
                let request = world.client.request("PATCH", &path).json(&json!({"status": status}));
                if if_match { request.header("if-match", &tag) } else { request }
            };
            let mut statuses = Vec::new();
            for request in (0..10).map(|_| begin(request())).collect::<Vec<_>>() {
                statuses.push(answer(request).await.status.as_u16());
            }
            statuses.sort_unstable();
            assert_eq!(statuses[0], 200, "{statuses:?}");
            assert!(statuses[1..].iter().all(|status| *status == too_late), "{statuses:?}");
            world.at_rest().await;
            assert_eq!(world.shop.stock(LAPTOP), if status == "shipped" { 45 } else { 50 }, "given back once");
        }
    }
}

/// What is shipped stays sold, what is cancelled comes back: never both, whoever is quicker.
#[tokio::test]
async fn an_order_is_shipped_or_cancelled_and_never_both() {
    for pair in [["shipped", "cancelled"], ["cancelled", "shipped"]] {
        let (world, confirmed) = crowded(2).await;
        let path = format!("/orders/{}", id(&confirmed));
        let [one, other] = pair.map(|status| step_of(&world, &path, status));
        let statuses = [answer(one).await.status.as_u16(), answer(other).await.status.as_u16()];
        assert!(statuses == [200, 409] || statuses == [409, 200], "{statuses:?}");
        let won = pair[usize::from(statuses[1] == 200)];
        assert_eq!(world.read(id(&confirmed)).await["status"], won);
        world.at_rest().await;
        assert_eq!(world.shop.stock(LAPTOP), if won == "shipped" { 45 } else { 50 });
    }
}

/// Who was too late looks again, and goes on from there if there is a way: to cancel is possible from both.
#[tokio::test]
async fn who_was_too_late_goes_on_from_where_the_order_is_now() {
    for pair in [["confirmed", "cancelled"], ["cancelled", "confirmed"]] {
        let store = Arc::new(Flaky::default());
        let world = World::over(store.clone(), Limits { call: HOUR, order: HOUR }).await;
        let pending = order_that_is(&world, "pending").await;
        let path = format!("/orders/{}", id(&pending));
        store.gathers(2);
        for (request, status) in pair.map(|status| (step_of(&world, &path, status), status)) {
            let answer = answer(request).await;
            if status == "cancelled" {
                assert_eq!(answer.expect(200).json()["status"], "cancelled");
            } else {
                assert!([200, 409].contains(&answer.status.as_u16()), "{answer}");
            }
        }
        world.at_rest().await;
        assert_eq!(
            (world.read(id(&pending)).await["status"].as_str(), world.shop.stock(LAPTOP)),
            (Some("cancelled"), 50)
        );
    }
}
