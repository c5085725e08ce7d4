//! Units are conserved: random steps, one after the other and concurrent, lose no unit and sell none twice.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{Shop, lines, order};

const PRODUCTS: usize = 3;
const ORDERS: u128 = 6;
/// The initial stock of each product.
const STOCK: [i64; PRODUCTS] = [10, 5, 1];

/// Units of products, by the index of the product.
type Wanted = BTreeMap<usize, u32>;

/// A step that changes stock.
#[derive(Clone, Debug)]
enum Step {
    /// Reserves in one request: a single order by `PUT`, several by `POST`.
    Reserve(Vec<(u128, Wanted)>),
    /// Releases in one request: a single order by its path, several by `?ids=`.
    Release(Vec<u128>),
    /// Sets the stock of a product, if it has not changed since it was read.
    SetStock(usize, i64),
}

fn step() -> impl Strategy<Value = Step> {
    let wanted = prop::collection::btree_map(0..PRODUCTS, 1..6_u32, 1..=PRODUCTS);
    let request = (0..ORDERS, wanted);
    prop_oneof![
        4 => prop::collection::vec(request, 1..4).prop_map(Step::Reserve),
        2 => prop::collection::vec(0..ORDERS, 1..4).prop_map(Step::Release),
        1 => (0..PRODUCTS, 0..20_i64).prop_map(|(product, stock)| Step::SetStock(product, stock)),
    ]
}

async fn shop() -> Shop {
    let shop = Shop::empty().await;
    for units in STOCK {
        shop.add("Thing", units).await;
    }
    shop
}

/// Returns the id of a product by its index.
fn id(product: usize) -> i64 {
    product as i64 + 1
}

/// Returns the stock of every product, read in one request. None is negative.
async fn stocks(shop: &Shop) -> Vec<i64> {
    let rows = shop.inventory().await;
    let stocks: Vec<i64> = rows.as_array().into_iter().flatten().filter_map(|row| row["stock"].as_i64()).collect();
    assert!(stocks.len() == PRODUCTS && stocks.iter().all(|units| *units >= 0), "{rows}");
    stocks
}

/// Reserves for these orders, and returns the status of each.
async fn reserve(shop: &Shop, requests: &[(u128, Wanted)]) -> Vec<u64> {
    let body =
        |wanted: &Wanted| lines(&wanted.iter().map(|(product, units)| (id(*product), *units)).collect::<Vec<_>>());
    if let [(n, wanted)] = requests {
        let path = format!("/reservations/{}", order(*n));
        return vec![shop.put(&path, json!({"lines": body(wanted)})).await.status.as_u16().into()];
    }
    let items: Value =
        requests.iter().map(|(n, wanted)| json!({"orderId": order(*n), "lines": body(wanted)})).collect();
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

/// Sets the stock, unless it changes meanwhile, and returns the number of added units.
async fn set_stock(shop: &Shop, product: usize, stock: i64) -> i64 {
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

/// The expected state of the shop, in the simplest form.
struct Model {
    stock: Vec<i64>,
    /// `None` for a released reservation.
    reservations: BTreeMap<u128, Option<Wanted>>,
}

impl Model {
    /// Returns the status of the response to a request to reserve.
    fn reserve(&mut self, n: u128, wanted: &Wanted) -> u64 {
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

/// Runs the steps one after the other. Every response and every stock is that of the model.
async fn one_client(steps: Vec<Step>) {
    let shop = shop().await;
    let mut model = Model { stock: STOCK.to_vec(), reservations: BTreeMap::new() };
    for step in steps {
        match &step {
            Step::Reserve(requests) => {
                let expected: Vec<u64> = requests.iter().map(|(n, wanted)| model.reserve(*n, wanted)).collect();
                assert_eq!(reserve(&shop, requests).await, expected, "{step:?}");
            }
            Step::Release(orders) => {
                orders.iter().for_each(|n| model.release(*n));
                release(&shop, orders).await;
            }
            Step::SetStock(product, stock) => {
                let before = std::mem::replace(&mut model.stock[*product], *stock);
                assert_eq!(set_stock(&shop, *product, *stock).await, stock - before, "no other client interferes");
            }
        }
        assert_eq!(stocks(&shop).await, model.stock, "after {step:?}");
    }
}

/// Runs concurrent clients. Afterwards every unit is either free or held by a reservation.
async fn several_clients(clients: Vec<Vec<Step>>) {
    let shop = shop().await;
    let running = clients.into_iter().map(|steps| tokio::spawn(client(shop.clone(), steps))).collect::<Vec<_>>();
    let mut units = STOCK.to_vec();
    for client in running {
        let added = client.await.expect("a client that does not panic");
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
    assert_eq!(found, units, "free and held units, and all units that were added");
}

/// Runs the steps of one client, and returns the number of units that it added to each product.
async fn client(shop: Shop, steps: Vec<Step>) -> [i64; PRODUCTS] {
    let mut added = [0; PRODUCTS];
    for step in steps {
        match step {
            Step::Reserve(requests) => drop(reserve(&shop, &requests).await),
            Step::Release(orders) => release(&shop, &orders).await,
            Step::SetStock(product, stock) => added[product] += set_stock(&shop, product, stock).await,
        }
        stocks(&shop).await;
    }
    added
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_any_sequence_of_steps_like_the_model(steps in prop::collection::vec(step(), 0..40)) {
        RUNTIME.block_on(one_client(steps));
    }

    #[test]
    fn conserves_every_unit_under_concurrent_steps(
        clients in prop::collection::vec(prop::collection::vec(step(), 0..20), 2..=4)
    ) {
        RUNTIME.block_on(several_clients(clients));
    }
}
