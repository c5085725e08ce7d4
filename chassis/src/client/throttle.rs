//! Client-side adaptive throttling (*Site Reliability Engineering*, chapter "Handling Overload").
//!
//! Each caller rejects calls locally with a probability that rises with recent failures. A dead peer then costs its callers
//! no waiting, an overloaded peer gets less load, and a recovered peer is used again without a reset.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time that counts as recent.
const WINDOW: Duration = Duration::from_secs(5);
/// The window moves on in steps: each of its slots is cleared on its own.
const SLOTS: usize = 5;
/// With fewer calls than this in the window, no call is rejected.
const MIN_CALLS: u32 = 10;
/// While the peer looks dead, one call per interval still goes out, to detect recovery.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// After this many consecutive successes the failure history is cleared. Without this, a peer that fails half of its calls
/// would be throttled harder and harder by chance.
const RECOVERY_SUCCESSES: u32 = 5;

/// The recent results of the calls to one peer.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Locked for a few additions only.
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    slots: [Slot; SLOTS],
    began: Instant,
    /// The number of the newest slot, counted from `began`.
    current: u64,
    last_admitted: Instant,
    consecutive_successes: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    accepts: u32,
}

/// Returns the probability with which a call is rejected, from the requests of the window and how many the peer accepted.
fn reject_probability(requests: u32, accepts: u32) -> f64 {
    let (requests, accepts) = (f64::from(requests), f64::from(accepts));
    ((requests - 2.0 * accepts) / (requests + 1.0)).max(0.0)
}

impl Throttle {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let slots = [Slot::default(); SLOTS];
        let history = History { slots, began: now, current: 0, last_admitted: now, consecutive_successes: 0 };
        Self { history: Mutex::new(history) }
    }

    /// Returns whether a call may be sent. `sample` is a uniform random number in 0..1, passed in so that tests are
    /// deterministic.
    pub(super) fn should_admit(&self, sample: f64) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (requests, accepts) = history.sums(now);
        let admitted = history.consecutive_successes > 0
            || requests < MIN_CALLS
            || sample >= reject_probability(requests, accepts)
            || now.duration_since(history.last_admitted) >= PROBE_INTERVAL;
        if admitted {
            history.last_admitted = now;
        } else {
            history.slot().requests += 1;
        }
        admitted
    }

    /// Records the result of a call that was sent. Calls in flight do not count: a sudden burst is not an outage.
    pub(super) fn record_outcome(&self, accepted: bool) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.sums(Instant::now());
        history.slot().requests += 1;
        history.slot().accepts += u32::from(accepted);
        history.consecutive_successes = if accepted { history.consecutive_successes.saturating_add(1) } else { 0 };
        if history.consecutive_successes >= RECOVERY_SUCCESSES {
            history.slots = [Slot::default(); SLOTS];
            *history.slot() = Slot { requests: RECOVERY_SUCCESSES, accepts: RECOVERY_SUCCESSES };
        }
    }
}

impl History {
    /// Clears the slots that are older than the window, and returns the requests and accepts of the rest.
    fn sums(&mut self, now: Instant) -> (u32, u32) {
        let slot = (now.duration_since(self.began).as_millis() / (WINDOW.as_millis() / SLOTS as u128)) as u64;
        let passed = (slot - self.current).min(SLOTS as u64);
        for n in 1..=passed {
            self.slots[((self.current + n) % SLOTS as u64) as usize] = Slot::default();
        }
        self.current = slot;
        let sum = |field: fn(&Slot) -> u32| self.slots.iter().map(field).sum();
        (sum(|slot| slot.requests), sum(|slot| slot.accepts))
    }

    fn slot(&mut self) -> &mut Slot {
        &mut self.slots[(self.current % SLOTS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    /// Makes `calls` calls, `gap` apart, to a peer whose answers `accepts` decides, and returns how many were sent.
    async fn call(throttle: &Throttle, calls: u32, gap: Duration, accepts: impl Fn() -> bool) -> u32 {
        let mut sent = 0;
        for _ in 0..calls {
            time::sleep(gap).await;
            if throttle.should_admit(rand::random()) {
                sent += 1;
                throttle.record_outcome(accepts());
            }
        }
        sent
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rejects_with_the_probability_of_the_book() {
        assert_eq!(reject_probability(0, 0), 0.0);
        assert_eq!(reject_probability(100, 100), 0.0);
        assert_eq!(reject_probability(100, 50), 0.0, "half of the calls may fail");
        assert_eq!(reject_probability(99, 25), 0.49);
        assert_eq!(reject_probability(99, 0), 0.99);
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_throttle_after_a_few_failures() {
        let throttle = Throttle::new();
        for call in 0..MIN_CALLS {
            assert!(throttle.should_admit(0.0), "call {call}");
            throttle.record_outcome(false);
        }
        assert!(!throttle.should_admit(0.0), "ten consecutive failures throttle");
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_throttle_a_burst_of_unanswered_calls() {
        let throttle = Throttle::new();
        assert!((0..1000).all(|_| throttle.should_admit(0.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_a_dead_peer_twice_a_second_at_any_call_rate() {
        for per_second in [10, 100, 1000] {
            let throttle = Throttle::new();
            call(&throttle, 10 * per_second, 1000 * MS / per_second, || false).await;
            let sent = call(&throttle, 10 * per_second, 1000 * MS / per_second, || false).await;
            assert!((15..=40).contains(&sent), "{sent} of {per_second} calls per second, in ten seconds");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_calling_a_peer_that_fails_half_of_its_calls() {
        for gap in [MS, 4 * MS, 100 * MS] {
            let sent = call(&Throttle::new(), 10_000, gap, rand::random).await;
            assert!(sent > 8_500, "{sent} of 10,000 calls, {gap:?} apart");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stops_throttling_within_a_second_of_recovery() {
        let throttle = Throttle::new();
        call(&throttle, 10_000, MS, || false).await;
        call(&throttle, 1000, MS, || true).await;
        assert_eq!(call(&throttle, 1000, MS, || true).await, 1000, "every call is sent again");
    }
}
