//! The errors of this service, and the problem that a client gets for each.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::problem::{FieldError, Kind, NOT_FOUND, OVERLOADED, Problem, TIMED_OUT};
use shared::Money;
use shared::orders::OrderStatus;
use shared::products::problems;

use crate::placement::PlaceOrderError;
use crate::store::StoreError;

static USER_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, "user-not-found", "User not found");
static PRODUCT_NOT_FOUND: Kind = Kind::new(StatusCode::BAD_REQUEST, problems::PRODUCT_NOT_FOUND, "Product not found");
static INSUFFICIENT_STOCK: Kind = Kind::new(StatusCode::CONFLICT, problems::INSUFFICIENT_STOCK, "Insufficient stock");
static PRICE_CHANGED: Kind = Kind::new(StatusCode::CONFLICT, "price-changed", "Price changed");
static ILLEGAL_STEP: Kind = Kind::new(StatusCode::CONFLICT, "illegal-status-step", "Illegal status step");
static IN_PROGRESS: Kind = Kind::new(StatusCode::CONFLICT, "request-in-progress", "Request in progress");
static KEY_REUSED: Kind =
    Kind::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Idempotency key reused");

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The order does not exist.
    #[error("the order does not exist")]
    NotFound,
    /// The order was not placed.
    #[error(transparent)]
    NotPlaced(#[from] PlaceOrderError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An order with the first status cannot get the second one.
    #[error("an order that is {0} cannot become {1}")]
    IllegalStep(OrderStatus, OrderStatus),
    /// A problem that all services share.
    #[error("{0:?}")]
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "Order not found"),
            Error::NotPlaced(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::IllegalStep(from, to) => {
                Self::new(&ILLEGAL_STEP, format!("An order that is {from} cannot become {to}"))
            }
            Error::Problem(problem) => problem,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::store_unavailable(cause),
            StoreError::OutcomeUnknown(cause) => Self::outcome_unknown(cause),
        }
    }
}

impl From<PlaceOrderError> for Problem {
    fn from(error: PlaceOrderError) -> Self {
        match error {
            PlaceOrderError::UserNotFound => Self::new(&USER_NOT_FOUND, "User not found")
                .with_errors(vec![FieldError::at_pointer("/userId", "does not exist")]),
            PlaceOrderError::ProductNotFound(lines) => {
                let unknown = |index| FieldError::at_pointer(pointer(index, "productId"), "does not exist");
                Self::new(&PRODUCT_NOT_FOUND, "Product not found").with_errors(lines.into_iter().map(unknown).collect())
            }
            PlaceOrderError::InsufficientStock(lines) => {
                let short = |(index, left): (usize, i64)| {
                    FieldError::at_pointer(pointer(index, "quantity"), format!("only {left} left")).actual(left)
                };
                Self::new(&INSUFFICIENT_STOCK, "Insufficient stock").with_errors(lines.into_iter().map(short).collect())
            }
            PlaceOrderError::PriceChanged(lines) => {
                let changed = |(index, price): (usize, Money)| {
                    FieldError::at_pointer(pointer(index, "price"), format!("the price is {price}"))
                        .actual(serde_json::to_value(price).unwrap_or_default())
                };
                Self::new(&PRICE_CHANGED, "The price has changed").with_errors(lines.into_iter().map(changed).collect())
            }
            PlaceOrderError::KeyReused => Self::new(&KEY_REUSED, "This Idempotency-Key was used for another order"),
            PlaceOrderError::InProgress => {
                Self::new(&IN_PROGRESS, "The first request with this Idempotency-Key is still running").retry_after(1)
            }
            PlaceOrderError::TimedOut => Self::new(&OVERLOADED, "Placing the order took too long; nothing was sold"),
            PlaceOrderError::Unfinished => {
                Self::new(&TIMED_OUT, "Placing the order took too long. It may have been placed all the same")
            }
            PlaceOrderError::Overloaded => Self::new(&OVERLOADED, "Too many orders at once"),
            PlaceOrderError::Peer(error) => error.into(),
            PlaceOrderError::Store(error) => error.into(),
            PlaceOrderError::Panicked(cause) => Self::internal(cause),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// Returns the JSON pointer to a member of a line of the request.
fn pointer(line: usize, member: &str) -> String {
    format!("/products/{line}/{member}")
}
