//! Every rule about a product.

use chassis::http::body::values::{Detail, integer, text};
use chassis::http::body::{FromJson, Members};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::products::Product;
use shared::{Id, Money};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;

const MAX_NAME: usize = 200;
const MAX_PRICE: Money = Money::from_cents(100_000_000).expect("an amount of money");
/// More units than anyone sells, and far below the values at which sums overflow.
const MAX_STOCK: i64 = 1_000_000_000_000;

/// A product as stores keep it. Its JSON is that of the product.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ProductRecord {
    /// What clients see.
    pub product: Product,
    /// The number of changes, including changes of the stock. An update can name the version that it is based on.
    #[serde(skip)]
    pub version: i64,
}

/// The body of `POST /products`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateProduct {
    /// 1 to 200 characters, not blank, no control characters.
    #[schema(min_length = 1, max_length = 200, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", example = "Keyboard")]
    pub name: String,
    /// The price of one unit: 0.00 to 1,000,000.00 with at most two decimals, by default 0.
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000, example = 49.5)]
    pub price: Money,
    /// The units to sell: 0 to 1,000,000,000,000, by default 0.
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_i64, example = 10)]
    pub stock: i64,
}

impl FromJson for CreateProduct {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.required("name", text(1..=MAX_NAME));
        let price = body.optional("price", price);
        let stock = body.optional("stock", integer(0..=MAX_STOCK));
        Some(Self { name: name?, price: price?.unwrap_or_default(), stock: stock?.unwrap_or_default() })
    }
}

impl CreateProduct {
    /// Returns the new product with the id that the store assigns.
    pub fn into_record(self, id: Id, created_at: Timestamp) -> ProductRecord {
        let Self { name, price, stock } = self;
        ProductRecord { product: Product { id, name, price, stock, created_at }, version: 1 }
    }
}

/// The body of `PATCH /products/{id}`, a JSON Merge Patch: the members to change, by the rules of `POST /products`. The others
/// stay as they are. A product always has each of them, so none can be removed with `null`.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct UpdateProduct {
    /// 1 to 200 characters, not blank, no control characters.
    #[schema(
        nullable = false,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Keyboard"
    )]
    pub name: Option<String>,
    /// The price of one unit: 0.00 to 1,000,000.00 with at most two decimals.
    #[schema(value_type = Option<f64>, nullable = false, minimum = 0, maximum = 1_000_000, example = 44.9)]
    pub price: Option<Money>,
    /// The units that are free to sell: 0 to 1,000,000,000,000.
    #[schema(nullable = false, minimum = 0, maximum = 1_000_000_000_000_i64, example = 25)]
    pub stock: Option<i64>,
}

impl FromJson for UpdateProduct {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.patch("name", text(1..=MAX_NAME));
        let price = body.patch("price", price);
        let stock = body.patch("stock", integer(0..=MAX_STOCK));
        Some(Self { name: name?, price: price?, stock: stock? })
    }
}

impl UpdateProduct {
    /// Changes the members of `record` that are given, and raises its version.
    pub fn apply(&self, record: &mut ProductRecord) {
        let ProductRecord { product, version } = record;
        if let Some(name) = &self.name {
            product.name.clone_from(name);
        }
        product.price = self.price.unwrap_or(product.price);
        product.stock = self.stock.unwrap_or(product.stock);
        *version += 1;
    }
}

/// Returns the form of a name in which the search by a part of the name compares it: without case, in Unicode NFC.
///
/// It folds each letter on its own, so that a part of a name folds to a part of the folded name. `str::to_lowercase` does
/// not: it turns a Σ at the end of a word into another letter than a Σ in the middle.
pub fn case_fold(name: &str) -> String {
    name.nfc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

fn price(value: Value) -> Result<Money, Detail> {
    let money = Money::deserialize(value).ok().filter(|price| *price <= MAX_PRICE);
    money.ok_or_else(|| format!("must be an amount from 0 to {MAX_PRICE} with at most two decimals").into())
}
