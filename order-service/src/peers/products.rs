//! product-service, as far as this service asks it.

use axum::http::StatusCode;
use chassis::client::{BatchEndpoint, BatchedCalls, Outcome, Peer, PeerError, PeerResponse};
use chassis::config::PeerSettings;
use chassis::context::RequestContext;
use chassis::problem::FieldError;
use serde::Deserialize;
use serde_json::Value;
use shared::orders::WantedLine;
use shared::products::{Line, ReservationBatchItem, ReservationLines, ReservedLine, problems};
use shared::{MAX_BATCH, OrderId};
use url::Url;

/// So much product-service takes of a call for several, less a little: MAX_BODY_BYTES, MAX_HEADER_BYTES.
const MOST_OF_A_BODY: usize = 60_000;
const MOST_OF_A_QUERY: usize = 8000;

/// A client of product-service.
pub struct Products {
    peer: Peer,
    takes: BatchedCalls<Takes>,
    releases: BatchedCalls<Releases>,
}

/// What came of a take. Lines are told by their index.
#[derive(Debug)]
pub enum Take {
    /// The units are the order's, at these names and prices, in the order asked.
    Taken(Vec<ReservedLine>),
    /// These lines name products that do not exist.
    Unknown(Vec<usize>),
    /// These lines want more than is left, which is this much.
    InsufficientStock(Vec<(usize, i64)>),
    /// The order was given up meanwhile.
    Released,
}

impl Products {
    /// The product-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn at(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        let peer = Peer::retrying("product-service", base, settings)?;
        let (takes, releases) = (Takes(peer.clone()), Releases(peer.clone()));
        Ok(Self { takes: BatchedCalls::new(&peer, takes), releases: BatchedCalls::new(&peer, releases), peer })
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Takes the units of all lines for an order, or of none. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether they were taken.
    pub async fn take(&self, id: OrderId, wanted: &[WantedLine], context: &RequestContext) -> Result<Take, PeerError> {
        let lines = wanted.iter().map(|line| Line { product_id: line.product_id, quantity: line.quantity }).collect();
        self.takes
            .submit(ReservationBatchItem { order_id: id, lines, request_id: None, traceparent: None }, context)
            .await
    }

    /// Releases what an order has taken, for ever. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether it was released.
    pub async fn release(&self, id: OrderId, context: &RequestContext) -> Result<(), PeerError> {
        self.releases.submit(id, context).await
    }

    /// The error for an answer that says what cannot be.
    pub fn nonsense(&self, detail: &str) -> PeerError {
        PeerError::Unexpected { peer: self.peer.name(), status: StatusCode::OK, detail: detail.to_owned() }
    }
}

/// Takes for orders.
struct Takes(Peer);

/// What came of one take among several: the answer that it would have had alone.
#[derive(Deserialize)]
struct OneOfSeveral {
    status: u16,
    body: Taking,
}

/// The body of an answer to a take: lines, or a problem.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Taking {
    order_id: Option<OrderId>,
    lines: Option<Vec<ReservedLine>>,
    r#type: Option<String>,
    errors: Option<Vec<FieldError>>,
}

impl BatchEndpoint for Takes {
    type Item = ReservationBatchItem;
    type Response = Take;

    const NAME: &'static str = "takes";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = MOST_OF_A_BODY;

    fn item_bytes(take: &ReservationBatchItem) -> usize {
        /// With a traceparent, and the longest request id that is taken from a client, each character of it escaped.
        const EMPTY: usize =
            r#"{"orderId":"01a2003e-e714-710e-a057-b9de0b11d83b","lines":[],"requestId":"","traceparent":""},"#.len()
                + 55
                + 2 * 128;
        const LINE: usize = r#"{"productId":9223372036854775807,"quantity":10000},"#.len();
        EMPTY + take.lines.len() * LINE
    }

    async fn call_one(&self, take: &ReservationBatchItem, context: &RequestContext) -> Result<Take, PeerError> {
        let body = ReservationLines { lines: take.lines.clone() };
        let answer = self.0.put(&format!("/reservations/{}", take.order_id), &body, context).await?;
        let taking = answer.json().map_err(|error| self.0.unexpected(&answer, error))?;
        outcome(answer.status, taking, &take.lines).map_err(|why| self.0.unexpected(&answer, why))
    }

