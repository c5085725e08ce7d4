//! product-service, as far as this service asks it.

use axum::http::StatusCode;
use chassis::client::{Answer, Peer, PeerError};
use chassis::config::PeerSettings;
use chassis::context::Context;
use chassis::problem::FieldError;
use serde_json::Value;
use shared::OrderId;
use shared::orders::WantedLine;
use shared::products::{Line, Reserve, Reserved, ReservedLine, problems};
use url::Url;

/// A client of product-service.
#[derive(Clone, Debug)]
pub struct Products(Peer);

/// What came of a take. Lines are told by their index.
#[derive(Debug)]
pub enum Take {
    /// The units are the order's, at these names and prices, in the order asked.
    Taken(Vec<ReservedLine>),
    /// These lines name products that do not exist.
    Unknown(Vec<usize>),
    /// These lines want more than is left, which is this much.
    Short(Vec<(usize, i64)>),
    /// The order was given up meanwhile.
    Released,
}

impl Products {
    /// The product-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn at(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        Peer::retrying("product-service", base, settings).map(Self)
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.0
    }

    /// Takes the units of all lines for an order, or of none. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether they were taken.
    pub async fn take(&self, id: OrderId, wanted: &[WantedLine], context: &Context) -> Result<Take, PeerError> {
        let lines = wanted.iter().map(|line| Line { product_id: line.product_id, quantity: line.quantity }).collect();
        let answer = self.0.put(&format!("/reservations/{id}"), &Reserve { lines }, context).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => self.taken(&answer, wanted).map(Take::Taken),
            _ => self.refused(&answer),
        }
    }

    /// Releases what an order has taken, for ever. Safe to repeat.
    ///
    /// # Errors
    /// If it is unknown whether it was released.
    pub async fn release(&self, id: OrderId, context: &Context) -> Result<(), PeerError> {
        let answer = self.0.delete(&format!("/reservations/{id}"), context).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(self.0.unexpected(&answer, "no release")),
        }
    }

    /// The error for an answer that says what cannot be.
    pub fn nonsense(&self, detail: &str) -> PeerError {
        PeerError::Unexpected { peer: self.0.name(), status: StatusCode::OK, detail: detail.to_owned() }
    }

    fn taken(&self, answer: &Answer, wanted: &[WantedLine]) -> Result<Vec<ReservedLine>, PeerError> {
        let reserved: Reserved = answer.json().map_err(|error| self.0.unexpected(answer, error))?;
        let same = |(taken, wanted): (&ReservedLine, &WantedLine)| {
            taken.product_id == wanted.product_id && taken.quantity == wanted.quantity
        };
        let all = reserved.lines.len() == wanted.len() && reserved.lines.iter().zip(wanted).all(same);
        if !all {
            return Err(self.0.unexpected(answer, "other lines than those asked for"));
        }
        if reserved.lines.iter().any(|line| line.name.contains('\0')) {
            return Err(self.0.unexpected(answer, "a name with U+0000, which no database takes"));
        }
        Ok(reserved.lines)
    }

    fn refused(&self, answer: &Answer) -> Result<Take, PeerError> {
        let problem = answer.problem().ok_or_else(|| self.0.unexpected(answer, "no problem"))?;
        let slug = problem.r#type.strip_prefix("urn:problem-type:").unwrap_or_default();
        match slug {
            problems::PRODUCT_NOT_FOUND => Ok(Take::Unknown(problem.errors.iter().filter_map(line).collect())),
            problems::INSUFFICIENT_STOCK => {
                let short = |error: &FieldError| Some((line(error)?, error.actual.as_ref().and_then(Value::as_i64)?));
                Ok(Take::Short(problem.errors.iter().filter_map(short).collect()))
            }
            problems::RESERVATION_RELEASED => Ok(Take::Released),
            _ => Err(self.0.unexpected(answer, problem.detail)),
        }
    }
}

/// The index of the line that an error blames: `/lines/<index>/…`.
fn line(error: &FieldError) -> Option<usize> {
    error.pointer.as_ref()?.strip_prefix("/lines/")?.split('/').next()?.parse().ok()
}
