//! Finishes what a crash left half done. One runs in every replica; they share the work by claiming it.

use std::time::Duration;

use tokio::time;
use uuid::Uuid;

use crate::placement::Placement;

/// Rows finished at one go.
const MOST_AT_ONCE: usize = 64;

/// Looks for unfinished rows every `interval`, give or take a half, so that replicas that started together drift apart.
/// While there are more than it finishes at one go, it does not wait. It never ends.
pub async fn run(placement: Placement, interval: Duration) {
    loop {
        let finished = placement.reconcile(MOST_AT_ONCE).await;
        if let Err(error) = &finished {
            tracing::warn!(%error, "cannot look for unfinished orders");
        }
        if finished != Ok(MOST_AT_ONCE) {
            time::sleep(interval.mul_f64(jitter())).await;
        }
    }
}

/// A number from 0.5 to 1.5.
fn jitter() -> f64 {
    let random = Uuid::new_v4().as_bytes()[0];
    0.5 + f64::from(random) / 255.0
}
