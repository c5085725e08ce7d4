//! A client of the reservations of product-service.

use axum::http::StatusCode;
use chassis::auth::ServiceTokens;
use chassis::client::{Admission, BatchEndpoint, BatchedCalls, Outcome, Peer, PeerError, PeerResponse};
use chassis::config::PeerSettings;
use chassis::context::RequestContext;
use chassis::problem::FieldError;
use serde::Deserialize;
use serde_json::Value;
use shared::products::{Line, ReservationBatchItem, ReservationLines, ReservedLine, problems};
use shared::{MAX_BATCH, OrderId};
use url::Url;

use crate::order::WantedLine;

/// Maximum bytes of a batch in a request body: a little below product-service's `MAX_BODY_BYTES`.
const MAX_BODY_BYTES: usize = 60_000;
/// Maximum bytes of a batch in a query: a little below product-service's `MAX_HEADER_BYTES`.
const MAX_QUERY_BYTES: usize = 8000;

/// The name of the service, and the audience of tokens for it.
pub const PRODUCT_SERVICE: &str = "product-service";

/// A client of product-service.
pub struct Products {
    peer: Peer,
    reservations: BatchedCalls<Reservations>,
    releases: BatchedCalls<Releases>,
}

/// The result of a reservation. Lines are given by their index.
#[derive(Debug)]
pub enum ReserveOutcome {
    /// The units are reserved, at these names and prices, in the order of the request.
    Reserved(Vec<ReservedLine>),
    /// These lines name products that do not exist.
    UnknownProducts(Vec<usize>),
    /// These lines ask for more units than are left; with the units left.
    InsufficientStock(Vec<(usize, i64)>),
    /// The reservation was released before: the order has been aborted.
    Released,
}

impl Products {
    /// Returns a client of the product-service at this address. While sign-in is on, it sends these tokens.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(base: Url, settings: &PeerSettings, tokens: Option<ServiceTokens>) -> Result<Self, PeerError> {
        let peer = Peer::retrying(PRODUCT_SERVICE, base, settings)?.with_tokens(tokens);
        let (reservations, releases) = (Reservations(peer.clone()), Releases(peer.clone()));
        Ok(Self {
            reservations: BatchedCalls::new(&peer, reservations),
            releases: BatchedCalls::new(&peer, releases),
            peer,
        })
    }

    /// Returns the service that this client calls.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Admits one call of [`Self::reserve`].
    ///
    /// # Errors
    /// If product-service cannot answer one more in time.
    pub async fn admit(&self, context: &RequestContext) -> Result<Admission, PeerError> {
        self.reservations.admit(context).await
    }

    /// Reserves the units of all lines for an order, or none. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether the units were reserved.
    pub async fn reserve(
        &self,
        id: OrderId,
        wanted: &[WantedLine],
        context: &RequestContext,
        admission: Admission,
    ) -> Result<ReserveOutcome, PeerError> {
        let lines = wanted.iter().map(|line| Line { product_id: line.product_id, quantity: line.quantity }).collect();
        let item = ReservationBatchItem { order_id: id, lines, request_id: None, traceparent: None };
        self.reservations.submit_admitted(item, context, admission).await
    }

    /// Releases the reservation of an order for good. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether the reservation was released.
    pub async fn release(&self, id: OrderId, context: &RequestContext) -> Result<(), PeerError> {
        self.releases.submit(id, context).await
    }

    /// Returns the error for a successful response whose content is impossible.
    pub fn unexpected(&self, detail: &str) -> PeerError {
        PeerError::Unexpected { peer: self.peer.name(), status: StatusCode::OK, detail: detail.to_owned() }
    }
}

/// Creates reservations.
struct Reservations(Peer);

/// The result of one reservation in a batch: status and body, as if it had been sent alone.
#[derive(Deserialize)]
struct BatchResponse {
    status: u16,
    body: ReserveBody,
}

/// The body of a response to a reservation: lines, or a problem.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReserveBody {
    order_id: Option<OrderId>,
    lines: Option<Vec<ReservedLine>>,
    r#type: Option<String>,
    errors: Option<Vec<FieldError>>,
}

impl BatchEndpoint for Reservations {
    type Item = ReservationBatchItem;
    type Response = ReserveOutcome;

    const NAME: &'static str = "reservations";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = MAX_BODY_BYTES;

    fn item_bytes(reservation: &ReservationBatchItem) -> usize {
        /// With a traceparent (55 bytes), and the longest accepted request id (128) with each character escaped.
        const EMPTY: usize =
            r#"{"orderId":"01a2003e-e714-710e-a057-b9de0b11d83b","lines":[],"requestId":"","traceparent":""},"#.len()
                + 55
                + 2 * 128;
        const LINE: usize = r#"{"productId":9223372036854775807,"quantity":10000},"#.len();
        EMPTY + reservation.lines.len() * LINE
    }

    async fn call_one(
        &self,
        reservation: &ReservationBatchItem,
        context: &RequestContext,
    ) -> Result<ReserveOutcome, PeerError> {
        let body = ReservationLines { lines: reservation.lines.clone() };
        let response = self.0.put(&format!("/reservations/{}", reservation.order_id), &body, context).await?;
        let body = response.json().map_err(|error| self.0.unexpected(&response, error))?;
        outcome(response.status, body, &reservation.lines).map_err(|why| self.0.unexpected(&response, why))
    }

