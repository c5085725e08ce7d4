//! Finishes what a crash left half done. One runs in every replica; they share the work by claiming it.

use std::time::Duration;

use tokio::time;

use crate::placement::Placement;

/// Rows finished at one go.
const MOST_AT_ONCE: usize = 64;

/// Looks for unfinished rows every `interval`, give or take a half, so that replicas that started together drift apart.
/// While it finishes as many as it can at one go, it does not wait. It never ends.
pub async fn run(placement: Placement, interval: Duration) {
    loop {
        let finished = placement.reconcile(MOST_AT_ONCE).await;
        if let Err(error) = &finished {
            tracing::warn!(%error, "cannot look for unfinished orders");
        }
        if finished != Ok(MOST_AT_ONCE) {
            time::sleep(interval.mul_f64(rand::random_range(0.5..=1.5))).await;
        }
    }
}
