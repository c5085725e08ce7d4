//! A model of order placement as a state machine, and an exhaustive search of its states.
//!
//! A few attempts place one order with the same idempotency key, while other customers buy the same stock. Messages are
//! late, duplicated or lost, order-service dies at any step, and the reconciler acts at any moment. [`world`] is the
//! state and its invariants, [`steps`] are the transitions, and [`search`] visits every reachable state.
//!
//! Rows move only by the functions of `State`, reservations only by those of `ReservationStatus`. The services use the
//! same functions, so the model checks the rules that really run.

mod search;
mod steps;
mod world;

use std::collections::BTreeSet;
use std::env;
use std::time::Instant;

use crate::search::Search;
use crate::world::{Invariant, World};

/// Changes to the protocol that look harmless. Each has a test that shows which invariant it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// The release of an unknown reservation leaves no tombstone.
    NoTombstone,
    /// An intent is settled although it was aborted.
    SettleRegardless,
    /// An intent is settled before product-service has acknowledged its reservation.
    SettleBeforeReserved,
    /// A row is finished when its release is sent, before it is acknowledged.
    FinishBeforeReleased,
    /// A rejected reservation is not released.
    NoReleaseAfterRejection,
    /// A failed attempt is released although it could not be aborted.
    ReleaseRegardless,
}

#[test]
fn keeps_every_invariant_in_every_interleaving() {
    check_protocol::<2>(1);
    check_protocol::<2>(2);
    if three_attempts() {
        check_protocol::<3>(1);
    } else {
        println!("searched with two attempts; --release or MODEL_ATTEMPTS=3 searches with three");
    }
}

/// A step that never happens breaks nothing, so the search would not notice a rule that forbids it by mistake.
#[test]
fn reaches_every_step() {
    let search = Search::<2>::of(1, None);
    let reached: BTreeSet<_> = search.worlds.iter().flat_map(World::steps).map(|(step, _)| step.name).collect();
    let missing: Vec<_> = World::<2>::step_names().filter(|name| !reached.contains(name)).collect();
    assert!(missing.is_empty(), "unreachable steps: {missing:?}");
}

#[test]
fn loses_stock_without_a_tombstone() {
    assert_eq!(broken_by::<1>(Mistake::NoTombstone), [Invariant::I3]);
}

#[test]
fn sells_without_stock_and_twice_if_an_aborted_intent_is_settled() {
    assert_eq!(broken_by::<2>(Mistake::SettleRegardless), [Invariant::I2, Invariant::I4]);
}

#[test]
fn sells_without_stock_if_settled_before_the_reservation_is_acknowledged() {
    assert_eq!(broken_by::<1>(Mistake::SettleBeforeReserved), [Invariant::I2]);
}

#[test]
fn loses_stock_if_a_row_is_finished_before_its_release_is_acknowledged() {
    assert_eq!(broken_by::<1>(Mistake::FinishBeforeReleased), [Invariant::I3]);
}

#[test]
fn loses_stock_if_a_rejected_reservation_is_not_released() {
    assert_eq!(broken_by::<1>(Mistake::NoReleaseAfterRejection), [Invariant::I3]);
}

#[test]
fn sells_without_stock_if_released_without_abort() {
    assert_eq!(broken_by::<1>(Mistake::ReleaseRegardless), [Invariant::I2]);
}

/// Returns whether to search with three attempts: it takes seconds with optimisation, minutes without.
fn three_attempts() -> bool {
    env::var("MODEL_ATTEMPTS").map_or(!cfg!(debug_assertions), |attempts| attempts == "3")
}

/// Checks that every invariant holds in every reachable world, and that each world can still be settled.
fn check_protocol<const N: usize>(stock: u8) {
    let start = Instant::now();
    let mut search = Search::<N>::of(stock, None);
    assert!(search.broken.is_empty(), "{}", search.broken_paths());
    if let Some(stuck) = search.stuck() {
        panic!("cannot be settled after{}", search.path(stuck));
    }
    println!("attempts {N}, stock {stock}: all {} worlds, in {:.1?}", search.worlds.len(), start.elapsed());
}

/// Returns the invariants that `N` attempts can break with this mistake.
fn broken_by<const N: usize>(mistake: Mistake) -> Vec<Invariant> {
    let search = Search::<N>::of(1, Some(mistake));
    println!("{mistake:?}{}", search.broken_paths());
    search.broken.into_keys().collect()
}
