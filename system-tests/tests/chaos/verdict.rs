//! Whether everything that was promised is there, and nothing else: by HTTP, as customers see it, and in the databases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;
use system_tests::durable::Durable;
use system_tests::invariants::DatabaseSnapshot;

use crate::customers::{Cancel, Customer, Known, Shop, id};

/// What came of it all.
pub(crate) struct Verdict {
    pub(crate) placed: usize,
    pub(crate) refused: usize,
    lost: usize,
    doubled: usize,
    oversold: i64,
    settled: Option<Duration>,
    /// Everything that may not be.
    pub(crate) violations: Vec<String>,
}

/// Compares what the customers know with what there is.
pub(crate) async fn of(durable: &Durable, customers: &[Customer], shop: &Shop, settled: Option<Duration>) -> Verdict {
    let books = DatabaseSnapshot::read(durable).await.expect("the databases answer");
    let orders = all_orders(durable).await;
    let mut violations: Vec<String> = customers.iter().flat_map(|customer| customer.outrages.clone()).collect();
    violations.extend(books.violations(&shop.units));
    if settled.is_none() {
        violations.push("I8: ten seconds after the last fault something was half done".to_owned());
    }

    let (mut placed, mut refused, mut lost) = (BTreeSet::new(), 0, 0);
    let keys = books.by_key();
    for purchase in customers.iter().flat_map(|customer| &customer.purchases) {
        match &purchase.state {
            Known::Placed { order, cancel } => {
                placed.insert(id(order));
                if let Err(reason) = is_as_promised(orders.get(id(order)), order, *cancel) {
                    lost += 1;
                    violations.push(format!("I5: {}: {reason}", purchase.key));
                }
            }
            Known::Refused if purchase.is_definite() => {
                refused += 1;
                if let Some(orders) = keys.get(&*purchase.key) {
                    violations.push(format!("I6: {} was refused, and is {orders:?}", purchase.key));
                }
            }
            _ => violations.push(format!("nobody can say what came of {}", purchase.key)),
        }
    }
    let strange: Vec<_> = orders.iter().filter(|(id, _)| !placed.contains(id.as_str())).collect();
    violations.extend(strange.iter().map(|(_, order)| format!("doubled: {order}")));
    let oversold = shop.units.iter().map(|(product, units)| (sold(&orders, *product) - units).max(0)).sum();
    Verdict { placed: placed.len(), refused, lost, doubled: strange.len(), oversold, settled, violations }
}

/// All orders that clients see, by id, page by page.
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

/// Whether what is there now is what was promised, and where it should stand.
fn is_as_promised(now: Option<&Value>, promised: &Value, cancel: Cancel) -> Result<(), String> {
    let Some(now) = now else { return Err(format!("lost: {promised}")) };
    let allowed: &[&str] = match cancel {
        Cancel::NotSent => &["pending"],
        Cancel::InTheDark => return Err(format!("nobody can say whether {promised} is cancelled")),
        Cancel::Done => &["cancelled"],
    };
    let mut expected = promised.clone();
    expected["status"] = now["status"].clone();
    if *now != expected || !allowed.iter().any(|status| now["status"] == *status) {
        return Err(format!("promised {promised}, allowed {allowed:?}, found {now}"));
    }
    Ok(())
}

/// The units of a product in orders that are not cancelled.
fn sold(orders: &BTreeMap<String, Value>, product: i64) -> i64 {
    let valid = orders.values().filter(|order| order["status"] != "cancelled");
    let lines = valid.flat_map(|order| order["products"].as_array().into_iter().flatten());
    lines.filter(|line| line["productId"] == product).filter_map(|line| line["quantity"].as_i64()).sum()
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { placed, refused, lost, doubled, oversold, settled, .. } = self;
        let settled = settled.map_or_else(|| "never".to_owned(), |settled| format!("{:.1} s", settled.as_secs_f64()));
        write!(
            f,
            "orders {} ({placed} placed, {refused} refused), lost {lost}, doubled {doubled}, ",
            placed + refused
        )?;
        write!(f, "oversold {oversold}, settled in {settled}")
    }
}
