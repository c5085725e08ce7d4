//! Every rule about a reservation: what can be asked, and what can come of it.
//!
//! How a reservation changes is [`ReservationStatus`]'s to say; that rule is shared with those who rely on it.

use std::collections::HashSet;

use chassis::http::body::values::{any, integer, list};
use chassis::http::body::{FromJson, FromQuery, Members, QueryParams};
use shared::products::{Line, MAX_LINES, MAX_QUANTITY, Reserved, ReservedLine};
use shared::{Id, MAX_BATCH, OrderId};

pub use shared::products::{Reservation, ReservationStatus};

/// The lines to take: 1 to 100, a product at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// The lines in the order asked.
    pub fn as_slice(&self) -> &[Line] {
        &self.0
    }

    /// These lines, if no product is there twice.
    pub fn new(lines: Vec<Line>) -> Option<Self> {
        let mut seen = HashSet::with_capacity(lines.len());
        let unique = lines.iter().all(|line| seen.insert(line.product_id));
        unique.then_some(Self(lines))
    }

    /// Whether a reservation holds the same units, in whatever order.
    pub fn matches(&self, held: &[ReservedLine]) -> bool {
        let mut wanted = self.0.clone();
        let mut held: Vec<Line> =
            held.iter().map(|line| Line { product_id: line.product_id, quantity: line.quantity }).collect();
        wanted.sort_unstable();
        held.sort_unstable();
        wanted == held
    }
}

impl FromJson for Lines {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let mut seen = Vec::new();
        body.list("lines", 1..=MAX_LINES, |fields| line(fields, &mut seen)).map(Self)
    }
}

/// Of at most a hundred products, those that were seen are looked through sooner than hashed.
fn line(line: &mut Members<'_>, seen: &mut Vec<Id>) -> Option<Line> {
    let product_id = line.required("productId", any::<Id>);
    let quantity = line.required("quantity", integer(1..=MAX_QUANTITY));
    if product_id.is_some_and(|id| seen.contains(&id)) {
        line.reject("productId", "is in an earlier line already");
    }
    seen.extend(product_id);
    Some(Line { product_id: product_id?, quantity: quantity? })
}

/// One of several takes.
#[derive(Clone, Debug)]
pub struct ReservationRequest {
    /// The order that the units are for.
    pub order_id: OrderId,
    /// The units.
    pub lines: Lines,
}

impl FromJson for ReservationRequest {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let order_id = body.required("orderId", any::<OrderId>);
        let lines = Lines::from_json(body);
        Some(Self { order_id: order_id?, lines: lines? })
    }
}

/// One of several takes in one request, each of which is for a request of its own.
#[derive(Clone, Debug)]
pub struct OneOfSeveral {
    /// What is to be taken.
    pub take: ReservationRequest,
    /// The id of the request that it is for, if it says so.
    pub request_id: Option<String>,
    /// The place in a trace of that request, likewise.
    pub traceparent: Option<String>,
}

impl FromJson for OneOfSeveral {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let take = ReservationRequest::from_json(body);
        let request_id = body.optional("requestId", any::<String>);
        let traceparent = body.optional("traceparent", any::<String>);
        Some(Self { take: take?, request_id: request_id?, traceparent: traceparent? })
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

/// What came of a take.
#[derive(Clone, Debug, PartialEq)]
pub enum ReservationOutcome {
    /// The units are the order's, taken just now.
    Created(Reserved),
    /// They were already: the answer of the first time.
    Existing(Reserved),
    /// Nothing was taken.
    Rejected(Refusal),
}

/// Why a take was refused. Lines are told by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These lines name products that do not exist.
    Unknown(Vec<usize>),
    /// These lines ask for more than is left, which is this much.
    InsufficientStock(Vec<(usize, i64)>),
    /// The reservation was released before.
    Released,
    /// The reservation was taken before, for other lines.
    Mismatch,
}
