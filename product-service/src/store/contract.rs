//! The contract of [`ProductStore`], one function a sentence, run against every store.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use shared::products::{Line, ReservationStatus};
use sqlx::postgres::PgConnectOptions;
use testing::postgres::generous_timeouts;
use uuid::Uuid;

use super::*;
use crate::reservation::Refusal;

testing::store_contract! {
    memory: (Arc::new(MemoryStore::default()) as Store);
    postgres: postgres;
    ids_rise_and_are_never_given_twice
    pages_join_to_the_whole_list
    a_part_of_a_name_finds_its_products
    a_change_is_made_only_to_the_version_seen
    a_change_of_any_version_leaves_the_rest_as_it_is_just_then
    a_take_is_all_or_nothing
    a_refused_take_leaves_its_id_free
    a_take_repeated_is_answered_as_the_first_time
    other_lines_under_a_taken_id_are_refused
    a_release_gives_back_once
    a_released_id_can_never_be_taken
    a_removed_product_takes_its_stock_along
    what_is_read_is_what_was_written
    twenty_buyers_of_the_last_unit_and_one_gets_it
    an_order_that_is_taken_twice_at_the_same_time_is_taken_once
    a_take_and_a_release_at_the_same_time_end_released
    any_takes_and_releases_conserve_the_stock
    takes_together_come_to_what_they_would_one_by_one
    releases_together_come_to_what_they_would_one_by_one
}

type Store = Arc<dyn ProductStore>;

async fn postgres(database: PgConnectOptions) -> Store {
    Arc::new(PostgresStore::open(&database, &generous_timeouts()).await.expect("a database"))
}

async fn add(store: &Store, name: &str, stock: i64) -> Id {
    let new = NewProduct { name: name.to_owned(), price: Money::from_cents(1999).unwrap(), stock };
    store.insert(new, Timestamp::UNIX_EPOCH).await.unwrap().public.id
}

async fn stock(store: &Store, id: Id) -> i64 {
    store.by_id(id).await.unwrap().expect("the product is there").public.stock
}

async fn all(store: &Store) -> Vec<Id> {
    let page = Page { after: None, limit: 1000 };
    store.page(page, None).await.unwrap().rows.iter().map(|product| product.public.id).collect()
}

fn order(n: u128) -> OrderId {
    OrderId(Uuid::from_u128(n))
}

fn lines(lines: &[(Id, u32)]) -> Lines {
    Lines::new(lines.iter().map(|&(product_id, quantity)| Line { product_id, quantity }).collect()).unwrap()
}

fn no_product() -> Id {
    Id::new(999).unwrap()
}

async fn ids_rise_and_are_never_given_twice(store: &Store) {
    let (first, second) = (add(store, "one", 0).await, add(store, "two", 0).await);
    assert_eq!((first.get(), second.get()), (1, 2));
    assert!(store.remove(second, None).await.unwrap());
    assert!(add(store, "three", 0).await > second, "the id of a removed product is not reused");
    assert!(store.by_id(second).await.unwrap().is_none());
    let found = store.by_ids(&[second, first, no_product(), first]).await.unwrap();
    assert_eq!(found.iter().map(|product| product.public.id).collect::<Vec<_>>(), [first]);
}

async fn pages_join_to_the_whole_list(store: &Store) {
    for n in 0..10 {
        add(store, &n.to_string(), 0).await;
    }
    for limit in 1..=11 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let rows = store.page(Page { after, limit }, None).await.unwrap();
            assert!(rows.rows.len() <= limit);
            seen.extend(rows.rows.iter().map(|product| product.public.id));
            after = seen.last().copied();
            if !rows.more {
                break;
            }
        }
        assert_eq!(seen, all(store).await, "pages of {limit}");
    }
}

