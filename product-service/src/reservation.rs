//! Every rule about a reservation: what a client may request, and what the outcome can be.
//!
//! The rule for the status is [`ReservationStatus`], which order-service relies on too.

use std::collections::HashSet;

use chassis::http::body::values::{any, integer, list};
use chassis::http::body::{FromJson, FromQuery, Members, QueryParams};
use shared::products::{Line, MAX_LINES, MAX_QUANTITY, Reserved, ReservedLine};
use shared::{Id, MAX_BATCH, OrderId};
use utoipa::ToSchema;

pub use shared::products::{Reservation, ReservationStatus};

/// The body of `PUT /reservations/{orderId}`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = Reserve)]
pub struct ReservationLines {
    /// 1 to 100 lines. A product may be in only one of them.
    #[schema(min_items = 1, max_items = 100)]
    lines: Vec<Line>,
}

impl ReservationLines {
    /// Returns these lines. `None` if a product is in more than one of them.
    pub fn new(lines: Vec<Line>) -> Option<Self> {
        let mut seen = HashSet::with_capacity(lines.len());
        let unique = lines.iter().all(|line| seen.insert(line.product_id));
        unique.then_some(Self { lines })
    }

    /// Returns the lines in the order of the request.
    pub fn as_slice(&self) -> &[Line] {
        &self.lines
    }

    /// Returns whether a reservation holds the same units, in any order.
    pub fn matches(&self, reserved: &[ReservedLine]) -> bool {
        let mut requested = self.lines.clone();
        let line = |line: &ReservedLine| Line { product_id: line.product_id, quantity: line.quantity };
        let mut reserved: Vec<Line> = reserved.iter().map(line).collect();
        requested.sort_unstable();
        reserved.sort_unstable();
        requested == reserved
    }
}

impl FromJson for ReservationLines {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let mut seen = Vec::new();
        let lines = body.list("lines", 1..=MAX_LINES, |members| line(members, &mut seen));
        Some(Self { lines: lines? })
    }
}

/// Reads one line. At most 100 ids were seen, and a search among them is faster than a hash.
fn line(line: &mut Members<'_>, seen: &mut Vec<Id>) -> Option<Line> {
    let product_id = line.required("productId", any::<Id>);
    let quantity = line.required("quantity", integer(1..=MAX_QUANTITY));
    if product_id.is_some_and(|id| seen.contains(&id)) {
        line.reject("productId", "is in an earlier line already");
    }
    seen.extend(product_id);
    Some(Line { product_id: product_id?, quantity: quantity? })
}

/// One item of the body of `POST /reservations`.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = ReserveFor, rename_all = "camelCase")]
pub struct ReservationBatchItem {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// 1 to 100 lines. A product may be in only one of them.
    #[schema(value_type = Vec<Line>, min_items = 1, max_items = 100)]
    pub lines: ReservationLines,
    /// The `X-Request-Id` of the request that this item is for.
    pub request_id: Option<String>,
    /// The `traceparent` of the request that this item is for.
    pub traceparent: Option<String>,
}

/// The body of `POST /reservations`: 1 to 128 items. Each is read, reserved and answered independently of the others.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = ReserveEach, min_items = 1, max_items = 128)]
pub struct ReservationBatch(pub Vec<ReservationBatchItem>);

impl FromJson for ReservationBatchItem {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let order_id = body.required("orderId", any::<OrderId>);
        let lines = ReservationLines::from_json(body);
        let request_id = body.optional("requestId", any::<String>);
        let traceparent = body.optional("traceparent", any::<String>);
        Some(Self { order_id: order_id?, lines: lines?, request_id: request_id?, traceparent: traceparent? })
    }
}

/// The orders whose reservations are to be released.
#[derive(Clone, Debug)]
pub struct OrderIds(pub Vec<OrderId>);

impl FromQuery for OrderIds {
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        params.required("ids", list(MAX_BATCH)).map(Self)
    }
}

/// Units to reserve for an order.
#[derive(Clone, Debug)]
pub struct ReservationRequest {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// The units.
    pub lines: ReservationLines,
}

/// The outcome of a request to reserve.
#[derive(Clone, Debug, PartialEq)]
pub enum ReservationOutcome {
    /// The units were reserved by this request.
    Created(Reserved),
    /// An earlier request reserved the same units. This is its result.
    Existing(Reserved),
    /// Nothing was reserved.
    Rejected(ReservationError),
}

impl ReservationOutcome {
    /// Returns what this request has reserved.
    pub fn created(&self) -> Option<&Reserved> {
        if let Self::Created(reserved) = self { Some(reserved) } else { None }
    }
}

/// Why a request to reserve was rejected. A line is named by its index, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReservationError {
    /// These lines name products that do not exist.
    #[error("the products of lines {0:?} do not exist")]
    UnknownProducts(Vec<usize>),
    /// These lines ask for more units than are free: the line, and the free units.
    #[error("not enough units are free for lines {0:?}")]
    InsufficientStock(Vec<(usize, i64)>),
    /// The reservation was released before.
    #[error("the reservation was released")]
    Released,
    /// The reservation exists with other lines.
    #[error("the reservation has other lines")]
    Mismatch,
}
