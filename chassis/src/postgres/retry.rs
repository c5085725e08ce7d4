//! Classes of database errors, and retries of steps that failed with a transient one.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use sqlx::Error;
use tokio::time;

/// Attempts per step, the first included.
const MAX_ATTEMPTS: u32 = 4;
/// Upper bound of the back-off before the first retry. It doubles with each further retry. The back-off is random (full jitter).
const BASE_BACKOFF: Duration = Duration::from_millis(10);

/// What is done after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The step fails. The connection stays open.
    Fail,
    /// The step fails, and its connection is closed.
    FailAndClose,
    /// The step is tried again.
    Retry,
    /// The step is tried again on another connection; this one is closed.
    RetryElsewhere,
    /// The step is tried again on a new connection; all that are open are closed.
    RetryOnNewConnection,
    /// As [`Self::RetryOnNewConnection`], but the statement may have been executed. So only a step that is safe to repeat is tried again.
    RetryIfSafe,
    /// The step fails, and the statement may have been executed. All connections are closed.
    FailAmbiguous,
    /// The step fails, although the statement was executed. The connection stays open.
    FailExecuted,
}

/// A class of errors.
#[derive(Debug)]
pub(super) struct Class {
    /// A SQLSTATE (PostgreSQL manual, appendix A), or the first two characters of several.
    state: &'static str,
    action: Action,
    /// The meaning of the error, for the log.
    meaning: &'static str,
}

const fn class(state: &'static str, action: Action, meaning: &'static str) -> Class {
    Class { state, action, meaning }
}

/// The classes of PostgreSQL's errors. `docs/postgres.md` has the same table. PostgreSQL rolls back a statement that it
/// reports as failed, so it was not executed. The exceptions have [`Action::RetryIfSafe`].
static CLASSES: [Class; 42] = [
    class("08", Action::RetryIfSafe, "the connection, or that of a pooler, failed"),
    class("0A", Action::RetryOnNewConnection, "a column has changed its type, so prepared statements are outdated"),
    class("22", Action::Fail, "a value is invalid"),
    class("23", Action::Fail, "a constraint is violated"),
    class("25", Action::RetryElsewhere, "a transaction was left open on the connection"),
    class(
        "25006",
        Action::RetryOnNewConnection,
        "the database is read-only; after a failover the connections are to the old server",
    ),
    class("25P04", Action::FailAndClose, "the transaction took too long"),
    class("26", Action::RetryOnNewConnection, "a prepared statement is gone, as after DISCARD ALL or behind a pooler"),
    class(
        "28",
        Action::Fail,
        "the server rejects the role, its password or its certificate; see DATABASE_URL and pg_hba.conf",
    ),
    class("3D", Action::Fail, "the database does not exist"),
    class("3F", Action::Fail, "the schema is missing; see search_path"),
    class("40", Action::Retry, "the transaction conflicted with another one and was rolled back"),
    class("40002", Action::Fail, "a constraint is violated at the end of the transaction"),
    class("40003", Action::RetryIfSafe, "the server does not know whether the statement was executed"),
    class("42", Action::Fail, "the statement does not fit the tables"),
    class("42501", Action::Fail, "the role lacks a privilege; grant it"),
    class("42703", Action::Fail, "a column is missing; is the schema that of this release?"),
    class("42804", Action::Fail, "a column has another type; is the schema that of this release?"),
    class("42883", Action::Fail, "a function is missing; is the schema that of this release?"),
    class("42P01", Action::Fail, "a table is missing; is the schema that of this release?"),
    class("42P05", Action::RetryElsewhere, "the prepared statement exists already, as behind a pooler"),
    class("53", Action::Fail, "a resource of the server is used up"),
    class("53100", Action::Fail, "the disk of the server is full"),
    class("53200", Action::RetryElsewhere, "the server lacks memory; a closed connection frees some"),
    class(
        "53300",
        Action::Retry,
        "the server or the role has no connection left; lower DATABASE_CONNECTIONS or raise the limit",
    ),
    class("55", Action::Fail, "an object is not in the required state"),
    class("55006", Action::Retry, "an object is in use"),
    class("55P03", Action::Fail, "a lock was not available in time"),
    class("57", Action::Fail, "an operator intervened"),
    class("57014", Action::Fail, "the statement took too long, or an operator cancelled it"),
    class("57P01", Action::RetryOnNewConnection, "the server shuts down, or an operator ended the connection"),
    class("57P02", Action::RetryOnNewConnection, "another process of the server crashed"),
    class("57P03", Action::RetryOnNewConnection, "the server starts or shuts down"),
    class("57P04", Action::FailAndClose, "the database was dropped"),
    class("57P05", Action::RetryOnNewConnection, "the connection was idle for too long (idle_session_timeout)"),
    class("58", Action::FailAndClose, "the server cannot read or write its files"),
    class("72", Action::Retry, "the snapshot is too old"),
    class("F0", Action::FailAndClose, "the server's configuration file is broken"),
    class("XX", Action::RetryElsewhere, "internal error of the server, as while a table is being changed"),
    class("XX001", Action::FailAndClose, "the data of the server are corrupted"),
    class("XX002", Action::FailAndClose, "an index of the server is corrupted; reindex it"),
    class("P0", Action::Fail, "a function of the database raised an error"),
];

