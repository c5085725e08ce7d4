//! What can go wrong here, and what a client is told of it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::problem::{Kind, NOT_FOUND, OVERLOADED, Problem};

use crate::password::HashError;
use crate::store::StoreError;

static USERNAME_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "username-taken", "Username taken");
static EMAIL_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "email-taken", "E-mail taken");

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// There is no such user.
    NotFound,
    /// The store refused, or is away.
    Store(StoreError),
    /// A password is not hashed.
    Hash(HashError),
    /// Wrong in a way that every service knows.
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "User not found"),
            Error::Store(StoreError::UsernameTaken) => Self::new(&USERNAME_TAKEN, "Username is already taken"),
            Error::Store(StoreError::EmailTaken) => Self::new(&EMAIL_TAKEN, "E-mail is already taken"),
            Error::Store(StoreError::Unavailable(cause)) => Self::store_unavailable(cause),
            Error::Hash(HashError::Busy) => Self::new(&OVERLOADED, "Too many passwords at once"),
            Error::Hash(HashError::Failed(cause)) => Self::internal(cause),
            Error::Problem(problem) => problem,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<HashError> for Error {
    fn from(error: HashError) -> Self {
        Self::Hash(error)
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