async fn a_part_of_a_name_finds_its_products(store: &Store) {
    for n in 0..5000 {
        add(store, if n % 1000 == 999 { "Blue Ångström" } else { "Red" }, 0).await;
    }
    let page = |after, limit| Page { after, limit };
    let first = store.page(page(None, 3), Some("ångström")).await.unwrap();
    let ids = |rows: &Rows<Arc<Product>>| rows.rows.iter().map(|product| product.public.id.get()).collect::<Vec<_>>();
    assert_eq!((ids(&first), first.more), (vec![1000, 2000, 3000], true));
    let rest = store.page(page(Id::new(3000), 3), Some("BLUE")).await.unwrap();
    assert_eq!((ids(&rest), rest.more), (vec![4000, 5000], false));
    let two = store.page(page(Id::new(3000), 2), Some("BLUE")).await.unwrap();
    assert!(!two.more, "nothing follows a page that is just full");
    assert!(store.page(page(None, 3), Some("%")).await.unwrap().rows.is_empty(), "no character is special");
    let special = [r"100%", r"a_b", r"back\slash", "日本", "a", "O'Neil \"$1\""];
    for name in special {
        let id = add(store, name, 0).await;
        let found = store.page(page(Id::new(id.get() - 1), 3), Some(name)).await.unwrap();
        assert_eq!(ids(&found), [id.get()], "{name}");
    }
    for nothing in ["1%0", "a%b", r"a\_b", "10_%", "\0", "%%", r"\\"] {
        assert!(store.page(page(None, 3), Some(nothing)).await.unwrap().rows.is_empty(), "{nothing}");
    }
}

async fn a_change_is_made_only_to_the_version_seen(store: &Store) {
    let id = add(store, "lamp", 5).await;
    let seen = store.by_id(id).await.unwrap().unwrap();
    store.take(order(1), &lines(&[(id, 2)])).await.unwrap();
    let mut next = Product::clone(&seen);
    (next.public.stock, next.version) = (100, seen.version + 1);
    assert!(store.replace(seen.version, next.clone()).await.unwrap().is_none(), "two units went meanwhile");
    assert!(!store.remove(id, Some(seen.version)).await.unwrap());
    let seen = store.by_id(id).await.unwrap().unwrap();
    next.version = seen.version + 1;
    assert!(store.replace(seen.version, next.clone()).await.unwrap().is_some());
    assert_eq!(stock(store, id).await, 100);
    assert!(store.remove(id, Some(next.version)).await.unwrap());
    assert!(store.replace(next.version, next).await.unwrap().is_none(), "it is gone");
}

async fn a_change_of_any_version_leaves_the_rest_as_it_is_just_then(store: &Store) {
    let id = add(store, "lamp", 5).await;
    store.take(order(1), &lines(&[(id, 2)])).await.unwrap();
    let nothing = ProductChange { name: None, price: None, stock: None };
    let (name, price) = (Some("Ångström".to_owned()), Money::from_cents(5));
    for (change, told) in [
        (nothing.clone(), ("lamp", 1999, 3, 3)),
        (ProductChange { price, ..nothing.clone() }, ("lamp", 5, 3, 4)),
        (ProductChange { name, ..nothing.clone() }, ("Ångström", 5, 3, 5)),
        (ProductChange { stock: Some(100), ..nothing.clone() }, ("Ångström", 5, 100, 6)),
    ] {
        let changed = store.change(id, &change).await.unwrap().expect("it is there");
        for Product { public, version } in [&*changed, &*store.by_id(id).await.unwrap().unwrap()] {
            assert_eq!((&*public.name, public.price.cents(), public.stock, *version), told);
        }
    }
    let page = |name| store.page(Page { after: None, limit: 9 }, Some(name));
    assert_eq!((page("lamp").await.unwrap().rows.len(), page("ångström").await.unwrap().rows.len()), (0, 1));
    store.release(order(1)).await.unwrap();
    assert_eq!(stock(store, id).await, 102, "what was taken comes back on top");
    assert!(store.change(no_product(), &nothing).await.unwrap().is_none());
    assert!(store.remove(id, None).await.unwrap());
    assert!(
        !store.remove(id, None).await.unwrap() && store.change(id, &nothing).await.unwrap().is_none(),
        "it is gone"
    );
}

