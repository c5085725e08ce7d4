//! Orders as they cross the wire.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::Id;
use crate::money::Money;
use crate::order_id::OrderId;

/// An order, as order-service returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Assigned by order-service.
    pub id: OrderId,
    /// The user who placed the order.
    pub user_id: Id,
    /// The lines, with the names and prices at the time of the order.
    pub products: Vec<OrderLine>,
    /// The exact sum of price times quantity over all lines.
    pub total: Money,
    /// The status of the order.
    pub status: OrderStatus,
    /// When the order was requested.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderLine {
    /// The product.
    pub product_id: Id,
    /// The name of the product when it was ordered.
    #[schema(example = "Laptop")]
    pub name: String,
    /// The number of units.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
    /// The price of one unit when it was ordered.
    pub price: Money,
}

/// The status of an order, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderStatus {
    /// Placed; its stock is reserved.
    Pending,
    /// Accepted by the seller.
    Confirmed,
    /// On its way to the customer.
    Shipped,
    /// Received by the customer.
    Delivered,
    /// Cancelled; its stock is returned.
    Cancelled,
}

impl OrderStatus {
    /// All statuses, in the order in which an order reaches them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Confirmed, Self::Shipped, Self::Delivered, Self::Cancelled];

    /// Returns the name on the wire.
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
