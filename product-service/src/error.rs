//! What can go wrong in this service, and the problem that a client gets for it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::client::PeerError;
use chassis::problem::{FieldError, Kind, NOT_FOUND, PEER_UNAVAILABLE, Problem};
use shared::products::problems;

use crate::reservation::ReservationError;
use crate::store::StoreError;

static PRODUCT_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, problems::PRODUCT_NOT_FOUND, "Product not found");
static INSUFFICIENT_STOCK: Kind = Kind::new(StatusCode::CONFLICT, problems::INSUFFICIENT_STOCK, "Insufficient stock");
static RELEASED: Kind = Kind::new(StatusCode::CONFLICT, problems::RESERVATION_RELEASED, "Reservation released");
static MISMATCH: Kind = Kind::new(StatusCode::CONFLICT, problems::RESERVATION_MISMATCH, "Reservation mismatch");

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The product in the path does not exist.
    #[error("the product does not exist")]
    ProductNotFound,
    /// The reservation in the path does not exist.
    #[error("the reservation does not exist")]
    ReservationNotFound,
    /// The units were not reserved.
    #[error(transparent)]
    Rejected(#[from] ReservationError),
    /// user-service did not return the users.
    #[error(transparent)]
    Users(#[from] PeerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A problem that is the same in every service.
    #[error("{0:?}")]
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::ProductNotFound => Self::new(&NOT_FOUND, "Product not found"),
            Error::ReservationNotFound => Self::new(&NOT_FOUND, "Reservation not found"),
            Error::Rejected(error) => error.into(),
            Error::Users(error) => Self::new(&PEER_UNAVAILABLE, "Error fetching users").caused_by(error),
            Error::Store(StoreError::Unavailable(cause)) => Self::store_unavailable(cause),
            Error::Store(StoreError::OutcomeUnknown(cause)) => Self::outcome_unknown(cause),
            Error::Problem(problem) => problem,
        }
    }
}

impl From<ReservationError> for Problem {
    fn from(error: ReservationError) -> Self {
        match error {
            ReservationError::UnknownProducts(lines) => {
                let unknown = |line| FieldError::at_pointer(format!("/lines/{line}/productId"), "does not exist");
                Self::new(&PRODUCT_NOT_FOUND, "Product not found").with_errors(lines.into_iter().map(unknown).collect())
            }
            ReservationError::InsufficientStock(lines) => {
                let short = |(line, left): (usize, i64)| {
                    FieldError::at_pointer(format!("/lines/{line}/quantity"), format!("only {left} left")).actual(left)
                };
                Self::new(&INSUFFICIENT_STOCK, "Insufficient stock").with_errors(lines.into_iter().map(short).collect())
            }
            ReservationError::Released => {
                Self::new(&RELEASED, "The reservation was released and cannot be taken again")
            }
            ReservationError::Mismatch => Self::new(&MISMATCH, "The reservation was taken for other lines"),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