/// Any other SQLSTATE, and errors of sqlx itself.
static OTHER: Class = class("", Action::Fail, "");
/// The connection was closed before the statement was sent, so it was not executed.
static NOT_SENT: Class = class("", Action::RetryOnNewConnection, "");
/// No connection could be opened, so the statement was not executed. The pool has already tried again.
static NOT_CONNECTED: Class = class("", Action::Fail, "");
/// The connection broke before the answer.
static BROKEN: Class = class("", Action::RetryIfSafe, "");
/// The answer did not come in time. There is no other attempt, because the caller has waited long enough.
static SILENT: Class = class("", Action::FailAmbiguous, "");

/// The answer came, and cannot be read.
static UNREADABLE: Class = class("", Action::FailExecuted, "");

/// Returns the class of an error.
pub(super) fn class_of(error: &Error) -> &'static Class {
    if let Some(code) = sql_state(error) {
        let classes = CLASSES.iter().filter(|class| code.starts_with(class.state));
        return classes.max_by_key(|class| class.state.len()).unwrap_or(&OTHER);
    }
    match error {
        Error::Io(error) => match error.kind() {
            io::ErrorKind::BrokenPipe => &NOT_SENT,
            io::ErrorKind::NotConnected => &NOT_CONNECTED,
            io::ErrorKind::TimedOut => &SILENT,
            _ => &BROKEN,
        },
        Error::Protocol(_) | Error::WorkerCrashed => &BROKEN,
        Error::Decode(_) | Error::ColumnDecode { .. } | Error::ColumnNotFound(_) => &UNREADABLE,
        _ => &OTHER,
    }
}

impl Class {
    /// Returns the text of an error of this class for the log, with its meaning.
    pub(super) fn describe(&self, error: &Error) -> String {
        match self.meaning {
            "" => error.to_string(),
            meaning => format!("{error} ({}: {meaning})", sql_state(error).unwrap_or_default()),
        }
    }

    /// Returns whether the connection is unusable.
    pub(super) fn closes_connection(&self) -> bool {
        !matches!(self.action, Action::Fail | Action::FailExecuted | Action::Retry)
    }

    /// Returns whether the other connections are probably unusable too.
    ///
    /// A timeout of the pool does not count. All connections may be busy, and new ones would add to the load.
    pub(super) fn closes_all_connections(&self) -> bool {
        matches!(self.action, Action::RetryOnNewConnection | Action::RetryIfSafe | Action::FailAmbiguous)
    }
}

/// Returns whether another attempt may succeed.
pub(super) fn is_transient(error: &Error) -> bool {
    class_of(error).action == Action::RetryIfSafe || not_executed(error)
}

/// Returns whether the statement was certainly not executed, for a transient reason.
pub(super) fn not_executed(error: &Error) -> bool {
    matches!(class_of(error).action, Action::Retry | Action::RetryElsewhere | Action::RetryOnNewConnection)
}

/// Returns whether the statement may have been executed, although it failed.
fn may_have_executed(error: &Error) -> bool {
    matches!(class_of(error).action, Action::RetryIfSafe | Action::FailAmbiguous | Action::FailExecuted)
}

/// The error of a step that may have been done.
#[derive(Debug)]
pub(super) struct Ambiguous(Error);

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&class_of(&self.0).describe(&self.0))
    }
}

