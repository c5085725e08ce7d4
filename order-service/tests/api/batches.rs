//! Orders that are placed at the same time share their calls to peers, and nothing else.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::Value;

use crate::fakes::{Knowledge, StubBehaviour};
use crate::support::{
    ANN, BOB, HOUR, LAPTOP, Limits, NOBODY, NOTHING, PEN, PHONE, World, answer, begin, id, order, with_timeout,
};

const MANY: usize = 40;

/// The outcomes of so many orders at once, chosen by their number: status and the slug of the problem, if any.
async fn outcomes(world: &World, orders: impl Fn(usize) -> Value) -> BTreeMap<(u16, String), usize> {
    let requests: Vec<_> = (0..MANY).map(|n| begin(world.posting(&orders(n)))).collect();
    let mut outcomes = BTreeMap::new();
    for received in join_all(requests.into_iter().map(answer)).await {
        let body = received.json();
        let slug = body["type"].as_str().unwrap_or("placed").trim_start_matches("urn:problem-type:").to_owned();
        *outcomes.entry((received.status.as_u16(), slug)).or_default() += 1;
    }
    outcomes
}

fn expected(outcomes: &[(u16, &str, usize)]) -> BTreeMap<(u16, String), usize> {
    outcomes.iter().map(|(status, slug, times)| ((*status, (*slug).to_owned()), *times)).collect()
}

/// A fifth each: two good ones, and three that are refused for three reasons.
fn mixed(n: usize) -> Value {
    match n % 5 {
        0 => order(ANN, &[(PEN, 1), (PHONE, 1)]),
        1 => order(NOBODY, &[(PEN, 1)]),
        2 => order(ANN, &[(PEN, 1), (NOTHING, 1)]),
        3 => order(ANN, &[(PEN, 1), (LAPTOP, 51)]),
        _ => order(BOB, &[(PEN, 1)]),
    }
}

/// What comes of those, whoever is asked how.
async fn expect_mixed(world: &World) {
    let expected = expected(&[
        (201, "placed", MANY * 2 / 5),
        (400, "user-not-found", MANY / 5),
        (400, "product-not-found", MANY / 5),
        (409, "insufficient-stock", MANY / 5),
    ]);
    assert_eq!(outcomes(world, mixed).await, expected);
    world.at_rest().await;
    let (placed, before) = (MANY as i64 / 5, &world.stocks);
    let left = BTreeMap::from([(LAPTOP, 50), (PHONE, before[&PHONE] - placed), (PEN, before[&PEN] - 2 * placed)]);
    assert_eq!(world.shop.stocks(), left);
    assert_eq!(world.orders().await.len(), MANY * 2 / 5);
}

#[tokio::test]
async fn one_that_is_refused_does_not_touch_those_in_the_same_call() {
    let world = World::new().await;
    expect_mixed(&world).await;
    for (what, batches) in
        [("users", &world.people.batches), ("takes", &world.shop.batches), ("releases", &world.shop.release_batches)]
    {
        assert!(batches.sizes().iter().any(|size| *size > 1), "{what}: {:?}", batches.sizes());
    }
    let calls = world.shop.takes.calls().len();
    assert_eq!(calls, MANY, "each is asked once");
}

#[tokio::test]
async fn a_peer_that_knows_no_call_for_several_is_asked_one_by_one() {
    for knowledge in [Knowledge::NotFound, Knowledge::Misunderstands] {
        let world = World::new().await;
        for batches in [&world.people.batches, &world.shop.batches, &world.shop.release_batches] {
            batches.are(knowledge);
        }
        expect_mixed(&world).await;
        let before = world.shop.batches.sizes().len();
        assert!(before >= 1, "{knowledge:?}");
        assert_eq!(outcomes(&world, |_| order(ANN, &[(PEN, 1)])).await, expected(&[(201, "placed", MANY)]));
        assert_eq!(world.shop.batches.sizes().len(), before, "{knowledge:?}: it has not learnt it meanwhile");
    }
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_is_made_again_and_nothing_is_taken_twice() {
    let world = World::with(Limits { call: HOUR, order: HOUR }).await;
    world.shop.takes.is(StubBehaviour::Hanging);
    let requests: Vec<_> = (0..MANY).map(|_| begin(world.posting(&order(ANN, &[(PEN, 1)])))).collect();
    world.shop.takes.called(MANY).await;
    world.shop.takes.is(StubBehaviour::LosingAnswers);
    world.shop.takes.called(MANY + 1).await;
    world.shop.takes.is(StubBehaviour::Well);
    for request in requests {
        answer(request).await.expect(201);
    }
    assert_eq!(world.shop.stock(PEN), world.stocks[&PEN] - MANY as i64);
}

#[tokio::test]
async fn the_last_units_go_to_some_of_those_in_one_call_and_to_no_others() {
    let world = World::new().await;
    world.shop.offer(LAPTOP, "Laptop", 99_999, 7);
    let expected = expected(&[(201, "placed", 7), (409, "insufficient-stock", MANY - 7)]);
    assert_eq!(outcomes(&world, |_| order(ANN, &[(LAPTOP, 1)])).await, expected);
    world.at_rest().await;
    let orders = world.orders().await;
    let taken = orders.iter().map(|order| world.shop.status(id(order)));
    assert!(taken.clone().all(|status| status == "taken"), "{:?}", taken.collect::<Vec<_>>());
    assert_eq!((orders.len(), world.shop.stock(LAPTOP)), (7, 0));
    with_timeout("the end of what runs", world.placement.finish(HOUR)).await;
}