    async fn call_many(
        &self,
        takes: &[(&ReservationBatchItem, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<Take>>, PeerError> {
        let item = |(take, context): &(&ReservationBatchItem, &RequestContext)| ReservationBatchItem {
            request_id: Some(context.request_id().to_owned()),
            traceparent: Some(context.traceparent()),
            ..ReservationBatchItem::clone(take)
        };
        let body: Vec<ReservationBatchItem> = takes.iter().map(item).collect();
        let answer = self.0.post("/reservations", &body, context).await?;
        if answer.status != StatusCode::OK {
            return Err(self.0.unexpected(&answer, "no answers to takes"));
        }
        let outcomes: Vec<OneOfSeveral> = answer.json().map_err(|error| self.0.unexpected(&answer, error))?;
        if outcomes.len() != takes.len() {
            return Err(self.0.unexpected(&answer, "another number of answers than of takes"));
        }
        let outcome =
            |(OneOfSeveral { status, body }, (take, _)): (OneOfSeveral, &(&ReservationBatchItem, &RequestContext))| {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let peer = self.0.name();
                let unexpected = |why: &str| PeerError::Unexpected { peer, status, detail: why.to_owned() };
                if body.order_id.is_some_and(|id| id != take.order_id) {
                    return Some(Err(unexpected("the lines of another order")));
                }
                Some(outcome(status, body, &take.lines).map_err(unexpected))
            };
        Ok(outcomes.into_iter().zip(takes).map(outcome).collect())
    }
}

/// What an answer to a take means; else what is wrong with it.
fn outcome(status: StatusCode, body: Taking, wanted: &[Line]) -> Result<Take, &'static str> {
    if matches!(status, StatusCode::OK | StatusCode::CREATED) {
        return taken(body.lines.ok_or("no lines")?, wanted).map(Take::Taken);
    }
    let slug = body.r#type.as_deref().ok_or("no problem")?.strip_prefix("urn:problem-type:");
    let errors = body.errors.ok_or("half a problem");
    match slug.unwrap_or_default() {
        problems::PRODUCT_NOT_FOUND => Ok(Take::Unknown(errors?.iter().filter_map(line).collect())),
        problems::INSUFFICIENT_STOCK => {
            let short = |error: &FieldError| Some((line(error)?, error.actual.as_ref().and_then(Value::as_i64)?));
            Ok(Take::InsufficientStock(errors?.iter().filter_map(short).collect()))
        }
        problems::RESERVATION_RELEASED => Ok(Take::Released),
        _ => Err("neither a take nor a refusal that the contract has"),
    }
}

fn taken(lines: Vec<ReservedLine>, wanted: &[Line]) -> Result<Vec<ReservedLine>, &'static str> {
    let same = |(taken, wanted): (&ReservedLine, &Line)| {
        taken.product_id == wanted.product_id && taken.quantity == wanted.quantity
    };
    if lines.len() != wanted.len() || !lines.iter().zip(wanted).all(same) {
        return Err("other lines than those asked for");
    }
    if lines.iter().any(|line| line.name.contains('\0')) {
        return Err("a name with U+0000, which no database takes");
    }
    Ok(lines)
}

/// Releases of orders.
struct Releases(Peer);

impl BatchEndpoint for Releases {
    type Item = OrderId;
    type Response = ();

    const NAME: &'static str = "releases";
    const MAX_ITEMS: usize = MAX_BATCH;
    const MAX_BYTES: usize = MOST_OF_A_QUERY;

    fn item_bytes(_: &OrderId) -> usize {
        "01a2003e-e714-710e-a057-b9de0b11d83b,".len()
    }

    async fn call_one(&self, id: &OrderId, context: &RequestContext) -> Result<(), PeerError> {
        self.released(&self.0.delete(&format!("/reservations/{id}"), context).await?)
    }

    async fn call_many(
        &self,
        ids: &[(&OrderId, &RequestContext)],
        context: &RequestContext,
    ) -> Result<Vec<Outcome<()>>, PeerError> {
        let list: Vec<String> = ids.iter().map(|(id, _)| id.to_string()).collect();
        self.released(&self.0.delete(&format!("/reservations?ids={}", list.join(",")), context).await?)?;
        Ok(ids.iter().map(|_| Some(Ok(()))).collect())
    }
}

impl Releases {
    fn released(&self, answer: &PeerResponse) -> Result<(), PeerError> {
        match answer.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(self.0.unexpected(answer, "no release")),
        }
    }
}

/// The index of the line that an error blames: `/lines/<index>/…`.
fn line(error: &FieldError) -> Option<usize> {
    error.pointer.as_ref()?.strip_prefix("/lines/")?.split('/').next()?.parse().ok()
}