async fn a_take_is_all_or_nothing(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 1).await);
    let refused = store.take(order(1), &lines(&[(lamp, 6), (no_product(), 1), (desk, 1)])).await.unwrap();
    assert_eq!(
        refused,
        ReservationOutcome::Rejected(Refusal::Unknown(vec![1])),
        "an unknown product comes before a short one"
    );
    let refused = store.take(order(1), &lines(&[(lamp, 6), (desk, 1)])).await.unwrap();
    assert_eq!(refused, ReservationOutcome::Rejected(Refusal::InsufficientStock(vec![(0, 5)])));
    let refused = store.take(order(1), &lines(&[(lamp, 6), (desk, 2)])).await.unwrap();
    assert_eq!(
        refused,
        ReservationOutcome::Rejected(Refusal::InsufficientStock(vec![(0, 5), (1, 1)])),
        "each short line is named"
    );
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (5, 1), "nothing was taken");

    let ReservationOutcome::Created(taken) = store.take(order(1), &lines(&[(lamp, 5), (desk, 1)])).await.unwrap()
    else {
        panic!("all is there");
    };
    let told: Vec<_> = taken.lines.iter().map(|line| (line.name.as_str(), line.price.cents(), line.quantity)).collect();
    assert_eq!(told, [("lamp", 1999, 5), ("desk", 1999, 1)]);
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (0, 0), "down to the last unit");
}

async fn a_refused_take_leaves_its_id_free(store: &Store) {
    let lamp = add(store, "lamp", 1).await;
    assert!(matches!(store.take(order(1), &lines(&[(lamp, 2)])).await.unwrap(), ReservationOutcome::Rejected(_)));
    assert!(store.reservation(order(1)).await.unwrap().is_none());
    assert!(matches!(store.take(order(1), &lines(&[(lamp, 1)])).await.unwrap(), ReservationOutcome::Created(_)));
}

async fn a_take_repeated_is_answered_as_the_first_time(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    let ReservationOutcome::Created(first) = store.take(order(1), &lines(&[(lamp, 2), (desk, 1)])).await.unwrap()
    else {
        panic!("all is there");
    };
    let seen = store.by_id(lamp).await.unwrap().unwrap();
    let mut dearer = Product::clone(&seen);
    (dearer.public.price, dearer.version) = (Money::from_cents(5000).unwrap(), seen.version + 1);
    store.replace(seen.version, dearer).await.unwrap().expect("nobody else was there");
    for again in [lines(&[(lamp, 2), (desk, 1)]), lines(&[(desk, 1), (lamp, 2)])] {
        assert_eq!(
            store.take(order(1), &again).await.unwrap(),
            ReservationOutcome::Existing(first.clone()),
            "at the price of then"
        );
    }
    assert_eq!(stock(store, lamp).await, 3, "taken once");
}

async fn other_lines_under_a_taken_id_are_refused(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    store.take(order(1), &lines(&[(lamp, 2)])).await.unwrap();
    for other in [lines(&[(lamp, 3)]), lines(&[(desk, 2)]), lines(&[(lamp, 2), (desk, 1)])] {
        assert_eq!(store.take(order(1), &other).await.unwrap(), ReservationOutcome::Rejected(Refusal::Mismatch));
    }
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (3, 5));
}

async fn a_release_gives_back_once(store: &Store) {
    let lamp = add(store, "lamp", 5).await;
    store.take(order(1), &lines(&[(lamp, 2)])).await.unwrap();
    let status = || async { store.reservation(order(1)).await.unwrap().unwrap().status };
    assert_eq!(status().await, ReservationStatus::Taken);
    for _ in 0..3 {
        store.release(order(1)).await.unwrap();
        assert_eq!((stock(store, lamp).await, status().await), (5, ReservationStatus::Released));
    }
}

