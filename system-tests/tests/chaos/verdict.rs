//! Compares what the customers know with the orders, by HTTP and in the databases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;
use system_tests::durable::Durable;
use system_tests::invariants::DatabaseSnapshot;

use crate::customers::{Cancel, Customer, Known, Shop, id};

/// The result of a run.
pub(crate) struct Verdict {
    pub(crate) placed: usize,
    pub(crate) rejected: usize,
    lost: usize,
    unexpected: usize,
    oversold: i64,
    settled: Option<Duration>,
    /// Every violation of an invariant or of the contract.
    pub(crate) violations: Vec<String>,
}

/// Compares the records of the customers with the stored orders.
pub(crate) async fn of(durable: &Durable, customers: &[Customer], shop: &Shop, settled: Option<Duration>) -> Verdict {
    let snapshot = DatabaseSnapshot::read(durable).await.expect("the databases answer");
    let orders = all_orders(durable).await;
    let mut violations: Vec<String> = customers.iter().flat_map(|customer| customer.violations.clone()).collect();
    violations.extend(snapshot.violations(&shop.units));
    if settled.is_none() {
        violations.push("I8: ten seconds after the last fault an order was not settled".to_owned());
    }

    let (mut placed, mut rejected, mut lost) = (BTreeSet::new(), 0, 0);
    let keys = snapshot.by_key();
    for purchase in customers.iter().flat_map(|customer| &customer.purchases) {
        match &purchase.state {
            Known::Placed { order, cancel } => {
                placed.insert(id(order));
                if let Err(reason) = check_order(orders.get(id(order)), order, *cancel) {
                    lost += 1;
                    violations.push(format!("I5: {}: {reason}", purchase.key));
                }
            }
            Known::Rejected if purchase.is_definite() => {
                rejected += 1;
                if let Some(orders) = keys.get(&*purchase.key) {
                    violations.push(format!("I6: {} was rejected, and is {orders:?}", purchase.key));
                }
            }
            _ => violations.push(format!("the outcome of {} is unknown", purchase.key)),
        }
    }
    let unknown: Vec<_> = orders.iter().filter(|(id, _)| !placed.contains(id.as_str())).collect();
    violations.extend(unknown.iter().map(|(_, order)| format!("no customer knows {order}")));
    let oversold = shop.units.iter().map(|(product, units)| (sold(&orders, *product) - units).max(0)).sum();
    Verdict { placed: placed.len(), rejected, lost, unexpected: unknown.len(), oversold, settled, violations }
}

/// Returns all orders that clients can see, by id.
async fn all_orders(durable: &Durable) -> BTreeMap<String, Value> {
    let mut orders = BTreeMap::new();
    let mut after = String::new();
    loop {
        let page = durable.system.orders.get(&format!("/orders?limit=1000{after}")).await.expect(200).json();
        let page = page.as_array().expect("a list").clone();
        let Some(last) = page.last() else { return orders };
        after = format!("&after={}", id(last));
        orders.extend(page.into_iter().map(|order| (id(&order).to_owned(), order)));
    }
}

/// Checks that an order still equals its first response, except for an allowed status.
fn check_order(now: Option<&Value>, placed: &Value, cancel: Cancel) -> Result<(), String> {
    let Some(now) = now else { return Err(format!("lost: {placed}")) };
    let allowed: &[&str] = match cancel {
        Cancel::NotSent => &["pending"],
        Cancel::Unknown => return Err(format!("whether {placed} is cancelled is unknown")),
        Cancel::Done => &["cancelled"],
    };
    let mut expected = placed.clone();
    expected["status"] = now["status"].clone();
    if *now != expected || !allowed.iter().any(|status| now["status"] == *status) {
        return Err(format!("placed {placed}, allowed {allowed:?}, found {now}"));
    }
    Ok(())
}

/// Returns the units of a product in orders that are not cancelled.
fn sold(orders: &BTreeMap<String, Value>, product: i64) -> i64 {
    let valid = orders.values().filter(|order| order["status"] != "cancelled");
    let lines = valid.flat_map(|order| order["products"].as_array().into_iter().flatten());
    lines.filter(|line| line["productId"] == product).filter_map(|line| line["quantity"].as_i64()).sum()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { placed, rejected, lost, unexpected, oversold, settled, .. } = self;
        let settled = settled.map_or_else(|| "never".to_owned(), |settled| format!("{:.1} s", settled.as_secs_f64()));
        write!(
            f,
            "orders {} ({placed} placed, {rejected} rejected), lost {lost}, unexpected {unexpected}, ",
            placed + rejected
        )?;
        write!(f, "oversold {oversold}, settled in {settled}")
    }
}
