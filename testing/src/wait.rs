//! Waiting for a condition with a deadline, never for a fixed time.

use std::future::Future;
use std::time::Duration;

use tokio::time;

/// Maximum time for any step of a test: far more than it takes, so that no test fails on a slow machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for `future`, at most for [`DEADLINE`].
///
/// # Panics
/// At the deadline; the message names `what`.
pub async fn with_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// Checks `condition` every 5 ms until it holds, at most for [`DEADLINE`].
///
/// # Panics
/// At the deadline; the message names `what`.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let holds = async {
        while !condition().await {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    with_timeout(what, holds).await;
}
