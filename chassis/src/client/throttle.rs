//! Adaptive throttling: a peer that answers nothing is asked almost nothing.
//!
//! As in *Site Reliability Engineering*, chapter "Handling overload": each caller rejects by itself, with a probability
//! that grows with the calls that came to nothing lately. A dead peer costs no waiting, one that is drowning gets air, and
//! no switch has to be thrown back when it recovers: its good answers open the way by themselves.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the past counts.
const WINDOW: Duration = Duration::from_secs(5);
/// The window is forgotten in so many steps.
const SLOTS: usize = 5;
/// Fewer calls than this in the window say nothing about a peer.
const MIN_CALLS: u32 = 10;
/// However bad it looks, one call goes through each time this has passed: how else would one learn that it is better?
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// So many good answers in a row are all that is remembered of the past: what failed before them is forgiven, and a peer
/// that was well for a long time is not asked for a long time after it died. (Without it, half of the calls failing would
/// be an edge: each stroke of bad luck rejects some, which makes the share look worse, which rejects more.)
const RECOVERY_SUCCESSES: u32 = 5;

/// What became of the calls to one peer lately.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Held for a handful of additions.
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    slots: [Slot; SLOTS],
    began: Instant,
    current: u64,
    last_passed: Instant,
    /// Good answers since the last bad one.
    consecutive_successes: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    accepts: u32,
}

/// The probability with which a call is rejected here, given the calls of the window and how many the peer accepted.
fn reject_probability(requests: u32, accepts: u32) -> f64 {
    let (requests, accepts) = (f64::from(requests), f64::from(accepts));
    ((requests - 2.0 * accepts) / (requests + 1.0)).max(0.0)
}

impl Throttle {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let slots = [Slot::default(); SLOTS];
        Self {
            history: Mutex::new(History { slots, began: now, current: 0, last_passed: now, consecutive_successes: 0 }),
        }
    }

    /// Whether a call may go out; `dice` is a random number from 0 to 1.
    pub(super) fn should_admit(&self, dice: f64) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (requests, accepts) = history.sums(now);
        let passes = history.consecutive_successes > 0 // it answers, so far
            || requests < MIN_CALLS
            || dice >= reject_probability(requests, accepts)
            || now.duration_since(history.last_passed) >= PROBE_EVERY;
        if passes {
            history.last_passed = now;
        } else {
            history.slot().requests += 1;
        }
        passes
    }

    /// What became of a call that went out: whether the peer has answered, and not that it cannot. Only now it counts as a
    /// request: of those still on their way nobody knows, and a sudden crowd is no sign of an outage.
    pub(super) fn learn(&self, accepted: bool) {
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
    /// Requests and accepts of the window, after what is older was forgotten.
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

    /// So many calls, `gap` apart, to a peer that accepts some of them; how many went out to it.
    async fn calls(throttle: &Throttle, calls: u32, gap: Duration, accepts: impl Fn() -> bool) -> u32 {
        let mut asked = 0;
        for _ in 0..calls {
            time::sleep(gap).await;
            if throttle.should_admit(rand::random()) {
                asked += 1;
                throttle.learn(accepts());
            }
        }
        asked
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_probability_is_that_of_the_book() {
        assert_eq!(reject_probability(0, 0), 0.0);
        assert_eq!(reject_probability(100, 100), 0.0);
        assert_eq!(reject_probability(100, 50), 0.0, "half of the calls may fail");
        assert_eq!(reject_probability(99, 25), 0.49);
        assert_eq!(reject_probability(99, 0), 0.99);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_failures_say_nothing() {
        let throttle = Throttle::new();
        for call in 0..MIN_CALLS {
            assert!(throttle.should_admit(0.0), "call {call}");
            throttle.learn(false);
        }
        assert!(!throttle.should_admit(0.0), "but ten in a row do");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_nobody_has_answered_yet_is_no_outage() {
        let throttle = Throttle::new();
        assert!((0..1000).all(|_| throttle.should_admit(0.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_peer_is_asked_twice_a_second_whether_few_or_many_call() {
        for a_second in [10, 100, 1000] {
            let throttle = Throttle::new();
            calls(&throttle, 10 * a_second, 1000 * MS / a_second, || false).await;
            let asked = calls(&throttle, 10 * a_second, 1000 * MS / a_second, || false).await;
            assert!((15..=40).contains(&asked), "{asked} of {a_second} calls a second, in ten seconds");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_fails_half_of_its_calls_is_asked_on() {
        for gap in [MS, 4 * MS, 100 * MS] {
            let asked = calls(&Throttle::new(), 10_000, gap, rand::random).await;
            assert!(asked > 8_500, "{asked} of 10,000 calls, {gap:?} apart");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_again_is_asked_as_before_within_a_second() {
        let throttle = Throttle::new();
        calls(&throttle, 10_000, MS, || false).await;
        calls(&throttle, 1000, MS, || true).await;
        assert_eq!(calls(&throttle, 1000, MS, || true).await, 1000, "as if nothing had been");
    }
}
