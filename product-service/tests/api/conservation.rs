//! No unit is lost and none is sold twice, whatever clients do, in whatever order and at the same time.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{Shop, lines, order};

const PRODUCTS: usize = 3;
const ORDERS: u128 = 6;
/// Units of each product at the beginning.
const STOCK: [i64; PRODUCTS] = [10, 5, 1];

/// So many units of some products, by their index.
type Wanted = BTreeMap<usize, u32>;

/// What a client may do to the stock.
#[derive(Clone, Debug)]
enum Step {
    /// Takes, in one call: alone by `PUT`, several by `POST`.
    Take(Vec<(u128, Wanted)>),
    /// Releases, in one call: alone by its address, several by `?ids=`.
    Release(Vec<u128>),
    /// A new stock for a product, if it is still what was seen.
    Restock(usize, i64),
}

fn step() -> impl Strategy<Value = Step> {
    let wanted = prop::collection::btree_map(0..PRODUCTS, 1..6_u32, 1..=PRODUCTS);
    let take = (0..ORDERS, wanted);
    prop_oneof![
        4 => prop::collection::vec(take, 1..4).prop_map(Step::Take),
        2 => prop::collection::vec(0..ORDERS, 1..4).prop_map(Step::Release),
        1 => (0..PRODUCTS, 0..20_i64).prop_map(|(product, stock)| Step::Restock(product, stock)),
    ]
}

async fn shop() -> Shop {
    let shop = Shop::empty().await;
    for units in STOCK {
        shop.add("Thing", units).await;
    }
    shop
}

/// A product's id by its index.
fn id(product: usize) -> i64 {
    product as i64 + 1
}

/// The stock of every product, seen at the same time; none is below zero.
async fn stocks(shop: &Shop) -> Vec<i64> {
    let rows = shop.inventory().await;
    let stocks: Vec<i64> = rows.as_array().into_iter().flatten().filter_map(|row| row["stock"].as_i64()).collect();
    assert!(stocks.len() == PRODUCTS && stocks.iter().all(|units| *units >= 0), "{rows}");
    stocks
}

/// Takes for these orders; the status of each.
async fn take(shop: &Shop, takes: &[(u128, Wanted)]) -> Vec<u64> {
    let body =
        |wanted: &Wanted| lines(&wanted.iter().map(|(product, units)| (id(*product), *units)).collect::<Vec<_>>());
    if let [(n, wanted)] = takes {
        let path = format!("/reservations/{}", order(*n));
        return vec![shop.put(&path, json!({"lines": body(wanted)})).await.status.as_u16().into()];
    }
    let items: Value = takes.iter().map(|(n, wanted)| json!({"orderId": order(*n), "lines": body(wanted)})).collect();
    let outcomes = shop.post("/reservations", items).await.expect(200).json();
    outcomes.as_array().into_iter().flatten().filter_map(|outcome| outcome["status"].as_u64()).collect()
}

async fn release(shop: &Shop, orders: &[u128]) {
    let released = match orders {
        [n] => shop.release(&order(*n)).await,
        several => {
            let ids: Vec<String> = several.iter().map(|n| order(*n)).collect();
            shop.delete(&format!("/reservations?ids={}", ids.join(","))).await
        }
    };
    released.expect(204);
}

/// Sets the stock, if nothing happens meanwhile; how many units came to it.
async fn restock(shop: &Shop, product: usize, stock: i64) -> i64 {
    let path = format!("/products/{}", id(product));
    let seen = shop.get(&path).await.expect(200);
    let change = shop.request("PATCH", &path).header("if-match", seen.header("etag")).json(&json!({"stock": stock}));
    let changed = change.send().await;
    if changed.status == 412 {
        return 0;
    }
    changed.expect(200);
    stock - seen.json()["stock"].as_i64().expect("a whole number")
}

/// What should be in the shop, as simply as it can be said.
struct Model {
    stock: Vec<i64>,
    /// `None` for those that were released.
    reservations: BTreeMap<u128, Option<Wanted>>,
}

impl Model {
    /// What a take is answered.
    fn take(&mut self, n: u128, wanted: &Wanted) -> u64 {
        match self.reservations.get(&n) {
            Some(Some(taken)) if taken == wanted => return 200,
            Some(_) => return 409,
            None => {}
        }
        if wanted.iter().any(|(product, units)| self.stock[*product] < i64::from(*units)) {
            return 409;
        }
        wanted.iter().for_each(|(product, units)| self.stock[*product] -= i64::from(*units));
        self.reservations.insert(n, Some(wanted.clone()));
        201
    }

    fn release(&mut self, n: u128) {
        let taken = self.reservations.insert(n, None).flatten().unwrap_or_default();
        taken.iter().for_each(|(product, units)| self.stock[*product] += i64::from(*units));
    }
}

/// One client, step by step: every answer is the one that the model gives, and so is the stock after it.
async fn one_client(steps: Vec<Step>) {
    let shop = shop().await;
    let mut model = Model { stock: STOCK.to_vec(), reservations: BTreeMap::new() };
    for step in steps {
        match &step {
            Step::Take(takes) => {
                let expected: Vec<u64> = takes.iter().map(|(n, wanted)| model.take(*n, wanted)).collect();
                assert_eq!(take(&shop, takes).await, expected, "{step:?}");
            }
            Step::Release(orders) => {
                orders.iter().for_each(|n| model.release(*n));
                release(&shop, orders).await;
            }
            Step::Restock(product, stock) => {
                let before = std::mem::replace(&mut model.stock[*product], *stock);
                assert_eq!(restock(&shop, *product, *stock).await, stock - before, "nobody else is there");
            }
        }
        assert_eq!(stocks(&shop).await, model.stock, "after {step:?}");
    }
}

/// Several clients at the same time: afterwards every unit is either free or in a reservation that is taken.
async fn several_clients(clients: Vec<Vec<Step>>) {
    let shop = shop().await;
    let running = clients.into_iter().map(|steps| tokio::spawn(client(shop.clone(), steps))).collect::<Vec<_>>();
    let mut units = STOCK.to_vec();
    for client in running {
        let added = client.await.expect("a client that ends well");
        units.iter_mut().zip(added).for_each(|(units, added)| *units += added);
    }
    let mut found = stocks(&shop).await;
    for n in 0..ORDERS {
        if shop.status(&order(n)).await == "taken" {
            let reservation = shop.reservation(&order(n)).await.json();
            for line in reservation["lines"].as_array().into_iter().flatten() {
                let product = line["productId"].as_u64().expect("an id") as usize - 1;
                found[product] += line["quantity"].as_i64().expect("a whole number");
            }
        }
    }
    assert_eq!(found, units, "what is free and what is taken, and what there has to be");
}

/// One of several clients; how many units it has added to each product.
async fn client(shop: Shop, steps: Vec<Step>) -> [i64; PRODUCTS] {
    let mut added = [0; PRODUCTS];
    for step in steps {
        match step {
            Step::Take(takes) => drop(take(&shop, &takes).await),
            Step::Release(orders) => release(&shop, &orders).await,
            Step::Restock(product, stock) => added[product] += restock(&shop, product, stock).await,
        }
        stocks(&shop).await;
    }
    added
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_steps_is_answered_as_the_model_says(steps in prop::collection::vec(step(), 0..40)) {
        RUNTIME.block_on(one_client(steps));
    }

    #[test]
    fn any_steps_at_the_same_time_conserve_every_unit(
        clients in prop::collection::vec(prop::collection::vec(step(), 0..20), 2..=4)
    ) {
        RUNTIME.block_on(several_clients(clients));
    }
}
