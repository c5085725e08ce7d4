//! Clients that go away in the middle. The placement runs in a task of its own: nothing is left half done.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use tokio::{task, time};

use crate::fakes::StubBehaviour;
use crate::support::{
    ANN, LAPTOP, NOBODY, PEN, World, begin, eventually, expect_in_progress, id, ids, order, with_timeout,
};

#[tokio::test]
async fn an_order_is_placed_though_nobody_waits_for_it_any_more() {
    let world = World::new().await;
    let wanted = order(ANN, &[(LAPTOP, 1)]);
    for (number, hanging) in [&world.people.reads, &world.shop.takes].into_iter().enumerate() {
        let key = format!("k{number}");
        hanging.is(StubBehaviour::Hanging);
        let request = begin(world.keyed(&key, &wanted));
        world.shop.takes.called(number + 1).await;
        world.people.reads.called(number + 1).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        expect_in_progress(&world.keyed(&key, &wanted).send().await);
        hanging.is(StubBehaviour::Well);
        eventually("the order", async || world.orders().await.len() == number + 1).await;
        let placed = world.orders().await.pop().unwrap();
        assert_eq!(world.shop.status(id(&placed)), "taken");
        let again = world.keyed(&key, &wanted).send().await.expect(201);
        assert_eq!((again.header("idempotent-replayed"), again.json()), ("true", placed));
    }
    assert_eq!(world.shop.stock(LAPTOP), 48);
}

#[tokio::test]
async fn an_order_is_given_up_though_nobody_waits_for_the_refusal() {
    let world = World::new().await;
    world.people.reads.is(StubBehaviour::Hanging);
    let request = begin(world.keyed("k", &order(NOBODY, &[(LAPTOP, 1)])));
    world.shop.takes.called(1).await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    world.people.reads.is(StubBehaviour::Well);
    world.shop.releases.called(1).await;
    world.nothing_happened().await;
    world.keyed("k", &order(ANN, &[(LAPTOP, 1)])).send().await.expect(201);
}

/// Else clients who order and go would have a service do more at once than it can.
#[tokio::test]
async fn an_order_that_nobody_waits_for_takes_a_place_all_the_same() {
    let world = World::new().await;
    let client = world.client_of_a_small_replica(2);
    world.people.reads.is(StubBehaviour::Hanging);
    for number in 1..=2 {
        let request = begin(client.request("POST", "/orders").json(&order(ANN, &[(PEN, 1)])));
        world.people.reads.called(number).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
    }
    client.post("/orders", order(ANN, &[(PEN, 1)])).await.expect_problem(503, "overloaded");
    world.people.reads.is(StubBehaviour::Well);
    eventually("the two orders", async || world.orders().await.len() == 2).await;
    eventually("a place", async || client.post("/orders", order(ANN, &[(PEN, 1)])).await.status == 201).await;
}

#[tokio::test]
async fn an_order_whose_time_is_over_is_not_begun() {
    let world = World::new().await;
    let late = world.posting(&order(ANN, &[(PEN, 1)])).header("x-deadline-ms", "0").send().await;
    late.expect_problem(503, "overloaded");
    with_timeout("the end of what runs", world.placement.finish(Duration::from_secs(60))).await;
    world.expect_no_calls();
}

/// Polls `happening` so many times, each when a little of what it waits for may have come, and drops it.
async fn give_up_after(polls: usize, happening: impl Future) {
    let mut happening = pin!(happening);
    for _ in 0..polls {
        if time::timeout(Duration::ZERO, happening.as_mut()).await.is_ok() {
            return;
        }
        task::yield_now().await;
    }
}

/// What is there in the end: what is taken is what is shown, and is taken for it.
async fn expect_nothing_half_done(world: &World) {
    with_timeout("the end of what runs", world.placement.finish(Duration::from_secs(60))).await;
    world.at_rest().await;
    let orders = world.orders().await;
    let alive: BTreeSet<&str> = orders.iter().filter(|order| order["status"] != "cancelled").map(id).collect();
    let reservations = world.shop.reservations();
    let taken = reservations.iter().filter(|(_, reservation)| reservation.status == "taken");
    assert_eq!(taken.map(|(id, _)| id.as_str()).collect::<BTreeSet<_>>(), alive);
    assert_eq!(world.shop.stock(LAPTOP), 50 - i64::try_from(alive.len()).expect("a few"));
}

#[tokio::test]
async fn wherever_a_client_hangs_up_its_order_is_placed_or_not_and_never_half() {
    let world = World::new().await;
    for polls in 0..25 {
        give_up_after(polls, world.posting(&order(ANN, &[(LAPTOP, 1)])).send()).await;
        give_up_after(polls, world.posting(&order(NOBODY, &[(LAPTOP, 1)])).send()).await;
    }
    expect_nothing_half_done(&world).await;
    assert!(!world.orders().await.is_empty());
}

#[tokio::test]
async fn wherever_a_client_hangs_up_its_order_is_cancelled_or_not_and_never_half() {
    let world = World::new().await;
    for polls in 0..10 {
        let placed = world.place(order(ANN, &[(LAPTOP, 1)])).await;
        give_up_after(polls, world.step(id(&placed), "cancelled")).await;
    }
    expect_nothing_half_done(&world).await;
}

/// At the end of the process: what still runs is finished, with or without a client, for as long as there is time.
#[tokio::test]
async fn the_end_waits_for_what_is_being_placed() {
    let world = World::new().await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let request = begin(world.posting(&order(ANN, &[(PEN, 1)])));
    world.shop.takes.called(1).await;
    request.abort();
    world.placement.finish(Duration::from_millis(20)).await; // there is no more time than that
    assert_eq!(world.orders().await.len(), 0);

    let placement = world.placement.clone();
    let end = tokio::spawn(async move { placement.finish(Duration::from_secs(3600)).await });
    for _ in 0..20 {
        task::yield_now().await;
    }
    assert!(!end.is_finished());
    world.shop.takes.is(StubBehaviour::Well);
    with_timeout("the end", end).await.unwrap();
    let orders = world.orders().await;
    assert_eq!(ids(&orders), [world.last_taken()]);
}

#[tokio::test]
async fn the_end_waits_for_what_is_being_released() {
    let world = World::new().await;
    world.shop.releases.is(StubBehaviour::Hanging);
    world.client.post("/orders", order(ANN, &[(LAPTOP, 51)])).await.expect(409);
    let placement = world.placement.clone();
    let end = tokio::spawn(async move { placement.finish(Duration::from_secs(3600)).await });
    world.shop.releases.called(1).await;
    assert!(!end.is_finished());
    world.shop.releases.is(StubBehaviour::Well);
    with_timeout("the end", end).await.unwrap();
    world.nothing_happened().await;
}
