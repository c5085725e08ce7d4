//! Orders, as they cross the wire.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{self, Id};
use crate::money::Money;
use crate::order_id::OrderId;

/// An order as order-service answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Given by order-service.
    pub id: OrderId,
    /// Whose order it is.
    pub user_id: Id,
    /// What was bought, at the names and prices of that moment.
    pub products: Vec<OrderLine>,
    /// The exact sum of price times quantity.
    pub total: Money,
    /// Where it stands.
    pub status: OrderStatus,
    /// When it was placed.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderLine {
    /// Which product.
    pub product_id: Id,
    /// Its name when it was ordered.
    #[schema(example = "Laptop")]
    pub name: String,
    /// How many units.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
    /// The price of one unit when it was ordered.
    pub price: Money,
}

/// Where an order stands, as far as clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderStatus {
    /// Placed: its stock is taken.
    Pending,
    /// Accepted by the seller.
    Confirmed,
    /// On its way.
    Shipped,
    /// Arrived.
    Delivered,
    /// Given up; its stock goes back.
    Cancelled,
}

impl OrderStatus {
    /// All of them, in the order in which they are reached.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Confirmed, Self::Shipped, Self::Delivered, Self::Cancelled];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for OrderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OrderStatus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|status| status.name() == text);
        named.ok_or("must be pending, confirmed, shipped, delivered or cancelled")
    }
}

/// The body of `POST /orders`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlaceOrder {
    /// Who orders; must exist.
    #[schema(schema_with = id::lenient_schema)]
    pub user_id: Id,
    /// 1 to 100 lines, a product at most once.
    #[schema(min_items = 1, max_items = 100)]
    pub products: Vec<WantedLine>,
}

/// One line of [`PlaceOrder`].
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WantedLine {
    /// Which product; must exist.
    #[schema(schema_with = id::lenient_schema)]
    pub product_id: Id,
    /// How many units: 1 to 10,000.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
    /// What the client believes one unit costs; if it costs something else, nothing is ordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 9_999_999_999_999.99, multiple_of = 0.01, example = 999.99)]
    pub price: Option<Money>,
}

/// The body of `PATCH /orders/{id}`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct UpdateOrder {
    /// The step to take: pending → confirmed → shipped → delivered, or pending or confirmed → cancelled.
    pub status: OrderStatus,
}