impl std::error::Error for Ambiguous {}

/// Why a step of a store failed, with the cause for the log. The cause contains no value of the statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was not done, or it only reads.
    Unavailable(String),
    /// It is a change that may or may not have been made.
    OutcomeUnknown(String),
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let cause = if let Error::Io(error) = error { error.get_ref() } else { None };
        match cause.and_then(|cause| cause.downcast_ref::<Ambiguous>()) {
            Some(ambiguous) => Self::OutcomeUnknown(ambiguous.to_string()),
            None => Self::Unavailable(class_of(error).describe(error)),
        }
    }
}

/// Runs the step, up to [`MAX_ATTEMPTS`] times, until it succeeds or fails with an error that is not retried. Returns the last
/// outcome, and whether a failed attempt may have been executed.
pub(super) async fn retry_if<T, F: Future<Output = Result<T, Error>>>(
    should_retry: fn(&Error) -> bool,
    step: impl Fn() -> F,
) -> (Result<T, Error>, bool) {
    let (mut attempt, mut is_ambiguous) = (1, false);
    loop {
        let outcome = step().await;
        let Err(error) = &outcome else { return (outcome, is_ambiguous) };
        is_ambiguous |= may_have_executed(error);
        if attempt == MAX_ATTEMPTS || !should_retry(error) {
            return (outcome, is_ambiguous);
        }
        time::sleep((BASE_BACKOFF * 2_u32.pow(attempt - 1)).mul_f64(rand::random())).await;
        attempt += 1;
    }
}

/// Returns the error of a step that may have been done.
pub(super) fn ambiguous(error: Error) -> Error {
    Error::Io(io::Error::other(Ambiguous(error)))
}

/// Returns the error of a statement that was not executed, because no connection could be opened.
pub(super) fn not_connected(error: Error) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::NotConnected, class_of(&error).describe(&error)))
}

/// Returns whether a constraint was violated (SQLSTATE class 23).
pub fn is_constraint_violation(error: &Error) -> bool {
    sql_state(error).is_some_and(|code| code.starts_with("23"))
}

/// Returns whether the error is about one row, and other rows may succeed: a constraint was violated, a value is invalid
/// (SQLSTATE class 22), or the lock of the row was not available in time.
pub fn is_row_error(error: &Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    is_constraint_violation(error)
        || sql_state(error).is_some_and(|code| code.starts_with("22") || code == LOCK_NOT_AVAILABLE)
}

/// Returns whether the server or the role has reached its limit of connections (`too_many_connections`).
pub(super) fn is_too_many_connections(error: &Error) -> bool {
    sql_state(error).is_some_and(|code| code == "53300")
}

/// Returns whether connecting failed because of a setting or a certificate, so that waiting does not help. rustls reports a
/// rejected certificate as an I/O error.
pub(super) fn is_misconfigured(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        error => matches!(error, Error::Tls(_) | Error::Configuration(_)),
    }
}

/// Returns the error of a statement whose answer did not come in time.
pub(super) fn timed_out() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Returns the error of a statement that was not sent, because its transaction could not begin.
pub(super) fn not_sent(error: Error) -> Error {
    if may_have_executed(&error) {
        return Error::Io(io::Error::new(io::ErrorKind::BrokenPipe, class_of(&error).describe(&error)));
    }
    error
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
        let (outcome, may_have_executed) = retry_if(should_retry, step).await;
        (attempts.get(), outcome.ok().map(|()| may_have_executed))
    }

    #[test]
    fn documents_each_class_with_its_action_and_meaning() {
        let documented = include_str!("../../../docs/postgres.md");
        for Class { state, action, meaning } in &CLASSES {
            let action = match action {
                Action::Fail => "fail",
                Action::FailAndClose => "fail, close the connection",
                Action::Retry => "try again",
                Action::RetryElsewhere => "try again on another connection",
                Action::RetryOnNewConnection => "try again, close all connections",
                Action::RetryIfSafe => "try again if it is safe to repeat, close all connections",
                Action::FailAmbiguous | Action::FailExecuted => panic!("{state}: only for errors without a SQLSTATE"),
            };
            let row = format!("| `{state}` | {action} | {meaning} |");
            assert!(documented.contains(&row), "docs/postgres.md has no row {row}");
        }
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
