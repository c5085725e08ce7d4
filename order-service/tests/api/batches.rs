//! Concurrent orders share their calls to peers, and nothing else.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::Value;

use crate::fakes::{BatchSupport, StubBehaviour};
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, PEN, PHONE, Timeouts, UNKNOWN_PRODUCT, UNKNOWN_USER, World, id, order, response_of, spawn,
    with_timeout,
};

const MANY: usize = 40;

/// Places [`MANY`] orders concurrently and counts the results by status and slug.
async fn outcomes(world: &World, orders: impl Fn(usize) -> Value) -> BTreeMap<(u16, String), usize> {
    let requests: Vec<_> = (0..MANY).map(|n| spawn(world.post_order(&orders(n)))).collect();
    let mut outcomes = BTreeMap::new();
    for received in join_all(requests.into_iter().map(response_of)).await {
        let body = received.json();
        let slug = body["type"].as_str().unwrap_or("placed").trim_start_matches("urn:problem-type:").to_owned();
        *outcomes.entry((received.status.as_u16(), slug)).or_default() += 1;
    }
    outcomes
}

fn expected(outcomes: &[(u16, &str, usize)]) -> BTreeMap<(u16, String), usize> {
    outcomes.iter().map(|(status, slug, times)| ((*status, (*slug).to_owned()), *times)).collect()
}

/// Returns the n-th order of a mix: two of five are good, three are rejected for three reasons.
fn mixed(n: usize) -> Value {
    match n % 5 {
        0 => order(ANN, &[(PEN, 1), (PHONE, 1)]),
        1 => order(UNKNOWN_USER, &[(PEN, 1)]),
        2 => order(ANN, &[(PEN, 1), (UNKNOWN_PRODUCT, 1)]),
        3 => order(ANN, &[(PEN, 1), (LAPTOP, 51)]),
        _ => order(BOB, &[(PEN, 1)]),
    }
}

/// Places mixed orders and checks the results.
async fn expect_mixed(world: &World) {
    let expected = expected(&[
        (201, "placed", MANY * 2 / 5),
        (400, "user-not-found", MANY / 5),
        (400, "product-not-found", MANY / 5),
        (409, "insufficient-stock", MANY / 5),
    ]);
    assert_eq!(outcomes(world, mixed).await, expected);
    world.wait_until_settled().await;
    let (placed, before) = (MANY as i64 / 5, &world.stocks);
    let left = BTreeMap::from([(LAPTOP, 50), (PHONE, before[&PHONE] - placed), (PEN, before[&PEN] - 2 * placed)]);
    assert_eq!(world.products.stocks(), left);
    assert_eq!(world.orders().await.len(), MANY * 2 / 5);
}

#[tokio::test]
async fn rejects_orders_without_affecting_others_in_the_same_batch() {
    let world = World::new().await;
    expect_mixed(&world).await;
    for (what, batches) in [
        ("users", &world.users.batches),
        ("reservations", &world.products.reserve_batches),
        ("releases", &world.products.release_batches),
    ] {
        assert!(batches.sizes().iter().any(|size| *size > 1), "{what}: {:?}", batches.sizes());
    }
    let calls = world.products.reserve.calls().len();
    assert_eq!(calls, MANY, "one reservation per order");
}

#[tokio::test]
async fn falls_back_to_single_calls_if_a_peer_does_not_support_batches() {
    for support in [BatchSupport::NotFound, BatchSupport::Misread] {
        let world = World::new().await;
        for batches in [&world.users.batches, &world.products.reserve_batches, &world.products.release_batches] {
            batches.set(support);
        }
        expect_mixed(&world).await;
        let before = world.products.reserve_batches.sizes().len();
        assert!(before >= 1, "{support:?}");
        assert_eq!(outcomes(&world, |_| order(ANN, &[(PEN, 1)])).await, expected(&[(201, "placed", MANY)]));
        assert_eq!(world.products.reserve_batches.sizes().len(), before, "{support:?}: no further batch is tried");
    }
}

#[tokio::test]
async fn retries_a_batch_whose_response_is_lost_and_reserves_nothing_twice() {
    let world = World::with(Timeouts { call: HOUR, order: HOUR }).await;
    world.products.reserve.set(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..MANY).map(|_| spawn(world.post_order(&order(ANN, &[(PEN, 1)])))).collect();
    world.products.reserve.wait_for_calls(MANY).await;
    world.products.reserve.set(StubBehaviour::LostResponse);
    world.products.reserve.wait_for_calls(MANY + 1).await;
    world.products.reserve.set(StubBehaviour::Normal);
    for request in requests {
        response_of(request).await.expect(201);
    }
    assert_eq!(world.products.stock(PEN), world.stocks[&PEN] - MANY as i64);
}

#[tokio::test]
async fn sells_the_last_units_to_some_orders_of_a_batch_and_rejects_the_others() {
    let world = World::new().await;
    world.products.set_product(LAPTOP, "Laptop", 99_999, 7);
    let expected = expected(&[(201, "placed", 7), (409, "insufficient-stock", MANY - 7)]);
    assert_eq!(outcomes(&world, |_| order(ANN, &[(LAPTOP, 1)])).await, expected);
    world.wait_until_settled().await;
    let orders = world.orders().await;
    let statuses = orders.iter().map(|order| world.products.status(id(order)));
    assert!(statuses.clone().all(|status| status == "taken"), "{:?}", statuses.collect::<Vec<_>>());
    assert_eq!((orders.len(), world.products.stock(LAPTOP)), (7, 0));
    with_timeout("the running tasks", world.placement.finish(HOUR)).await;
}
