//! What can go wrong here, and what a client is told of it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::problem::{FieldError, Kind, NOT_FOUND, OVERLOADED, Problem};
use shared::orders::OrderStatus;
use shared::products::problems;

use crate::placement::Refusal;
use crate::store::StoreError;

static USER_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, "user-not-found", "User not found");
static PRODUCT_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, problems::PRODUCT_NOT_FOUND, "Product not found");
static INSUFFICIENT_STOCK: Kind = Kind::new(StatusCode::CONFLICT, problems::INSUFFICIENT_STOCK, "Insufficient stock");
static PRICE_CHANGED: Kind = Kind::new(StatusCode::CONFLICT, "price-changed", "Price changed");
static ILLEGAL_STEP: Kind = Kind::new(StatusCode::CONFLICT, "illegal-status-step", "Illegal status step");
static IN_PROGRESS: Kind = Kind::new(StatusCode::CONFLICT, "request-in-progress", "Request in progress");
static KEY_REUSED: Kind =
    Kind::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Idempotency key reused");

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// There is no such order.
    NotFound,
    /// The order was not placed.
    Refused(Refusal),
    /// The store is away.
    Store(StoreError),
    /// The order cannot go from here to there.
    IllegalStep(OrderStatus, OrderStatus),
    /// Wrong in a way that every service knows.
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "Order not found"),
            Error::Refused(refusal) => refusal.into(),
            Error::Store(error) => Self::store_unavailable(error),
            Error::IllegalStep(from, to) => {
                Self::new(&ILLEGAL_STEP, format!("An order that is {from} cannot become {to}"))
            }
            Error::Problem(problem) => problem,
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UserNotFound => Self::new(&USER_NOT_FOUND, "User not found")
                .with_errors(vec![FieldError::at_pointer("/userId", "does not exist")]),
            Refusal::ProductNotFound(lines) => {
                let unknown = |at| FieldError::at_pointer(format!("/products/{at}/productId"), "does not exist");
                Self::new(&PRODUCT_NOT_FOUND, "Product not found").with_errors(lines.into_iter().map(unknown).collect())
            }
            Refusal::InsufficientStock(lines) => {
                let short = |(at, left): (usize, i64)| {
                    FieldError::at_pointer(format!("/products/{at}/quantity"), format!("only {left} left")).actual(left)
                };
                Self::new(&INSUFFICIENT_STOCK, "Insufficient stock").with_errors(lines.into_iter().map(short).collect())
            }
            Refusal::PriceChanged(lines) => {
                let changed = |(at, price): (usize, shared::Money)| {
                    let error =
                        FieldError::at_pointer(format!("/products/{at}/price"), format!("the price is {price}"));
                    error.actual(serde_json::to_value(price).unwrap_or_default())
                };
                Self::new(&PRICE_CHANGED, "The price has changed").with_errors(lines.into_iter().map(changed).collect())
            }
            Refusal::KeyReused => Self::new(&KEY_REUSED, "This Idempotency-Key was used for another order"),
            Refusal::InProgress => {
                Self::new(&IN_PROGRESS, "The first request with this Idempotency-Key is still running").retry_after(1)
            }
            Refusal::TimedOut => Self::new(&OVERLOADED, "Placing the order took too long; nothing was sold"),
            Refusal::Overloaded => Self::new(&OVERLOADED, "Too many orders at once"),
            Refusal::Peer(error) => error.into(),
            Refusal::Panicked(cause) => Self::internal(cause),
            Refusal::Store(error) => Self::store_unavailable(error),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
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