async fn a_released_id_can_never_be_taken(store: &Store) {
    let lamp = add(store, "lamp", 5).await;
    store.take(order(1), &lines(&[(lamp, 2)])).await.unwrap();
    for released in [order(1), order(2)] {
        store.release(released).await.unwrap(); // the second was never seen before
        let late = store.take(released, &lines(&[(lamp, 2)])).await.unwrap();
        assert_eq!(late, ReservationOutcome::Rejected(Refusal::Released));
    }
    assert_eq!(stock(store, lamp).await, 5);
    assert_eq!(store.reservation(order(2)).await.unwrap().unwrap().lines, []);
}

async fn a_removed_product_takes_its_stock_along(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 5).await, add(store, "desk", 5).await);
    store.take(order(1), &lines(&[(lamp, 2), (desk, 1)])).await.unwrap();
    let version = store.by_id(lamp).await.unwrap().unwrap().version;
    assert!(store.remove(lamp, Some(version)).await.unwrap());
    store.release(order(1)).await.unwrap();
    assert_eq!(stock(store, desk).await, 5);
    assert!(store.by_id(lamp).await.unwrap().is_none());
}

async fn what_is_read_is_what_was_written(store: &Store) {
    let new = NewProduct { name: "Σίσυφος 🪨".to_owned(), price: Money::MAX, stock: 1_000_000_000_000 };
    let created_at = "2026-01-31T09:30:00.123456Z".parse().unwrap();
    let added = store.insert(new, created_at).await.unwrap();
    let told = |product: &Product| (product.public.clone(), product.version);
    let read = store.by_id(added.public.id).await.unwrap().unwrap();
    assert_eq!((told(&read), read.public.created_at), (told(&added), created_at));
    let mut next = Product::clone(&read);
    (next.public.name, next.public.price, next.version) = ("rock".to_owned(), Money::default(), read.version + 1);
    let changed = store.replace(read.version, next.clone()).await.unwrap().unwrap();
    let read = store.by_id(added.public.id).await.unwrap().unwrap();
    assert_eq!((told(&changed), told(&read)), (told(&next), told(&next)));
    let named = |name| store.page(Page { after: None, limit: 1 }, Some(name));
    assert!(named("σίσυφος").await.unwrap().rows.is_empty(), "it has that name no more");
    assert_eq!(named("ROCK").await.unwrap().rows.len(), 1);
}

async fn twenty_buyers_of_the_last_unit_and_one_gets_it(store: &Store) {
    let lamp = add(store, "lamp", 1).await;
    let buyers = (0..20).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.take(order(n), &lines(&[(lamp, 1)])).await.unwrap() })
    });
    let outcomes = join_all(buyers).await.into_iter().map(|outcome| outcome.unwrap());
    assert_eq!(outcomes.filter(|taken| matches!(taken, ReservationOutcome::Created(_))).count(), 1);
    assert_eq!(stock(store, lamp).await, 0);
}

async fn an_order_that_is_taken_twice_at_the_same_time_is_taken_once(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 50).await, add(store, "desk", 100).await);
    for n in 0..50 {
        let takes = [[(lamp, 1), (desk, 2)], [(desk, 2), (lamp, 1)]].into_iter().cycle().take(4).map(|wanted| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.take(order(n), &lines(&wanted)).await.unwrap() })
        });
        let mut now = 0;
        let mut reservations = Vec::new();
        for taken in join_all(takes).await {
            match taken.unwrap() {
                ReservationOutcome::Created(reserved) => (now, _) = (now + 1, reservations.push(reserved)),
                ReservationOutcome::Existing(reserved) => reservations.push(reserved),
                ReservationOutcome::Rejected(refusal) => {
                    panic!("{refusal:?}, though it is only itself that is in the way")
                }
            }
        }
        assert_eq!(now, 1);
        assert!(reservations.iter().all(|reserved| *reserved == reservations[0]), "all are told the same");
    }
    assert_eq!((stock(store, lamp).await, stock(store, desk).await), (0, 0), "it was just enough, to the end");
}

