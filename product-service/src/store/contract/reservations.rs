//! The cases about reservations.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use shared::products::ReservationStatus;

use super::*;
use crate::reservation::ReservationError;

/// Reserves these units, which must succeed.
async fn reserve_new(store: &Store, order_id: OrderId, wanted: &[(Id, u32)]) -> shared::products::Reserved {
    match store.reserve(order_id, &lines(wanted)).await.unwrap() {
        ReservationOutcome::Created(reserved) => reserved,
        other => panic!("not reserved: {other:?}"),
    }
}

/// Requests these units, which must be rejected.
async fn expect_rejected(store: &Store, order_id: OrderId, wanted: &[(Id, u32)], error: ReservationError, why: &str) {
    let outcome = store.reserve(order_id, &lines(wanted)).await.unwrap();
    assert_eq!(outcome, ReservationOutcome::Rejected(error), "{why}");
}

async fn status(store: &Store, order_id: OrderId) -> ReservationStatus {
    store.reservation(order_id).await.unwrap().expect("a reservation").status
}

pub(super) async fn reserves_all_lines_or_none(store: &Store) {
    use ReservationError::{InsufficientStock, UnknownProducts};
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 1).await);
    let wanted = [(lamp, 6), (unknown_product(), 1), (desk, 1)];
    let why = "an unknown product is reported before missing stock";
    expect_rejected(store, order(1), &wanted, UnknownProducts(vec![1]), why).await;
    let short = InsufficientStock(vec![(0, 5)]);
    expect_rejected(store, order(1), &[(lamp, 6), (desk, 1)], short, "only the short line is named").await;
    let short = InsufficientStock(vec![(0, 5), (1, 1)]);
    expect_rejected(store, order(1), &[(lamp, 6), (desk, 2)], short, "each short line is named").await;
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (5, 1), "nothing was reserved");

    let reserved = reserve_new(store, order(1), &[(lamp, 5), (desk, 1)]).await;
    let reserved: Vec<_> =
        reserved.lines.iter().map(|line| (line.name.as_str(), line.price.cents(), line.quantity)).collect();
    assert_eq!(reserved, [("lamp", 1999, 5), ("desk", 1999, 1)]);
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (0, 0), "down to the last unit");
}

pub(super) async fn leaves_the_id_free_after_a_rejection(store: &Store) {
    let lamp = add(store, "lamp", 1).await;
    let outcome = store.reserve(order(1), &lines(&[(lamp, 2)])).await.unwrap();
    assert!(matches!(outcome, ReservationOutcome::Rejected(_)), "{outcome:?}");
    assert!(store.reservation(order(1)).await.unwrap().is_none());
    reserve_new(store, order(1), &[(lamp, 1)]).await;
}

pub(super) async fn returns_the_first_result_for_a_repeated_reservation(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    let first = reserve_new(store, order(1), &[(lamp, 2), (desk, 1)]).await;
    let current = record(store, lamp).await;
    let mut dearer = current.clone();
    (dearer.product.price, dearer.version) = (Money::from_cents(5000).unwrap(), current.version + 1);
    store.replace(current.version, dearer).await.unwrap().expect("the current version");
    for again in [lines(&[(lamp, 2), (desk, 1)]), lines(&[(desk, 1), (lamp, 2)])] {
        let outcome = store.reserve(order(1), &again).await.unwrap();
        assert_eq!(outcome, ReservationOutcome::Existing(first.clone()), "at the first price");
    }
    assert_eq!(stock(store, lamp).await, 3, "reserved once");
}

pub(super) async fn rejects_other_lines_under_a_reserved_id(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    reserve_new(store, order(1), &[(lamp, 2)]).await;
    for other in [&[(lamp, 3)][..], &[(desk, 2)], &[(lamp, 2), (desk, 1)]] {
        expect_rejected(store, order(1), other, ReservationError::Mismatch, "other lines").await;
    }
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (3, 5));
}

