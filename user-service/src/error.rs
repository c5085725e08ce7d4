//! What can go wrong in this service, and the problem that a client gets for it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chassis::problem::{FieldError, Kind, NOT_FOUND, OVERLOADED, Problem};

use crate::password::HashError;
use crate::store::StoreError;

static USERNAME_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "username-taken", "Username taken");
static EMAIL_TAKEN: Kind = Kind::new(StatusCode::CONFLICT, "email-taken", "E-mail taken");
static INVALID_CREDENTIALS: Kind = Kind::new(StatusCode::UNAUTHORIZED, "invalid-credentials", "Invalid credentials");
static TOO_MANY_ATTEMPTS: Kind = Kind::new(StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", "Too many attempts");

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user in the path does not exist.
    #[error("the user does not exist")]
    NotFound,
    /// This service does not issue tokens.
    #[error("sign-in is off, or another provider is the issuer")]
    NotTheIssuer,
    /// No account has this name and this password.
    #[error("the name or the password is wrong")]
    InvalidCredentials,
    /// The account or the client has failed too often.
    #[error("too many attempts, the next one in {seconds} s")]
    TooManyAttempts {
        /// When the next attempt may be made.
        seconds: u32,
    },
    /// The new password is one of the most common ones.
    #[error("the password is one of the most common ones")]
    CommonPassword,
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

impl Error {
    /// Returns an error that the client cannot correct. The cause is only logged.
    pub(crate) fn internal(cause: String) -> Self {
        Self::Problem(Problem::internal(cause))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::new(&NOT_FOUND, "User not found"),
            Error::NotTheIssuer => Self::new(&NOT_FOUND, "This service issues no tokens"),
            // RFC 9110 wants a challenge in each 401, and RFC 6750 one without an error where there was no token.
            Error::InvalidCredentials => Self::new(&INVALID_CREDENTIALS, "The name or the password is wrong")
                .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Error::TooManyAttempts { seconds } => {
                Self::new(&TOO_MANY_ATTEMPTS, "Too many failed attempts; try again later").retry_after(seconds)
            }
            Error::CommonPassword => {
                Self::invalid(vec![FieldError::at_pointer("/password", "is one of the most common passwords")])
            }
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
