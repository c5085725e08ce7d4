//! Chaos: sixteen customers order while every second or so a process is killed or frozen, or a link fails. Afterwards every
//! confirmed order is stored once, every unit is sold once or free, and every order is settled.
//!
//! `TEST_SEED` chooses the faults and the actions of the customers. The same seed gives the same plan but not the same run,
//! because the timing of the processes differs. `CHAOS_MINUTES=n` sets the length; `THOROUGH=1` runs 2.5 minutes.

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
use system_tests::{DEADLINE, invariants, is_thorough, seed};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::customers::{Customer, Shop};
use crate::faults::Faults;

/// The length of a run, and what a run must contain to prove something.
struct Length {
    minutes: f64,
    faults_of_each_kind: usize,
    definite_orders: usize,
}

/// The default: long enough for each kind of fault to happen once.
const SHORT: Length = Length { minutes: 0.5, faults_of_each_kind: 1, definite_orders: 500 };
/// With `THOROUGH=1`, or with `CHAOS_MINUTES`.
const LONG: Length = Length { minutes: 2.5, faults_of_each_kind: 8, definite_orders: 3_000 };
const CUSTOMERS: u64 = 16;
/// Orders are for users 1 to 5.
const USERS: i64 = 5;
/// The units of products 1 to 10. Three of them sell out, and are sold again after a cancellation.
const UNITS: [i64; 10] = [1_000_000, 30, 1_000_000, 1_000_000, 40, 1_000_000, 1_000_000, 50, 1_000_000, 1_000_000];

/// A run that is short of faults or orders continues in steps of this length, up to twice its length.
const EXTENSION: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loses_no_order_and_sells_no_unit_twice_when_everything_fails() {
    let seed = seed();
    let Some(mut durable) = Durable::start(seed, |launch| launch.env("RUST_LOG", "warn")).await else { return };
    let shop = fill(&durable).await;
    let limits = limits();
    let length = Duration::from_secs_f64(limits.minutes * 60.0);
    print(format_args!("\nchaos: TEST_SEED={seed}, {:.1} minutes", limits.minutes));

    let mut random = StdRng::seed_from_u64(seed);
    let (open, closing) = watch::channel(true);
    let customers = (0..CUSTOMERS).map(|number| {
        let customer = Customer::new(number, shop.clone(), StdRng::seed_from_u64(seed.wrapping_add(number)));
        tokio::spawn(customer.shop(closing.clone()))
    });
    let customers: Vec<_> = customers.collect();
    let mut faults = Faults::new(&mut durable);
    faults.inject_for(length, &mut random).await;
    let are_enough = |faults: &Faults<'_>| faults.are_enough(limits.faults_of_each_kind);
    let too_few =
        |faults: &Faults<'_>| !are_enough(faults) || shop.definite.load(Ordering::Relaxed) < limits.definite_orders;
    while faults.elapsed() < 2 * length && too_few(&faults) {
        faults.inject_for(EXTENSION, &mut random).await; // on a slow machine
    }
    open.send_replace(false);
    let (enough, counts) = (are_enough(&faults), faults.heal().await);
    let healed = Instant::now();
    let customers = join_all(customers).await;
    let mut customers: Vec<_> =
        customers.into_iter().map(|customer| customer.expect("a customer does not panic")).collect();
    let settled = invariants::settled(&durable).await.map(|_| healed.elapsed()).filter(|elapsed| *elapsed <= DEADLINE);
    for customer in &mut customers {
        customer.resolve().await;
    }
    let settled = invariants::settled(&durable).await.and(settled); // requests of this moment may have been rejected
    let verdict = verdict::of(&durable, &customers, &shop, settled).await;

    let total: usize = counts.values().sum();
    print(format_args!("chaos: {counts:?}"));
    print(format_args!("chaos: {verdict}, faults {total}"));
    assert!(verdict.violations.is_empty(), "TEST_SEED={seed}\n{}", verdict.violations.join("\n"));
    assert!(enough, "too few faults: {counts:?}");
    assert!(verdict.placed + verdict.rejected >= limits.definite_orders, "too few orders: {verdict}");
}

fn limits() -> Length {
    match env::var("CHAOS_MINUTES") {
        Ok(minutes) => Length { minutes: minutes.parse().expect("CHAOS_MINUTES is a number"), ..LONG },
        Err(_) if is_thorough() => LONG,
        Err(_) => SHORT,
    }
}

/// Prints on stderr, past the test runner, which shows only the output of failed tests.
fn print(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Adds the users and the products.
async fn fill(durable: &Durable) -> Shop {
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
