//! Clients that disconnect early, and shutdown. A placement runs in a task of its own, so it always ends.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use tokio::{task, time};

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, LAPTOP, PEN, UNKNOWN_USER, World, eventually, expect_in_progress, id, ids, order, spawn, with_timeout,
};

#[tokio::test]
async fn places_an_order_although_its_client_has_disconnected() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for (number, hanging) in [&world.users.read, &world.products.reserve].into_iter().enumerate() {
        let key = format!("k{number}");
        hanging.set(StubBehaviour::Hanging);
        let request = spawn(world.post_with_key(&key, &wanted));
        world.products.reserve.wait_for_calls(number + 1).await;
        world.users.read.wait_for_calls(number + 1).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        expect_in_progress(&world.post_with_key(&key, &wanted).send().await);
        hanging.set(StubBehaviour::Normal);
        eventually("the order", async || world.orders().await.len() == number + 1).await;
        let placed = world.orders().await.pop().unwrap();
        assert_eq!(world.products.status(id(&placed)), "taken");
        let again = world.post_with_key(&key, &wanted).send().await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", placed));
    }
    assert_eq!(world.products.stock(LAPTOP), 48);
}

#[tokio::test]
async fn aborts_an_order_although_its_client_has_disconnected() {
    let world = World::new().await;
    world.users.read.set(StubBehaviour::Hanging);
    let request = spawn(world.post_with_key("k", &order(UNKNOWN_USER, &[(LAPTOP, 1)])));
    world.products.reserve.wait_for_calls(1).await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    world.users.read.set(StubBehaviour::Normal);
    world.products.release.wait_for_calls(1).await;
    world.expect_nothing_sold().await;
    world.post_with_key("k", &order(ANN, &[(LAPTOP, 1)])).send().await.expect(201);
}

/// Otherwise clients that disconnect early could overload the service.
#[tokio::test]
async fn counts_orders_of_disconnected_clients_against_the_limit() {
    let world = World::new().await;
    let client = world.client_of_a_small_replica(2);
    world.users.read.set(StubBehaviour::Hanging);
    for number in 1..=2 {
        let request = spawn(client.request("POST", "/orders").json(&order(ANN, &[(PEN, 1)])));
        world.users.read.wait_for_calls(number).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
    }
    client.post("/orders", order(ANN, &[(PEN, 1)])).await.expect_problem(504, "deadline-exceeded");
    world.users.read.set(StubBehaviour::Normal);
    eventually("the two orders", async || world.orders().await.len() == 2).await;
    eventually("a permit", async || client.post("/orders", order(ANN, &[(PEN, 1)])).await.status == 201).await;
}

#[tokio::test]
async fn does_not_start_an_order_whose_deadline_has_passed() {
    let world = World::new().await;
    let late = world.post_order(&order(ANN, &[(PEN, 1)])).header("x-deadline-ms", "0").send().await;
    late.expect_problem(503, "overloaded");
    with_timeout("the running tasks", world.placement.finish(Duration::from_secs(60))).await;
    world.expect_no_peer_calls();
}

/// Polls a future up to `polls` times, lets other tasks run after each poll, then drops it.
async fn drop_after(polls: usize, future: impl Future) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if time::timeout(Duration::ZERO, future.as_mut()).await.is_ok() {
            return;
        }
        task::yield_now().await;
    }
}

/// Checks that exactly the orders that are not cancelled have a reservation.
async fn expect_consistency(world: &World) {
    with_timeout("the running tasks", world.placement.finish(Duration::from_secs(60))).await;
    world.wait_until_settled().await;
    let orders = world.orders().await;
    let open: BTreeSet<&str> = orders.iter().filter(|order| order["status"] != "cancelled").map(id).collect();
    let reservations = world.products.reservations();
    let taken = reservations.iter().filter(|(_, reservation)| reservation.status == "taken");
    assert_eq!(taken.map(|(id, _)| id.as_str()).collect::<BTreeSet<_>>(), open);
    assert_eq!(world.products.stock(LAPTOP), 50 - i64::try_from(open.len()).expect("a few"));
}

#[tokio::test]
async fn places_an_order_completely_or_not_at_all_whenever_the_client_disconnects() {
    let world = World::new().await;
    for polls in 0..25 {
        drop_after(polls, world.post_order(&order(ANN, &[(LAPTOP, 1)])).send()).await;
        drop_after(polls, world.post_order(&order(UNKNOWN_USER, &[(LAPTOP, 1)])).send()).await;
    }
    expect_consistency(&world).await;
    assert!(!world.orders().await.is_empty());
}

#[tokio::test]
async fn cancels_an_order_completely_or_not_at_all_whenever_the_client_disconnects() {
    let world = World::new().await;
    for polls in 0..10 {
        let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
        drop_after(polls, world.step(id(&placed), "cancelled")).await;
    }
    expect_consistency(&world).await;
}

/// Shutdown waits with or without a client, until its own timeout.
#[tokio::test]
async fn waits_at_shutdown_for_orders_that_are_being_placed() {
    let world = World::new().await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let request = spawn(world.post_order(&order(ANN, &[(PEN, 1)])));
    world.products.reserve.wait_for_calls(1).await;
    request.abort();
    world.placement.finish(Duration::from_millis(20)).await; // times out
    assert_eq!(world.orders().await.len(), 0);

    let placement = world.placement.clone();
    let shutdown = tokio::spawn(async move { placement.finish(Duration::from_secs(3600)).await });
    for _ in 0..20 {
        task::yield_now().await;
    }
    assert!(!shutdown.is_finished());
    world.products.reserve.set(StubBehaviour::Normal);
    with_timeout("the shutdown", shutdown).await.unwrap();
    let orders = world.orders().await;
    assert_eq!(ids(&orders), [world.last_reserved_id()]);
}

#[tokio::test]
async fn waits_at_shutdown_for_running_releases() {
    let world = World::new().await;
    world.products.release.set(StubBehaviour::Hanging);
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect(409);
    let placement = world.placement.clone();
    let shutdown = tokio::spawn(async move { placement.finish(Duration::from_secs(3600)).await });
    world.products.release.wait_for_calls(1).await;
    assert!(!shutdown.is_finished());
    world.products.release.set(StubBehaviour::Normal);
    with_timeout("the shutdown", shutdown).await.unwrap();
    world.expect_nothing_sold().await;
}