async fn a_take_and_a_release_at_the_same_time_end_released(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 2).await, add(store, "desk", 1).await);
    for n in 0..100 {
        let take = || {
            let (store, wanted) = (Arc::clone(store), lines(&[(desk, 1), (lamp, 2)]));
            tokio::spawn(async move { store.take(order(n), &wanted).await.unwrap() })
        };
        let release = || {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.release(order(n)).await.unwrap() })
        };
        let (first, one, second, other) = tokio::join!(take(), release(), take(), release());
        one.and(other).unwrap();
        for taken in [first.unwrap(), second.unwrap()] {
            let legal = matches!(
                taken,
                ReservationOutcome::Created(_)
                    | ReservationOutcome::Existing(_)
                    | ReservationOutcome::Rejected(Refusal::Released)
            );
            assert!(legal, "{taken:?}");
        }
        let status = store.reservation(order(n)).await.unwrap().unwrap().status;
        assert_eq!(status, ReservationStatus::Released);
        assert_eq!((stock(store, lamp).await, stock(store, desk).await), (2, 1), "whichever was first");
    }
}

/// So many units of the nth of some products, for an order.
type Wanted = (u128, Vec<(usize, u32)>);

fn wanted() -> impl Strategy<Value = Wanted> {
    let lines = prop::collection::btree_map(0..3_usize, 1..6_u32, 1..4);
    (0..8_u128, lines.prop_map(|lines| lines.into_iter().collect::<Vec<_>>()).prop_shuffle())
}

fn take((n, wanted): &Wanted, products: &[Id]) -> ReservationRequest {
    let wanted: Vec<_> = wanted.iter().map(|&(product, units)| (products[product], units)).collect();
    ReservationRequest { order_id: order(*n), lines: lines(&wanted) }
}

/// What a client may do to the stock.
#[derive(Clone, Debug)]
enum Step {
    Take(Vec<Wanted>),
    Release(Vec<u128>),
    Restock(usize, i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(wanted(), 1..4).prop_map(Step::Take),
        2 => prop::collection::vec(0..8_u128, 1..4).prop_map(Step::Release),
        1 => (0..3_usize, 0..20_i64).prop_map(|(product, stock)| Step::Restock(product, stock)),
    ]
}

