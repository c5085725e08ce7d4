//! Products and reservations as they cross the wire, and the rule for the status of a reservation.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{self, Id};
use crate::money::Money;
use crate::order_id::OrderId;

/// Maximum lines of one reservation or order.
pub const MAX_LINES: usize = 100;
/// Maximum units of one line.
pub const MAX_QUANTITY: u32 = 10_000;

/// The slugs of the problems that callers of product-service tell apart.
pub mod problems {
    /// A line names a product that does not exist.
    pub const PRODUCT_NOT_FOUND: &str = "product-not-found";
    /// A line asks for more units than are free.
    pub const INSUFFICIENT_STOCK: &str = "insufficient-stock";
    /// The reservation was released. Its id cannot be used again.
    pub const RESERVATION_RELEASED: &str = "reservation-released";
    /// The reservation exists with other lines.
    pub const RESERVATION_MISMATCH: &str = "reservation-mismatch";
}

/// A product, as product-service returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// Assigned by product-service, from 1.
    pub id: Id,
    /// The name that people see.
    #[schema(example = "Laptop")]
    pub name: String,
    /// The price of one unit.
    pub price: Money,
    /// The units that are free to sell.
    #[schema(minimum = 0, example = 50)]
    pub stock: i64,
    /// When the product was added.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}

/// A number of units of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The product. It may be in only one line.
    #[schema(schema_with = id::lenient_schema)]
    pub product_id: Id,
    /// The number of units: 1 to 10,000.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
}

/// The body of `PUT /reservations/{orderId}`, as a client sends it. product-service declares the same body with its rules.
#[derive(Clone, Debug, Serialize)]
pub struct ReservationLines {
    /// 1 to 100 lines. A product may be in only one of them.
    pub lines: Vec<Line>,
}

/// One item of the body of `POST /reservations`, as a client sends it. product-service declares the same item with its rules.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservationBatchItem {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// 1 to 100 lines. A product may be in only one of them.
    pub lines: Vec<Line>,
    /// The `X-Request-Id` of the request that this item is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The `traceparent` of the request that this item is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Reserved units of one product, with its name and price at the time of the reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservedLine {
    /// The product.
    pub product_id: Id,
    /// The name of the product when it was reserved.
    #[schema(example = "Laptop")]
    pub name: String,
    /// The price of one unit when it was reserved.
    pub price: Money,
    /// The number of units.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
}

/// What was reserved for an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// The lines, in the order of the first request.
    pub lines: Vec<ReservedLine>,
}

/// A reservation. `lines` is empty if it was released before anything was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// Whether the order holds the units, or they were released.
    pub status: ReservationStatus,
    /// The lines, in the order of the first request.
    pub lines: Vec<ReservedLine>,
}

/// The status of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReservationStatus {
    /// The order holds the units.
    Taken,
    /// The order does not hold any units, and never will. This id cannot be reserved again.
    Released,
}

/// What a request to reserve does, by the status of the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveAction {
    /// There is no reservation: reserve the units, if the stock suffices.
    Reserve,
    /// The units are reserved already: return the existing reservation, if it has the same lines.
    ReturnExisting,
    /// The reservation was released: reject the request.
    Reject,
}

/// The rule that makes both requests safe to repeat and safe to reorder. Order placement relies on it, and the model in
/// order-service checks it for every interleaving. In all three functions `None` means: no such reservation exists.
impl ReservationStatus {
    /// Returns what a request to reserve does to a reservation with this status.
    pub const fn on_reserve(status: Option<Self>) -> ReserveAction {
        match status {
            None => ReserveAction::Reserve,
            Some(Self::Taken) => ReserveAction::ReturnExisting,
            Some(Self::Released) => ReserveAction::Reject,
        }
    }

    /// Returns whether a release returns units to the stock. It does so only once, and only units that were reserved.
    pub const fn release_returns_stock(status: Option<Self>) -> bool {
        matches!(status, Some(Self::Taken))
    }

    /// Returns the status after a release, which is the same for every status before it.
    ///
    /// A release of an unknown id leaves a tombstone. A reserve request that arrives after its release is then rejected.
    pub const fn after_release(_status: Option<Self>) -> Self {
        Self::Released
    }
}
