//! Classes of database errors, and the retry of steps that met a transient one.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::time::Duration;

use sqlx::Error;
use tokio::time;

/// Attempts per step, the first included.
const MAX_ATTEMPTS: u32 = 4;
/// The longest back-off before the first retry. It doubles with each further retry; the real one is random (full jitter).
const BASE_BACKOFF: Duration = Duration::from_millis(10);

/// Runs the step until it succeeds, fails with an error that is not to be retried, or has had [`MAX_ATTEMPTS`]. Returns its
/// last outcome, and whether an earlier attempt may have been executed.
pub(super) async fn retry_if<T, F: Future<Output = Result<T, Error>>>(
    should_retry: fn(&Error) -> bool,
    step: impl Fn() -> F,
) -> Result<(T, bool), Error> {
    let (mut attempt, mut may_have_executed) = (1, false);
    loop {
        match step().await {
            Err(error) if attempt < MAX_ATTEMPTS && should_retry(&error) => {
                may_have_executed |= !not_executed(&error);
                time::sleep((BASE_BACKOFF * 2_u32.pow(attempt - 1)).mul_f64(rand::random())).await;
                attempt += 1;
            }
            outcome => return Ok((outcome?, may_have_executed)),
        }
    }
}

/// Returns whether the statement was certainly not executed, for a transient reason. Either the database said so with a
/// SQLSTATE (PostgreSQL manual, appendix A), or it had closed the connection before the statement was sent.
pub(super) fn not_executed(error: &Error) -> bool {
    if let Error::Io(error) = error {
        return error.kind() == io::ErrorKind::BrokenPipe;
    }
    sql_state(error).is_some_and(|code| {
        matches!(
            &*code,
            "40001" | "40P01" // serialization failure, deadlock
            | "57P01" | "57P02" | "57P03" // the server shuts down, crashed, or starts
            | "53300" // too many connections
        )
    })
}

/// Returns whether a constraint was violated (SQLSTATE class 23).
pub(super) fn is_constraint_violation(error: &Error) -> bool {
    sql_state(error).is_some_and(|code| code.starts_with("23"))
}

/// Returns whether the error is about one row, and other rows may succeed: a constraint was violated, a value is invalid
/// (SQLSTATE class 22), or the lock of the row was not available in time.
pub fn is_row_error(error: &Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    is_constraint_violation(error)
        || sql_state(error).is_some_and(|code| code.starts_with("22") || code == LOCK_NOT_AVAILABLE)
}

/// Returns whether another attempt may succeed. A timeout is not transient: the caller has waited long enough.
pub(super) fn is_transient(error: &Error) -> bool {
    let is_broken = match error {
        Error::Io(error) => error.kind() != io::ErrorKind::TimedOut,
        error => matches!(error, Error::Protocol(_) | Error::WorkerCrashed),
    };
    is_broken || not_executed(error)
}

/// Returns whether other connections are probably broken too: the connection broke, or the server shuts down (SQLSTATE 57P).
///
/// A timeout of the pool does not count. All connections may be busy, and new ones would add to the load.
pub(super) fn invalidates_connections(error: &Error) -> bool {
    matches!(error, Error::Io(_) | Error::Protocol(_)) || sql_state(error).is_some_and(|code| code.starts_with("57P"))
}

/// Returns the error of an answer that did not come in time.
pub(super) fn timed_out() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Returns the error of a step before the database is open.
pub(super) fn not_open() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::NotConnected, "the database is not open yet"))
}

/// Returns the SQLSTATE, if the error is one of the database.
pub(super) fn sql_state(error: &Error) -> Option<Cow<'_, str>> {
    error.as_database_error()?.code()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The statement was sent, and the connection broke before the answer.
    const AMBIGUOUS: io::ErrorKind = io::ErrorKind::ConnectionReset;
    const NOT_SENT: io::ErrorKind = io::ErrorKind::BrokenPipe;

    /// Runs a step whose first attempts fail. Returns the number of attempts and, on success, whether an earlier one may
    /// have been executed.
    async fn attempts(should_retry: fn(&Error) -> bool, failures: u32, kind: io::ErrorKind) -> (u32, Option<bool>) {
        let attempts = Cell::new(0);
        let step = || async {
            attempts.set(attempts.get() + 1);
            if attempts.get() <= failures { Err(Error::Io(kind.into())) } else { Ok(()) }
        };
        let outcome = retry_if(should_retry, step).await;
        (attempts.get(), outcome.ok().map(|((), may_have_executed)| may_have_executed))
    }

    #[tokio::test(start_paused = true)]
    async fn retries_an_idempotent_step_three_times_when_connections_break() {
        assert_eq!(attempts(is_transient, 3, AMBIGUOUS).await, (4, Some(true)));
        assert_eq!(attempts(is_transient, 4, AMBIGUOUS).await, (4, None));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_a_step_that_is_not_idempotent_only_if_it_was_not_executed() {
        assert_eq!(attempts(not_executed, 1, AMBIGUOUS).await, (1, None));
        assert_eq!(attempts(not_executed, 1, NOT_SENT).await, (2, Some(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_no_ambiguity_when_no_attempt_was_executed() {
        assert_eq!(attempts(is_transient, 3, NOT_SENT).await, (4, Some(false)));
        assert_eq!(attempts(is_transient, 0, AMBIGUOUS).await, (1, Some(false)));
    }
}
