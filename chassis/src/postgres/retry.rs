//! Which failures of a database may pass, and how often a step is tried that met with one.

use std::future::Future;
use std::io;
use std::time::Duration;

use sqlx::Error;
use tokio::time;

/// How often a step that is safe to repeat is tried, the first included.
const MAX_TRIES: u32 = 4;
/// The first wait between two tries is up to this long, each further one up to twice as long as the last.
const BASE_WAIT: Duration = Duration::from_millis(10);

/// What the step gives in the end, and whether a try before that may have done the work.
pub(super) async fn retry_if<T, F: Future<Output = Result<T, Error>>>(
    helps: fn(&Error) -> bool,
    step: impl Fn() -> F,
) -> Result<(T, bool), Error> {
    let (mut tries, mut may_be_done) = (1, false);
    loop {
        match step().await {
            Err(error) if tries < MAX_TRIES && helps(&error) => {
                may_be_done |= !not_executed(&error);
                time::sleep((BASE_WAIT * 2_u32.pow(tries - 1)).mul_f64(rand::random())).await;
                tries += 1;
            }
            outcome => return Ok((outcome?, may_be_done)),
        }
    }
}

/// Whether the statement was certainly not carried out, for a reason that may pass: the database has said so (SQLSTATE,
/// PostgreSQL's manual, appendix A), or had closed the connection before it was sent.
pub(super) fn not_executed(error: &Error) -> bool {
    if let Error::Io(error) = error {
        return error.kind() == io::ErrorKind::BrokenPipe;
    }
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| {
        matches!(
            &*code,
            "40001" | "40P01" // two statements in each other's way
            | "57P01" | "57P02" | "57P03" // it is going down, or coming up
            | "53300" // too many connections
        )
    })
}

/// Whether the database has said no for a reason of the data's: a constraint that does not hold (class 23).
pub(super) fn is_answer(error: &Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code.starts_with("23"))
}

/// Whether the database is there, and would do the like for another row: it has said no because of what it was given (that, or
/// a value that it cannot take, class 22), or somebody holds the row for too long.
pub fn is_row_error(error: &Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    let code = error.as_database_error().and_then(|error| error.code());
    is_answer(error) || code.is_some_and(|code| code.starts_with("22") || code == LOCK_NOT_AVAILABLE)
}

/// Whether another try may help. A wait that was cut off by its limit has been long enough.
pub(super) fn is_transient(error: &Error) -> bool {
    let is_broken = match error {
        Error::Io(error) => error.kind() != io::ErrorKind::TimedOut,
        error => matches!(error, Error::Protocol(_) | Error::WorkerCrashed),
    };
    is_broken || not_executed(error)
}

/// Whether other connections are likely to have met with the same.
pub(super) fn invalidates_connections(error: &Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Not that all are busy: to throw good ones away would make it worse.
    matches!(error, Error::Io(_) | Error::Protocol(_)) || code.is_some_and(|code| code.starts_with("57P")) // the database ends
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LOST: io::ErrorKind = io::ErrorKind::ConnectionReset;
    const NEVER_SENT: io::ErrorKind = io::ErrorKind::BrokenPipe;

    /// How often a step is tried whose first tries fail like this; and, if it succeeds, whether it may have before.
    async fn tries(helps: fn(&Error) -> bool, fails: u32, how: io::ErrorKind) -> (u32, Option<bool>) {
        let tries = Cell::new(0);
        let step = || async {
            tries.set(tries.get() + 1);
            if tries.get() <= fails { Err(Error::Io(how.into())) } else { Ok(()) }
        };
        let outcome = retry_if(helps, step).await;
        (tries.get(), outcome.ok().map(|((), may_be_done)| may_be_done))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_safe_to_repeat_outlives_three_broken_connections_and_no_more() {
        assert_eq!(tries(is_transient, 3, LOST).await, (4, Some(true)));
        assert_eq!(tries(is_transient, 4, LOST).await, (4, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_safe_to_repeat_is_not_repeated_when_nobody_knows_what_it_did() {
        assert_eq!(tries(not_executed, 1, LOST).await, (1, None));
        assert_eq!(tries(not_executed, 1, NEVER_SENT).await, (2, Some(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_certainly_did_nothing_is_not_told_as_perhaps_done() {
        assert_eq!(tries(is_transient, 3, NEVER_SENT).await, (4, Some(false)));
        assert_eq!(tries(is_transient, 0, LOST).await, (1, Some(false)));
    }
}