pub(super) async fn returns_released_units_once(store: &Store) {
    let lamp = add(store, "lamp", 5).await;
    reserve_new(store, order(1), &[(lamp, 2)]).await;
    assert_eq!(status(store, order(1)).await, ReservationStatus::Taken);
    for _ in 0..3 {
        store.release(order(1)).await.unwrap();
        assert_eq!((stock(store, lamp).await, status(store, order(1)).await), (5, ReservationStatus::Released));
    }
}

pub(super) async fn rejects_every_reservation_after_a_release(store: &Store) {
    let lamp = add(store, "lamp", 5).await;
    reserve_new(store, order(1), &[(lamp, 2)]).await;
    let never_reserved = order(2);
    for released in [order(1), never_reserved] {
        store.release(released).await.unwrap();
        expect_rejected(store, released, &[(lamp, 2)], ReservationError::Released, "it was released").await;
    }
    assert_eq!(stock(store, lamp).await, 5);
    assert_eq!(store.reservation(never_reserved).await.unwrap().unwrap().lines, []);
}

pub(super) async fn does_not_return_units_to_a_removed_product(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    reserve_new(store, order(1), &[(lamp, 2), (desk, 1)]).await;
    let version = record(store, lamp).await.version;
    assert!(store.remove(lamp, Some(version)).await.unwrap());
    store.release(order(1)).await.unwrap();
    assert_eq!(stock(store, desk).await, 5);
    assert!(store.by_id(lamp).await.unwrap().is_none());
}

pub(super) async fn sells_the_last_unit_to_one_of_twenty_buyers(store: &Store) {
    let lamp = add(store, "lamp", 1).await;
    let buyers = (0..20).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.reserve(order(n), &lines(&[(lamp, 1)])).await.unwrap() })
    });
    let outcomes = join_all(buyers).await.into_iter().map(|outcome| outcome.unwrap());
    assert_eq!(outcomes.filter(|outcome| matches!(outcome, ReservationOutcome::Created(_))).count(), 1);
    assert_eq!(stock(store, lamp).await, 0);
}

pub(super) async fn reserves_once_for_concurrent_requests_of_one_order(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 50).await, add(store, "desk", 100).await);
    for n in 0..50 {
        let requests = [[(lamp, 1), (desk, 2)], [(desk, 2), (lamp, 1)]].into_iter().cycle().take(4).map(|wanted| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.reserve(order(n), &lines(&wanted)).await.unwrap() })
        });
        let mut created = 0;
        let mut results = Vec::new();
        for outcome in join_all(requests).await {
            match outcome.unwrap() {
                ReservationOutcome::Created(reserved) => (created, _) = (created + 1, results.push(reserved)),
                ReservationOutcome::Existing(reserved) => results.push(reserved),
                ReservationOutcome::Rejected(error) => panic!("{error:?}, though no other order needs the stock"),
            }
        }
        assert_eq!(created, 1);
        assert!(results.iter().all(|reserved| *reserved == results[0]), "all requests get the same result");
    }
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (0, 0), "the stock was exactly enough");
}

pub(super) async fn ends_released_when_reserve_and_release_race(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 2).await, add(store, "desk", 1).await);
    for n in 0..100 {
        let reserve = || {
            let (store, wanted) = (Arc::clone(store), lines(&[(desk, 1), (lamp, 2)]));
            tokio::spawn(async move { store.reserve(order(n), &wanted).await.unwrap() })
        };
        let release = || {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.release(order(n)).await.unwrap() })
        };
        let (first, one, second, other) = tokio::join!(reserve(), release(), reserve(), release());
        one.and(other).unwrap();
        for outcome in [first.unwrap(), second.unwrap()] {
            let legal = matches!(
                outcome,
                ReservationOutcome::Created(_)
                    | ReservationOutcome::Existing(_)
                    | ReservationOutcome::Rejected(ReservationError::Released)
            );
            assert!(legal, "{outcome:?}");
        }
        assert_eq!(status(store, order(n)).await, ReservationStatus::Released);
        assert_eq!((stock(store, lamp).await, stock(store, desk).await), (2, 1), "whichever request was first");
    }
}

/// The number of an order, and units of some products by their index.
type Wanted = (u128, Vec<(usize, u32)>);

