//! Finishes orders that a crash or an outage has left unfinished. It runs in every replica; claims divide the work.

use std::time::Duration;

use tokio::time;

use crate::placement::Placement;

/// Maximum orders released at the same time.
const BATCH: usize = 64;

/// Reconciles every `interval`. Never returns. A jitter of ±50 % keeps replicas that started together apart.
///
/// After a full batch of finished orders it continues without a pause. When this future is dropped, the running batch is
/// still finished.
pub async fn run(placement: Placement, interval: Duration) {
    loop {
        let finished = placement.reconcile(BATCH).await;
        if let Err(error) = &finished {
            tracing::warn!(%error, "cannot claim unfinished orders; will retry");
        }
        if finished != Ok(BATCH) {
            time::sleep(interval.mul_f64(rand::random_range(0.5..=1.5))).await;
        }
    }
}
