//! Chaos: sixteen customers, and every second or two something is killed, frozen or cut off. When it is over, every order
//! that was promised is there once, every unit is sold once or free, and nothing is left half done.
//!
//! `TEST_SEED` chooses the faults and what the customers do (not how the threads of so many processes meet: the same seed
//! is the same plan, not the same run), `CHAOS_MINUTES` how long.

mod customers;
mod faults;
mod verdict;

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use system_tests::durable::Durable;
use system_tests::{DEADLINE, invariants, seed};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::customers::{Customer, Shop};
use crate::faults::Faults;

/// What CI has time for.
const MINUTES: f64 = 2.5;
const CUSTOMERS: u64 = 16;
/// Users 1 to 5, one of whom each order is for.
const USERS: i64 = 5;
/// Units of products 1 to 10: three of them run out, and are sold again when somebody cancels.
const UNITS: [i64; 10] = [1_000_000, 30, 1_000_000, 1_000_000, 40, 1_000_000, 1_000_000, 50, 1_000_000, 1_000_000];

/// A run with fewer proves nothing.
const DEFINITE_ORDERS: usize = 3_000;
/// A run that is short of them goes on by so much, to twice its length at most.
const MORE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_is_lost_and_no_unit_sold_twice_whatever_is_killed() {
    let seed = seed();
    let Some(mut durable) = Durable::start(seed, |launch| launch.env("RUST_LOG", "warn")).await else { return };
    let shop = stock_up(&durable).await;
    let length = Duration::from_secs_f64(minutes() * 60.0);
    say(format_args!("\nchaos: TEST_SEED={seed}, {:.1} minutes", minutes()));

    let mut dice = StdRng::seed_from_u64(seed);
    let (open, closing) = watch::channel(true);
    let customers = (0..CUSTOMERS).map(|number| {
        let customer = Customer::new(number, shop.clone(), StdRng::seed_from_u64(seed.wrapping_add(number)));
        tokio::spawn(customer.shop(closing.clone()))
    });
    let customers: Vec<_> = customers.collect();
    let mut faults = Faults::new(&mut durable);
    faults.strike_for(length, &mut dice).await;
    let too_few = |faults: &Faults<'_>| !faults.are_enough() || shop.definite.load(Ordering::Relaxed) < DEFINITE_ORDERS;
    while faults.elapsed() < 2 * length && too_few(&faults) {
        faults.strike_for(MORE, &mut dice).await; // the machine is slow
    }
    open.send_replace(false);
    let (enough, counts) = (faults.are_enough(), faults.heal().await);
    let healed = Instant::now();
    let customers = join_all(customers).await;
    let mut customers: Vec<_> =
        customers.into_iter().map(|customer| customer.expect("a customer stays calm")).collect();
    let settled = invariants::settled(&durable).await.map(|_| healed.elapsed()).filter(|elapsed| *elapsed <= DEADLINE);
    for customer in &mut customers {
        customer.ask_until_definite().await;
    }
    let settled = invariants::settled(&durable).await.and(settled); // what was asked just now may have been refused
    let verdict = verdict::of(&durable, &customers, &shop, settled).await;

    let total: usize = counts.values().sum();
    say(format_args!("chaos: {counts:?}"));
    say(format_args!("chaos: {verdict}, faults {total}"));
    assert!(verdict.violations.is_empty(), "TEST_SEED={seed}\n{}", verdict.violations.join("\n"));
    assert!(enough, "too few faults: {counts:?}");
    assert!(verdict.placed + verdict.refused >= DEFINITE_ORDERS, "too few orders: {verdict}");
}

fn minutes() -> f64 {
    env::var("CHAOS_MINUTES").map_or(MINUTES, |minutes| minutes.parse().expect("CHAOS_MINUTES is a number"))
}

/// Past the test runner, which shows only what a failed test has said.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Users to order for, and products to sell.
async fn stock_up(durable: &Durable) -> Shop {
    let system = &durable.system;
    for number in 1..=USERS {
        system.users.post("/users", json!({"name": format!("Customer {number}")})).await.expect(201);
    }
    let mut units = BTreeMap::new();
    for (number, stock) in (1..).zip(UNITS) {
        units.insert(system.add_product(&format!("Product {number}"), f64::from(number) + 0.99, stock).await, stock);
    }
    Shop { orders: system.orders.url(), products: system.products.url(), users: USERS, units, definite: Arc::default() }
}