/// Runs lists of steps from four tasks at once, over and over, and counts the units after each round.
async fn any_takes_and_releases_conserve_the_stock(store: &Store) {
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
        for restocked in join_all(running).await {
            restocked.unwrap().into_iter().for_each(|(product, units)| added[product] += units);
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

/// One client's steps; what it added to each product.
async fn run(store: Store, products: Vec<Id>, steps: Vec<Step>, round: u128) -> Vec<(usize, i64)> {
    let mut added = Vec::new();
    for step in steps {
        match step {
            Step::Take(takes) => {
                let takes = takes.into_iter().map(|(n, wanted)| take(&(round * 8 + n, wanted), &products));
                store.take_each(&takes.collect::<Vec<_>>()).await.unwrap();
            }
            Step::Release(orders) => {
                let orders: Vec<_> = orders.into_iter().map(|n| order(round * 8 + n)).collect();
                store.release_each(&orders).await.unwrap();
            }
            Step::Restock(product, units) => {
                let seen = store.by_id(products[product]).await.unwrap().unwrap();
                let mut next = Product::clone(&seen);
                (next.public.stock, next.version) = (units, seen.version + 1);
                if store.replace(seen.version, next).await.unwrap().is_some() {
                    added.push((product, units - seen.public.stock));
                }
            }
        }
    }
    added
}

/// What came of a take, but for how much was left at which moment.
fn outcome(taken: &ReservationOutcome) -> &'static str {
    match taken {
        ReservationOutcome::Created(_) => "now",
        ReservationOutcome::Existing(_) => "already",
        ReservationOutcome::Rejected(Refusal::Unknown(_)) => "unknown",
        ReservationOutcome::Rejected(Refusal::InsufficientStock(_)) => "short",
        ReservationOutcome::Rejected(Refusal::Released) => "released",
        ReservationOutcome::Rejected(Refusal::Mismatch) => "mismatch",
    }
}

/// Some products of which there is not enough for all, and then one that does not exist.
async fn scarce(store: &Store) -> [Id; 3] {
    [add(store, "lamp", 20).await, add(store, "desk", 5).await, no_product()]
}

/// Batches in which several want the last units, some for the same order, and others what there is not.
async fn takes_together_come_to_what_they_would_one_by_one(store: &Store) {
    assert!(store.take_each(&[]).await.unwrap().is_empty());
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for round in 0..100_u128 {
        let batch = prop::collection::vec(wanted(), 1..30).new_tree(&mut runner).unwrap().current();
        // The same twice: the one for orders of which the first bit is set, and products of its own.
        let (together, single) = (scarce(store).await, scarce(store).await);
        let of = |half: u128, products: &[Id]| -> Vec<ReservationRequest> {
            let takes = batch.iter().map(|(n, wanted)| ((half << 100) + round * 8 + n, wanted.clone()));
            takes.map(|wanted| take(&wanted, products)).collect()
        };
        let (batch, each) = (of(1, &together), of(0, &single));
        for id in [batch[0].order_id, each[0].order_id].into_iter().filter(|_| round % 4 == 0) {
            store.release(id).await.unwrap();
        }
        let taken = store.take_each(&batch).await.unwrap().into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(taken.len(), batch.len());
        for (n, (taken, (one, alone))) in taken.iter().zip(batch.iter().zip(&each)).enumerate() {
            let alone = store.take(alone.order_id, &alone.lines).await.unwrap();
            assert_eq!(outcome(taken), outcome(&alone), "round {round}, take {n} of {batch:?}: {taken:?}, {alone:?}");
            *seen.entry(outcome(taken)).or_insert(0) += 1;
            if let ReservationOutcome::Created(reserved) | ReservationOutcome::Existing(reserved) = taken {
                assert!(reserved.order_id == one.order_id && one.lines.matches(&reserved.lines));
            }
            if let ReservationOutcome::Rejected(Refusal::InsufficientStock(at)) = taken {
                let wanted = |at: usize| i64::from(one.lines.as_slice()[at].quantity);
                assert!(!at.is_empty() && at.iter().all(|&(at, left)| left < wanted(at)), "{at:?} of {one:?}");
            }
        }
        for (one, other) in together.into_iter().zip(single).take(2) {
            assert_eq!(stock(store, one).await, stock(store, other).await, "round {round}");
        }
    }
    assert_eq!(seen.len(), 6, "each outcome was there: {seen:?}");
}

async fn releases_together_come_to_what_they_would_one_by_one(store: &Store) {
    let (lamp, desk) = (add(store, "lamp", 9).await, add(store, "desk", 9).await);
    for n in 0..4 {
        let wanted = lines(&[(lamp, 1), (desk, 2)]);
        assert!(matches!(store.take(order(n), &wanted).await.unwrap(), ReservationOutcome::Created(_)));
    }
    store.release(order(1)).await.unwrap();
    let gone = [order(2), order(1), order(7), order(0), order(7), order(2)];
    for _ in 0..2 {
        store.release_each(&gone).await.unwrap();
        assert_eq!((stock(store, lamp).await, stock(store, desk).await), (8, 7), "each once, and not the fourth");
    }
    for released in gone {
        assert_eq!(store.reservation(released).await.unwrap().unwrap().status, ReservationStatus::Released);
        let late = store.take(released, &lines(&[(lamp, 1)])).await.unwrap();
        assert_eq!(late, ReservationOutcome::Rejected(Refusal::Released));
    }
    assert_eq!(store.reservation(order(3)).await.unwrap().unwrap().status, ReservationStatus::Taken);
    store.remove(lamp, None).await.unwrap();
    store.release_each(&[order(3)]).await.unwrap();
    store.release_each(&[]).await.unwrap();
    assert_eq!(stock(store, desk).await, 9, "of what exists still");
}
