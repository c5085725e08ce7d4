//! Products and reservations, as they cross the wire, and the rule by which a reservation changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{self, Id};
use crate::money::Money;
use crate::order_id::OrderId;

/// Most lines of one reservation or order.
pub const MAX_LINES: usize = 100;
/// Most units of one line.
pub const MAX_QUANTITY: u32 = 10_000;

/// The slugs of product-service's problems that its callers tell apart.
pub mod problems {
    /// A line names a product that does not exist.
    pub const PRODUCT_NOT_FOUND: &str = "product-not-found";
    /// Fewer units are left than a line asks for.
    pub const INSUFFICIENT_STOCK: &str = "insufficient-stock";
    /// The reservation was released, and can never be taken again.
    pub const RESERVATION_RELEASED: &str = "reservation-released";
    /// The reservation was taken for other lines.
    pub const RESERVATION_MISMATCH: &str = "reservation-mismatch";
}

/// A product as product-service answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// Given by product-service, from 1.
    pub id: Id,
    /// What people see.
    #[schema(example = "Laptop")]
    pub name: String,
    /// What one unit costs.
    pub price: Money,
    /// The units still free to sell.
    #[schema(minimum = 0, example = 50)]
    pub stock: i64,
    /// When the product was added.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}

/// The body of `POST /products`.
#[derive(Clone, Serialize, ToSchema)]
pub struct CreateProduct {
    /// 1 to 200 characters, no control characters.
    #[schema(min_length = 1, max_length = 200, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", example = "Keyboard")]
    pub name: String,
    /// What one unit costs: 0.00 to 1,000,000.00, by default 0.
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000, multiple_of = 0.01, example = 49.5)]
    pub price: Option<Money>,
    /// The units to sell: 0 to 1,000,000,000,000, by default 0.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64, example = 10)]
    pub stock: Option<i64>,
}

/// The body of `PATCH /products/{id}`: the members to change, by the same rules as [`CreateProduct`]; the rest stays.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct UpdateProduct {
    /// 1 to 200 characters, no control characters.
    #[schema(
        nullable = false,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Keyboard"
    )]
    pub name: Option<String>,
    /// What one unit costs: 0.00 to 1,000,000.00.
    #[schema(value_type = Option<f64>, nullable = false, minimum = 0, maximum = 1_000_000, multiple_of = 0.01, example = 44.9)]
    pub price: Option<Money>,
    /// The units still free to sell: 0 to 1,000,000,000,000.
    #[schema(nullable = false, minimum = 0, maximum = 1_000_000_000_000_i64, example = 25)]
    pub stock: Option<i64>,
}

/// So many units of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Which product; at most once in a list of lines.
    #[schema(schema_with = id::lenient_schema)]
    pub product_id: Id,
    /// How many units of it: 1 to 10,000.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
}

/// The body of `PUT /reservations/{orderId}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reserve {
    /// 1 to 100 lines, a product at most once.
    #[schema(min_items = 1, max_items = 100)]
    pub lines: Vec<Line>,
}

/// One item of the body of `POST /reservations`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReserveFor {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// 1 to 100 lines, a product at most once.
    #[schema(min_items = 1, max_items = 100)]
    pub lines: Vec<Line>,
    /// The `X-Request-Id` that the take would have alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The `traceparent` that the take would have alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The body of `POST /reservations`: 1 to 128 takes, each read and answered on its own.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(min_items = 1, max_items = 128)]
pub struct ReserveEach(pub Vec<ReserveFor>);

/// Units taken for an order, with what they cost when they were taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservedLine {
    /// Which product.
    pub product_id: Id,
    /// Its name when it was taken.
    #[schema(example = "Laptop")]
    pub name: String,
    /// The price of one unit when it was taken.
    pub price: Money,
    /// How many units.
    #[schema(minimum = 1, maximum = 10_000, example = 2)]
    pub quantity: u32,
}

/// The answer to a take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// The lines in the order asked.
    pub lines: Vec<ReservedLine>,
}

/// A reservation as it stands; `lines` is empty for one that was released before anything was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// Whether the units are taken, or given back.
    pub status: ReservationStatus,
    /// The lines in the order asked.
    pub lines: Vec<ReservedLine>,
}

/// Where a reservation stands. One that nobody has heard of has no status: `None`, where an `Option` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReservationStatus {
    /// The units belong to the order.
    Taken,
    /// The units were given back, or never taken, and no take will ever succeed under this id again.
    Released,
}

/// What a take finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Nothing yet: take the units, if there are enough.
    Fresh,
    /// A take of the same id went before: answer the same again.
    Repeated,
    /// The id was released: refuse, for ever.
    Refused,
}

impl ReservationStatus {
    /// What a take does to a reservation that stands at `status`.
    ///
    /// This and [`ReservationStatus::after_release`] make both calls safe to repeat and to arrive in any order, which
    /// is what order placement rests on; the model in order-service searches every way to interleave them.
    pub const fn on_take(status: Option<Self>) -> Take {
        match status {
            None => Take::Fresh,
            Some(Self::Taken) => Take::Repeated,
            Some(Self::Released) => Take::Refused,
        }
    }

    /// Whether a release of a reservation that stands at `status` gives units back: once, and only if there were any.
    pub const fn gives_back(status: Option<Self>) -> bool {
        matches!(status, Some(Self::Taken))
    }

    /// Where a reservation stands after a release, whatever it was before: an id never seen is marked as well (a
    /// tombstone), so that a take that was overtaken by its release comes to nothing.
    pub const fn after_release(_status: Option<Self>) -> Self {
        Self::Released
    }
}
