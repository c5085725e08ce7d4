//! What can go wrong here, and what a client is told of it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::client::PeerError;
use chassis::problem::{FieldError, Kind, NOT_FOUND, PEER_UNAVAILABLE, Problem};
use shared::products::problems;

use crate::reservation::Refusal;
use crate::store::StoreError;

static PRODUCT_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, problems::PRODUCT_NOT_FOUND, "Product not found");
static INSUFFICIENT_STOCK: Kind = Kind::new(StatusCode::CONFLICT, problems::INSUFFICIENT_STOCK, "Insufficient stock");
static RELEASED: Kind = Kind::new(StatusCode::CONFLICT, problems::RESERVATION_RELEASED, "Reservation released");
static MISMATCH: Kind = Kind::new(StatusCode::CONFLICT, problems::RESERVATION_MISMATCH, "Reservation mismatch");

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// There is no such product.
    NotFound,
    /// There is no such reservation.
    NoReservation,
    /// The units could not be taken.
    Refused(Refusal),
    /// The users could not be fetched.
    Users(PeerError),
    /// The store is away.
    Store(StoreError),
    /// Wrong in a way that every service knows.
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "Product not found"),
            Error::NoReservation => Self::new(&NOT_FOUND, "Reservation not found"),
            Error::Refused(refusal) => refusal.into(),
            Error::Users(error) => Self::new(&PEER_UNAVAILABLE, "Error fetching users").caused_by(error),
            Error::Store(error) => Self::store_unavailable(error),
            Error::Problem(problem) => problem,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(lines) => {
                let unknown = |at| FieldError::at_pointer(format!("/lines/{at}/productId"), "does not exist");
                Self::new(&PRODUCT_NOT_FOUND, "Product not found").with_errors(lines.into_iter().map(unknown).collect())
            }
            Refusal::InsufficientStock(lines) => {
                let short = |(at, left): (usize, i64)| {
                    FieldError::at_pointer(format!("/lines/{at}/quantity"), format!("only {left} left")).actual(left)
                };
                Self::new(&INSUFFICIENT_STOCK, "Insufficient stock").with_errors(lines.into_iter().map(short).collect())
            }
            Refusal::Released => Self::new(&RELEASED, "The reservation was released and cannot be taken again"),
            Refusal::Mismatch => Self::new(&MISMATCH, "The reservation was taken for other lines"),
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Self::Users(error)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
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
