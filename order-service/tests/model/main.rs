//! Order placement as a small machine, and a search of everything that can happen to it.
//!
//! A few attempts to place one order, all under one idempotency key, while rivals buy the same stock; messages come
//! late, twice or never, order-service dies at any step, and the reconciler acts at any moment. [`world`] is what there
//! is and what must hold, [`steps`] is what can happen, and [`search`] goes everywhere that the steps lead.
//!
//! A row moves by the functions of `State`, a reservation by those of `ReservationStatus`, and by nothing else: the code
//! that runs has its rules from there too, so what is wrong with them is found here.

mod search;
mod steps;
mod world;

use std::collections::BTreeSet;
use std::env;
use std::time::Instant;

use crate::search::Search;
use crate::world::{Invariant, World};

/// What somebody may one day take for an improvement. Each has a test that shows what it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// A release of what was never taken leaves no mark.
    NoTombstone,
    /// An order is settled without looking whether it was given up meanwhile.
    SettleRegardless,
    /// An order is settled before product-service has said that its stock is taken.
    SettleBeforeTaken,
    /// A row is finished when its release is sent, not when it is acknowledged.
    FinishBeforeReleased,
    /// A take that was refused is not released: nothing was taken.
    NoReleaseAfterRefusal,
    /// An attempt that ends badly is released without looking whether it could be given up.
    ReleaseRegardless,
}

#[test]
fn the_protocol_holds_for_every_interleaving() {
    the_protocol_holds::<2>(1);
    the_protocol_holds::<2>(2);
    if three_attempts() {
        the_protocol_holds::<3>(1);
    } else {
        println!("searched two attempts only: three take `--release`, or MODEL_ATTEMPTS=3");
    }
}

/// What never happens breaks nothing: if the rules forbade a step, the search above would find all in order.
#[test]
fn every_step_happens() {
    let search = Search::<2>::of(1, None);
    let happened: BTreeSet<_> = search.worlds.iter().flat_map(World::steps).map(|(step, _)| step.name).collect();
    let missing: Vec<_> = World::<2>::step_names().filter(|name| !happened.contains(name)).collect();
    assert!(missing.is_empty(), "this never happens: {missing:?}");
}

#[test]
fn without_a_tombstone_a_late_take_is_nobodys() {
    assert_eq!(broken_by::<1>(Mistake::NoTombstone), [Invariant::I3]);
}

#[test]
fn settling_what_was_given_up_sells_without_stock_and_twice() {
    assert_eq!(broken_by::<2>(Mistake::SettleRegardless), [Invariant::I2, Invariant::I4]);
}

#[test]
fn settling_before_the_take_is_acknowledged_sells_without_stock() {
    assert_eq!(broken_by::<1>(Mistake::SettleBeforeTaken), [Invariant::I2]);
}

#[test]
fn finishing_a_row_before_its_release_is_acknowledged_loses_stock() {
    assert_eq!(broken_by::<1>(Mistake::FinishBeforeReleased), [Invariant::I3]);
}

#[test]
fn skipping_the_release_after_a_refusal_loses_stock() {
    assert_eq!(broken_by::<1>(Mistake::NoReleaseAfterRefusal), [Invariant::I3]);
}

#[test]
fn releasing_what_could_not_be_given_up_sells_without_stock() {
    assert_eq!(broken_by::<1>(Mistake::ReleaseRegardless), [Invariant::I2]);
}

/// Whether there is time for three attempts: seconds with optimisation, minutes without.
fn three_attempts() -> bool {
    env::var("MODEL_ATTEMPTS").map_or(!cfg!(debug_assertions), |attempts| attempts == "3")
}

/// Every invariant holds in every world, and each world can still be settled.
fn the_protocol_holds<const N: usize>(stock: u8) {
    let start = Instant::now();
    let mut search = Search::<N>::of(stock, None);
    assert!(search.broken.is_empty(), "{}", search.broken_paths());
    if let Some(stuck) = search.stuck() {
        panic!("this can never be settled, after{}", search.path(stuck));
    }
    println!("attempts {N}, stock {stock}: all {} worlds, in {:.1?}", search.worlds.len(), start.elapsed());
}

/// What so many attempts can break with this mistake.
fn broken_by<const N: usize>(mistake: Mistake) -> Vec<Invariant> {
    let search = Search::<N>::of(1, Some(mistake));
    println!("{mistake:?}{}", search.broken_paths());
    search.broken.into_keys().collect()
}
