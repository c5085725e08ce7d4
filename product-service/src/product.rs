//! Every rule about a product.

use chassis::http::body::values::{Detail, integer, text};
use chassis::http::body::{FromJson, Members};
use serde::Deserialize;
use serde_json::Value;
use shared::{Money, products};

const MAX_NAME: usize = 200;
const MAX_PRICE: Money = Money::from_cents(100_000_000).expect("an amount of money");
/// More units than anyone sells, and far from where sums overflow.
const MAX_STOCK: i64 = 1_000_000_000_000;

/// A product as the store keeps it.
#[derive(Clone, Debug)]
pub struct Product {
    /// What anyone may see.
    pub public: products::Product,
    /// Counts the changes, those of the stock too, so that a change can be made to just the state that was seen.
    pub version: i64,
}

/// A product that a client wants added; the store gives it its id. Its parts follow the rules.
#[derive(Clone, Debug)]
pub struct NewProduct {
    /// What people see.
    pub name: String,
    /// What one unit costs.
    pub price: Money,
    /// The units to sell.
    pub stock: i64,
}

impl FromJson for NewProduct {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.required("name", text(1..=MAX_NAME));
        let price = body.optional("price", price);
        let stock = body.optional("stock", integer(0..=MAX_STOCK));
        Some(Self { name: name?, price: price?.unwrap_or_default(), stock: stock?.unwrap_or_default() })
    }
}

/// The members of a product that a client wants changed. They follow the same rules.
#[derive(Clone, Debug)]
pub struct ProductChange {
    /// What people see from now on.
    pub name: Option<String>,
    /// What one unit costs from now on.
    pub price: Option<Money>,
    /// The units that there are to sell now, whatever there were.
    pub stock: Option<i64>,
}

impl FromJson for ProductChange {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.patch("name", text(1..=MAX_NAME));
        let price = body.patch("price", price);
        let stock = body.patch("stock", integer(0..=MAX_STOCK));
        Some(Self { name: name?, price: price?, stock: stock? })
    }
}

impl ProductChange {
    /// What becomes of `product`.
    pub fn apply(&self, product: &Product) -> Product {
        let mut changed = product.clone();
        changed.version += 1;
        changed.public.name = self.name.clone().unwrap_or(changed.public.name);
        changed.public.price = self.price.unwrap_or(changed.public.price);
        changed.public.stock = self.stock.unwrap_or(changed.public.stock);
        changed
    }
}

/// What a part of a name is looked for by: case does not matter.
///
/// It goes letter by letter, so that a part of a name folds to a part of what the name folds to. `str::to_lowercase`
/// does not: a Σ at the end becomes another letter than one in the middle.
pub fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

fn price(given: Value) -> Result<Money, Detail> {
    let money = Money::deserialize(given).ok().filter(|price| *price <= MAX_PRICE);
    money.ok_or_else(|| format!("must be an amount from 0 to {MAX_PRICE} with at most two decimals").into())
}