fn wanted() -> impl Strategy<Value = Wanted> {
    let lines = prop::collection::btree_map(0..3_usize, 1..6_u32, 1..4);
    (0..8_u128, lines.prop_map(|lines| lines.into_iter().collect::<Vec<_>>()).prop_shuffle())
}

fn request((n, wanted): &Wanted, products: &[Id]) -> ReservationRequest {
    let wanted: Vec<_> = wanted.iter().map(|&(product, units)| (products[product], units)).collect();
    ReservationRequest { order_id: order(*n), lines: lines(&wanted) }
}

/// A step that changes stock.
#[derive(Clone, Debug)]
enum Step {
    Reserve(Vec<Wanted>),
    Release(Vec<u128>),
    SetStock(usize, i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(wanted(), 1..4).prop_map(Step::Reserve),
        2 => prop::collection::vec(0..8_u128, 1..4).prop_map(Step::Release),
        1 => (0..3_usize, 0..20_i64).prop_map(|(product, stock)| Step::SetStock(product, stock)),
    ]
}

/// Runs random steps in four concurrent tasks, and counts the units after each round.
pub(super) async fn conserves_units_under_random_concurrent_steps(store: &Store) {
    let mut runner = TestRunner::deterministic();
    let mut added = [10_i64, 5, 1];
    let (mut products, mut held) = (Vec::new(), BTreeMap::new());
    for units in added {
        products.push(add(store, "thing", units).await);
    }
    for round in 0..64_u128 {
        let tasks = prop::collection::vec(prop::collection::vec(step(), 0..40), 4);
        let tasks = tasks.new_tree(&mut runner).unwrap().current();
        let running =
            tasks.into_iter().map(|steps| tokio::spawn(run(Arc::clone(store), products.clone(), steps, round)));
        for set in join_all(running).await {
            set.unwrap().into_iter().for_each(|(product, units)| added[product] += units);
        }
        for n in round * 8..(round + 1) * 8 {
            let reservation = store.reservation(order(n)).await.unwrap();
            let taken = reservation.filter(|reservation| reservation.status == ReservationStatus::Taken);
            for line in taken.into_iter().flat_map(|reservation| reservation.lines) {
                *held.entry(line.product_id).or_insert(0) += i64::from(line.quantity);
            }
        }
        for (product, added) in products.iter().zip(added) {
            let (left, held) = (stock(store, *product).await, held.get(product).copied().unwrap_or_default());
            assert!(left >= 0, "round {round}: {left} units of {product}");
            assert_eq!(left + held, added, "round {round}: {left} left, {held} held, {added} added of {product}");
        }
    }
}

/// Runs the steps of one client, and returns the units that it added to each product.
async fn run(store: Store, products: Vec<Id>, steps: Vec<Step>, round: u128) -> Vec<(usize, i64)> {
    let mut added = Vec::new();
    for step in steps {
        match step {
            Step::Reserve(batch) => {
                let batch = batch.into_iter().map(|(n, wanted)| request(&(round * 8 + n, wanted), &products));
                store.reserve_many(&batch.collect::<Vec<_>>()).await.unwrap();
            }
            Step::Release(orders) => {
                let orders: Vec<_> = orders.into_iter().map(|n| order(round * 8 + n)).collect();
                store.release_many(&orders).await.unwrap();
            }
            Step::SetStock(product, units) => {
                let current = record(&store, products[product]).await;
                let mut next = current.clone();
                (next.product.stock, next.version) = (units, current.version + 1);
                if store.replace(current.version, next).await.unwrap().is_some() {
                    added.push((product, units - current.product.stock));
                }
            }
        }
    }
    added
}

/// Returns the kind of an outcome, without the details that depend on its moment.
fn kind(outcome: &ReservationOutcome) -> &'static str {
    match outcome {
        ReservationOutcome::Created(_) => "created",
        ReservationOutcome::Existing(_) => "existing",
        ReservationOutcome::Rejected(ReservationError::UnknownProducts(_)) => "unknown products",
        ReservationOutcome::Rejected(ReservationError::InsufficientStock(_)) => "insufficient stock",
        ReservationOutcome::Rejected(ReservationError::Released) => "released",
        ReservationOutcome::Rejected(ReservationError::Mismatch) => "mismatch",
    }
}

