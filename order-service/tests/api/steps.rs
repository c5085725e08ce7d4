//! `PATCH /orders/{id}`: the steps of an order's life.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::fakes::Mood;
use crate::support::{ANN, LAPTOP, World, answer, begin, id, order};

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
    world.shop.releases.is(Mood::Hanging);
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
    world.shop.releases.is(Mood::Well);
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

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_take_the_same_step_one_does() {
    let world = World::new().await;
    for _ in 0..10 {
        let placed = order_that_is(&world, "pending").await;
        let path = format!("/orders/{}", id(&placed));
        let tag = world.client.get(&path).await.header("etag").to_owned();
        for (status, tag, other) in [("confirmed", Some(tag.as_str()), 412), ("cancelled", None, 409)] {
            let request = || {
                let request = world.client.request("PATCH", &path).json(&json!({"status": status}));
                match tag {
                    Some(tag) => request.header("if-match", tag),
                    None => request,
                }
            };
            let requests: Vec<_> = (0..10).map(|_| begin(request())).collect();
            let mut statuses = Vec::new();
            for request in requests {
                statuses.push(answer(request).await.status.as_u16());
            }
            assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
            assert_eq!(statuses.iter().filter(|&&status| status == other).count(), 9, "{statuses:?}");
        }
        world.at_rest().await;
        assert_eq!(world.shop.stock(LAPTOP), 50, "given back once");
    }
}

/// What is shipped stays sold, what is cancelled comes back: never both, whoever is quicker.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_shipped_or_cancelled_and_never_both() {
    let world = World::new().await;
    let mut sold = 0;
    for round in 0..9 {
        let confirmed = order_that_is(&world, "confirmed").await;
        let request = |status| {
            let path = format!("/orders/{}", id(&confirmed));
            begin(world.client.request("PATCH", &path).json(&json!({"status": status})))
        };
        let pair = if round % 2 == 0 { ["shipped", "cancelled"] } else { ["cancelled", "shipped"] };
        let [one, other] = pair.map(request);
        let statuses = [answer(one).await.status.as_u16(), answer(other).await.status.as_u16()];
        assert!(statuses == [200, 409] || statuses == [409, 200], "{statuses:?}");
        let won = pair[usize::from(statuses[1] == 200)];
        assert_eq!(world.read(id(&confirmed)).await["status"], won);
        world.at_rest().await;
        sold += if won == "shipped" { 5 } else { 0 };
        assert_eq!(world.shop.stock(LAPTOP), 50 - sold);
    }
}
