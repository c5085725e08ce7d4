//! To wait for something, and never for a while.

use std::future::Future;
use std::time::Duration;

use tokio::time;

/// How long anything may take: far beyond what it does, so that a slow machine fails no test.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What `happening` gives.
///
/// # Panics
/// If it does not come; that `what` was waited for is said.
pub async fn with_timeout<T>(what: &str, happening: impl Future<Output = T>) -> T {
    time::timeout(DEADLINE, happening).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Asks again until the answer is yes.
///
/// # Panics
/// As [`in_time`].
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let asked = async {
        while !is_so().await {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    with_timeout(what, asked).await;
}
