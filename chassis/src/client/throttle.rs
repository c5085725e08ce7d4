//! Adaptive throttling: a peer that answers nothing is asked almost nothing.
//!
//! As in *Site Reliability Engineering*, chapter "Handling overload": each caller rejects by itself, with a probability
//! that grows with the calls that came to nothing lately. A dead peer costs no waiting, one that is drowning gets air, and
//! no switch has to be thrown back when it recovers, because the past is forgotten within seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the past counts. Since [`PATIENCE`] times as many calls go through as were accepted, a peer that has recovered
/// is asked three times as much after each window: from the first probes to a thousand calls a second in four of them.
const WINDOW: Duration = Duration::from_millis(500);
/// As long as one of so many calls is accepted, none is rejected here. The book's two is the very edge for a peer that
/// fails every other call: each stroke of bad luck rejects some, which makes the share look worse, which rejects more.
const PATIENCE: f64 = 3.0;
/// The window is forgotten in so many steps.
const SLOTS: usize = 5;
/// Fewer calls than this in the window say nothing about a peer.
const MIN_CALLS: u32 = 20;
/// However bad it looks, one call goes through each time this has passed: how else would one learn that it is better?
const PROBE_EVERY: Duration = Duration::from_millis(50);

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
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u32,
    accepts: u32,
}

/// The probability with which a call is rejected here, given the calls of the window and how many the peer accepted.
fn reject_probability(requests: u32, accepts: u32) -> f64 {
    let (requests, accepts) = (f64::from(requests), f64::from(accepts));
    ((requests - PATIENCE * accepts) / (requests + 1.0)).max(0.0)
}

impl Throttle {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let history = History { slots: [Slot::default(); SLOTS], began: now, current: 0, last_passed: now };
        Self { history: Mutex::new(history) }
    }

    /// Whether a call may go out; `dice` is a random number from 0 to 1.
    pub(super) fn lets_through(&self, dice: f64) -> bool {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (requests, accepts) = history.sums(now);
        let passes = requests < MIN_CALLS
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

    #[test]
    fn the_probability_is_that_of_the_book() {
        assert_eq!(reject_probability(0, 0), 0.0);
        assert_eq!(reject_probability(100, 100), 0.0);
        assert_eq!(reject_probability(99, 33), 0.0, "two of three calls may fail");
        assert_eq!(reject_probability(99, 17), 0.48);
        assert_eq!(reject_probability(99, 0), 0.99);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_failures_say_nothing() {
        let throttle = Throttle::new();
        for call in 0..MIN_CALLS {
            assert!(throttle.lets_through(0.0), "call {call}");
            throttle.learn(false);
        }
        assert!(!throttle.lets_through(0.0), "but twenty in a row do");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_nobody_has_answered_yet_is_no_outage() {
        let throttle = Throttle::new();
        assert!((0..1000).all(|_| throttle.lets_through(0.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_peer_is_asked_twenty_times_a_second_at_most() {
        let throttle = Throttle::new();
        let mut asked = 0;
        for _ in 0..1000 {
            time::sleep(Duration::from_millis(1)).await;
            if throttle.lets_through(0.01) {
                asked += 1;
                throttle.learn(false);
            }
        }
        assert!((15..=20 + MIN_CALLS).contains(&asked), "{asked} calls in a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_fails_half_of_its_calls_is_asked_on() {
        let (throttle, mut asked) = (Throttle::new(), 0);
        for _ in 0..10_000 {
            time::sleep(Duration::from_millis(4)).await;
            if throttle.lets_through(rand::random()) {
                asked += 1;
                throttle.learn(rand::random());
            }
        }
        assert!(asked > 9_900, "{asked} of 10,000 calls");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_again_is_asked_as_before_within_five_seconds() {
        let throttle = Throttle::new();
        let second = async |answers: bool| {
            let mut asked = 0;
            for call in 0..1000 {
                time::sleep(Duration::from_millis(1)).await;
                if throttle.lets_through(f64::from(call % 100) / 100.0) {
                    asked += 1;
                    throttle.learn(answers);
                }
            }
            asked
        };
        for _ in 0..10 {
            second(false).await;
        }
        for _ in 0..4 {
            second(true).await;
        }
        assert_eq!(second(true).await, 1000, "as if nothing had been");
    }
}