/// Adds two products whose stock does not suffice for a whole batch, and returns them with one that does not exist.
async fn scarce_products(store: &Store) -> [Id; 3] {
    [add(store, "lamp", 20).await, add(store, "desk", 5).await, unknown_product()]
}

/// Batches in which several requests want the last units, some are for the same order, and some for an unknown product.
pub(super) async fn reserves_a_batch_as_one_request_after_the_other(store: &Store) {
    assert!(store.reserve_many(&[]).await.unwrap().is_empty());
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for round in 0..100_u128 {
        let batch = prop::collection::vec(wanted(), 1..30).new_tree(&mut runner).unwrap().current();
        // The same requests twice, each time for products of their own: as a batch (with a bit set in the order ids), and
        // one by one.
        let (batched, single) = (scarce_products(store).await, scarce_products(store).await);
        let requests = |bit: u128, products: &[Id]| -> Vec<ReservationRequest> {
            let batch = batch.iter().map(|(n, wanted)| ((bit << 100) + round * 8 + n, wanted.clone()));
            batch.map(|wanted| request(&wanted, products)).collect()
        };
        let (batch, each) = (requests(1, &batched), requests(0, &single));
        for id in [batch[0].order_id, each[0].order_id].into_iter().filter(|_| round % 4 == 0) {
            store.release(id).await.unwrap();
        }
        let outcomes = store.reserve_many(&batch).await.unwrap().into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(outcomes.len(), batch.len());
        for (n, (outcome, (request, alone))) in outcomes.iter().zip(batch.iter().zip(&each)).enumerate() {
            let alone = store.reserve(alone.order_id, &alone.lines).await.unwrap();
            assert_eq!(kind(outcome), kind(&alone), "round {round}, request {n} of {batch:?}: {outcome:?}, {alone:?}");
            *seen.entry(kind(outcome)).or_insert(0) += 1;
            if let ReservationOutcome::Created(reserved) | ReservationOutcome::Existing(reserved) = outcome {
                assert!(reserved.order_id == request.order_id && request.lines.matches(&reserved.lines));
            }
            if let ReservationOutcome::Rejected(ReservationError::InsufficientStock(short)) = outcome {
                let wanted = |line: usize| i64::from(request.lines.as_slice()[line].quantity);
                let all_short = short.iter().all(|&(line, left)| left < wanted(line));
                assert!(!short.is_empty() && all_short, "{short:?} of {request:?}");
            }
        }
        for (one, other) in batched.into_iter().zip(single).take(2) {
            assert_eq!(stock(store, one).await, stock(store, other).await, "round {round}");
        }
    }
    assert_eq!(seen.len(), 6, "each outcome occurs: {seen:?}");
}

pub(super) async fn releases_a_batch_as_one_request_after_the_other(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 9).await, add(store, "desk", 9).await);
    for n in 0..4 {
        reserve_new(store, order(n), &[(lamp, 1), (desk, 2)]).await;
    }
    store.release(order(1)).await.unwrap();
    let batch = [order(2), order(1), order(7), order(0), order(7), order(2)];
    for _ in 0..2 {
        store.release_many(&batch).await.unwrap();
        assert_eq!((stock(store, lamp).await, stock(store, desk).await), (8, 7), "each once, and not the fourth");
    }
    for released in batch {
        assert_eq!(status(store, released).await, ReservationStatus::Released);
        expect_rejected(store, released, &[(lamp, 1)], ReservationError::Released, "it was released").await;
    }
    assert_eq!(status(store, order(3)).await, ReservationStatus::Taken);
    store.remove(lamp, None).await.unwrap();
    store.release_many(&[order(3)]).await.unwrap();
    store.release_many(&[]).await.unwrap();
    assert_eq!(stock(store, desk).await, 9, "units return to products that still exist");
}
