//! What can go wrong in this service, and the problem that a client gets for it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chassis::problem::{Kind, NOT_FOUND, OVERLOADED, Problem};

use crate::password::HashError;
use crate::store::StoreError;

static USERNAME_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "username-taken", "Username taken");
static EMAIL_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "email-taken", "E-mail taken");

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user in the path does not exist.
    #[error("the user does not exist")]
    NotFound,
    /// The store failed, or the username or e-mail is taken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The password was not hashed.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A problem that is the same in every service.
    #[error("{0:?}")]
    Problem(Problem),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "User not found"),
            Error::Store(StoreError::UsernameTaken) => Self::new(&USERNAME_TAKEN, "Username is already taken"),
            Error::Store(StoreError::EmailTaken) => Self::new(&EMAIL_TAKEN, "E-mail is already taken"),
            Error::Store(StoreError::Unavailable(cause)) => Self::store_unavailable(cause),
            Error::Store(StoreError::OutcomeUnknown(cause)) => Self::outcome_unknown(cause),
            Error::Hash(HashError::Busy) => Self::new(&OVERLOADED, "Too many passwords at once"),
            Error::Hash(HashError::Failed(cause)) => Self::internal(cause),
            Error::Problem(problem) => problem,
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