    async fn call_many(
        &self,
        reservations: &[(&ReservationBatchItem, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<ReserveOutcome>>, PeerError> {
        let item = |(reservation, context): &(&ReservationBatchItem, &RequestContext)| ReservationBatchItem {
            request_id: Some(context.request_id().to_owned()),
            traceparent: Some(context.traceparent()),
            ..ReservationBatchItem::clone(reservation)
        };
        let body = reservations.iter().map(item).collect::<Vec<_>>();
        let response = self.0.post("/reservations", &body, context).await?;
        if response.status != StatusCode::OK {
            return Err(self.0.unexpected(&response, "expected the results of a batch"));
        }
        let results: Vec<BatchResponse> = response.json().map_err(|error| self.0.unexpected(&response, error))?;
        if results.len() != reservations.len() {
            return Err(self.0.unexpected(&response, "the number of results differs from the number of reservations"));
        }
        let outcome = |(result, (reservation, _)): (BatchResponse, &(&ReservationBatchItem, &RequestContext))| {
            let BatchResponse { status, body } = result;
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let peer = self.0.name();
            let unexpected = |why: &str| PeerError::Unexpected { peer, status, detail: why.to_owned() };
            if body.order_id.is_some_and(|id| id != reservation.order_id) {
                return Some(Err(unexpected("the result belongs to another order")));
            }
            Some(outcome(status, body, &reservation.lines).map_err(unexpected))
        };
        Ok(results.into_iter().zip(reservations).map(outcome).collect())
    }
}

/// Returns the meaning of a response to a reservation, or why it has none.
fn outcome(status: StatusCode, body: ReserveBody, wanted: &[Line]) -> Result<ReserveOutcome, &'static str> {
    if matches!(status, StatusCode::OK | StatusCode::CREATED) {
        return check_lines(body.lines.ok_or("lines are missing")?, wanted).map(ReserveOutcome::Reserved);
    }
    let slug = body.r#type.as_deref().ok_or("not a problem")?.strip_prefix("urn:problem-type:");
    let errors = body.errors.unwrap_or_default();
    let line = |error: &FieldError| line_index(error).filter(|index| *index < wanted.len());
    match (status, slug.unwrap_or_default()) {
        (StatusCode::BAD_REQUEST, problems::PRODUCT_NOT_FOUND) => {
            named_lines(errors.iter().filter_map(line)).map(ReserveOutcome::UnknownProducts)
        }
        (StatusCode::CONFLICT, problems::INSUFFICIENT_STOCK) => {
            let short = |error: &FieldError| Some((line(error)?, error.actual.as_ref().and_then(Value::as_i64)?));
            named_lines(errors.iter().filter_map(short)).map(ReserveOutcome::InsufficientStock)
        }
        (StatusCode::CONFLICT, problems::RESERVATION_RELEASED) => Ok(ReserveOutcome::Released),
        _ => Err("the contract has no such response to a reservation"),
    }
}

/// Returns the lines that a rejection names. A rejection without any does not say what to correct.
fn named_lines<T>(lines: impl Iterator<Item = T>) -> Result<Vec<T>, &'static str> {
    let lines: Vec<T> = lines.collect();
    if lines.is_empty() { Err("the problem names no line of the order") } else { Ok(lines) }
}

fn check_lines(reserved: Vec<ReservedLine>, wanted: &[Line]) -> Result<Vec<ReservedLine>, &'static str> {
    let matches = |(reserved, wanted): (&ReservedLine, &Line)| {
        reserved.product_id == wanted.product_id && reserved.quantity == wanted.quantity
    };
    if reserved.len() != wanted.len() || !reserved.iter().zip(wanted).all(matches) {
        return Err("the lines differ from the request");
    }
    if reserved.iter().any(|line| line.name.contains('\0')) {
        return Err("a name contains U+0000, which PostgreSQL cannot store");
    }
    Ok(reserved)
}

/// Releases reservations.
struct Releases(Peer);

impl BatchEndpoint for Releases {
    type Item = OrderId;
    type Response = ();

    const NAME: &'static str = "releases";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = MAX_QUERY_BYTES;

    fn item_bytes(_: &OrderId) -> usize {
        "01a2003e-e714-710e-a057-b9de0b11d83b,".len()
    }

    async fn call_one(&self, id: &OrderId, context: &RequestContext) -> Result<(), PeerError> {
        self.expect_no_content(&self.0.delete(&format!("/reservations/{id}"), context).await?)
    }

    async fn call_many(
        &self,
        ids: &[(&OrderId, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<()>>, PeerError> {
        let list: Vec<String> = ids.iter().map(|(id, _)| id.to_string()).collect();
        self.expect_no_content(&self.0.delete(&format!("/reservations?ids={}", list.join(",")), context).await?)?;
        Ok(ids.iter().map(|_| Some(Ok(()))).collect())
    }
}

impl Releases {
    fn expect_no_content(&self, response: &PeerResponse) -> Result<(), PeerError> {
        match response.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(self.0.unexpected(response, "expected 204")),
        }
    }
}

/// Returns the index of the line that an error points to: `/lines/<index>/…`.
fn line_index(error: &FieldError) -> Option<usize> {
    error.pointer.as_ref()?.strip_prefix("/lines/")?.split('/').next()?.parse().ok()
}
