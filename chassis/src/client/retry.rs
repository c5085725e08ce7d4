//! Trying again: only as often as helps, only as long as somebody waits, and never so much that retries are what keeps a
//! struggling peer down.

use std::time::Duration;

use axum::http::header;
use tokio::time;
use tower::retry::budget::{Budget, TpsBudget};

use super::{PeerError, PeerResponse};
use crate::context::RequestContext;

/// Tries of one call, the first included.
const MAX_TRIES: u32 = 3;
/// The first wait is up to this long, each further one up to twice as long as the last.
const BASE_WAIT: Duration = Duration::from_millis(25);
/// Retries as a share of calls, counted over [`BUDGET_WINDOW`] …
const BUDGET_SHARE: f32 = 0.2;
/// … and so many a second on top, so that a caller of few calls may retry as well.
const BUDGET_RESERVE: u32 = 10;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// The right of one caller to call a peer again.
pub(super) struct Retries {
    budget: TpsBudget,
}

/// What is to be done about what came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It stands.
    Final,
    /// Another try may help, but not before this long.
    Again(Duration),
}

impl Default for Retries {
    fn default() -> Self {
        Self { budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_RESERVE, BUDGET_SHARE) }
    }
}

impl Retries {
    /// Makes a call that is safe to repeat, up to three times while the budget and the time of `context` allow it. The
    /// waits between are random up to a bound that doubles ("full jitter"), so that callers who failed together do not
    /// come back together.
    pub(super) async fn run<F: Future<Output = Result<PeerResponse, PeerError>>>(
        &self,
        context: &RequestContext,
        mut attempt: impl FnMut() -> F,
    ) -> Result<PeerResponse, PeerError> {
        self.budget.deposit();
        let mut tries = 1;
        loop {
            let outcome = attempt().await;
            let Verdict::Again(at_least) = judge(&outcome) else { return outcome };
            let wait = wait_after(tries, at_least, rand::random());
            if tries == MAX_TRIES || wait >= context.time_left() || !self.budget.withdraw() {
                return outcome;
            }
            time::sleep(wait).await;
            tries += 1;
        }
    }
}

/// How long to wait after the `tries`th try, given a random number from 0 to 1: never less than the peer asks for, and up to
/// half as long again, since it says the same to all whom it refuses.
fn wait_after(tries: u32, at_least: Duration, dice: f64) -> Duration {
    at_least.saturating_add((BASE_WAIT * 2_u32.pow(tries - 1)).max(at_least / 2).mul_f64(dice))
}

fn judge(outcome: &Result<PeerResponse, PeerError>) -> Verdict {
    match outcome {
        Ok(answer) if matches!(answer.status.as_u16(), 502..=504) => Verdict::Again(retry_after(answer)),
        Err(PeerError::Unreachable { .. } | PeerError::TimedOut { .. }) => Verdict::Again(Duration::ZERO),
        Ok(_) | Err(_) => Verdict::Final,
    }
}

/// What the peer asks for: `Retry-After` in seconds. (Its other form, a date, no peer of ours sends.)
fn retry_after(answer: &PeerResponse) -> Duration {
    let seconds = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use axum::http::{HeaderMap, HeaderValue, StatusCode};
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    fn answer(status: u16) -> Result<PeerResponse, PeerError> {
        let status = StatusCode::from_u16(status).unwrap();
        Ok(PeerResponse { status, headers: HeaderMap::new(), body: Bytes::new() })
    }

    fn overloaded(retry_after: &'static str) -> Result<PeerResponse, PeerError> {
        let mut answer = answer(503)?;
        answer.headers.insert(header::RETRY_AFTER, HeaderValue::from_static(retry_after));
        Ok(answer)
    }

    fn unreachable() -> Result<PeerResponse, PeerError> {
        Err(PeerError::Unreachable { peer: "peer", cause: "refused".to_owned() })
    }

    /// The tries of a call whose outcomes are these, each with the time at which it was made; the last one repeats.
    async fn tries(limit: Duration, outcomes: &[fn() -> Result<PeerResponse, PeerError>]) -> Vec<Duration> {
        let (began, made) = (Instant::now(), RefCell::new(Vec::new()));
        let context = RequestContext::background(limit);
        let attempt = || async {
            let n = made.borrow().len();
            made.borrow_mut().push(began.elapsed());
            outcomes[n.min(outcomes.len() - 1)]()
        };
        let _ = Retries::default().run(&context, attempt).await;
        made.into_inner()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_three_times_and_anything_else_once() {
        let timed_out = || Err(PeerError::TimedOut { peer: "peer", limit: Duration::ZERO });
        for passing in [unreachable, timed_out, || answer(502), || answer(503), || answer(504)] {
            assert_eq!(tries(LONG, &[passing]).await.len(), 3);
        }
        let too_large = || Err(PeerError::TooLarge { peer: "peer", limit: 1 });
        for standing in [|| answer(200), || answer(404), || answer(409), || answer(500), too_large] {
            assert_eq!(tries(LONG, &[standing]).await.len(), 1);
        }
        assert_eq!(tries(LONG, &[unreachable, || answer(200)]).await.len(), 2, "until it is good");
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_are_random_up_to_a_bound_that_doubles() {
        let mut longest = [Duration::ZERO; 2];
        for _ in 0..200 {
            let made = tries(LONG, &[unreachable]).await;
            for (longest, times) in longest.iter_mut().zip(made.windows(2)) {
                *longest = (*longest).max(times[1] - times[0]);
            }
        }
        let [first, second] = longest.map(|wait| wait.as_millis());
        assert!((20..=26).contains(&first) && (40..=51).contains(&second), "{first} ms, {second} ms");
        assert_eq!(wait_after(1, Duration::ZERO, 1.0), BASE_WAIT);
        assert_eq!(wait_after(2, Duration::ZERO, 0.5), BASE_WAIT);
        assert_eq!(wait_after(2, Duration::ZERO, 0.0), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_when_is_not_asked_before() {
        let made = tries(LONG, &[|| overloaded("2"), || answer(200)]).await;
        assert!(made[1] >= Duration::from_secs(2), "{made:?}");
        let second = Duration::from_secs(1);
        assert_eq!(
            [0.0, 0.5, 1.0].map(|dice| wait_after(1, second, dice).as_millis()),
            [1000, 1250, 1500],
            "and not all at once"
        );
        let made = tries(Duration::from_secs(1), &[|| overloaded("2")]).await;
        assert_eq!(made.len(), 1, "there is not so much time");
        let made = tries(LONG, &[|| overloaded("18446744073709551615")]).await;
        assert_eq!(made.len(), 1, "nor this much");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_tried_for_a_request_whose_time_is_over() {
        assert_eq!(tries(Duration::ZERO, &[unreachable]).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_fifth_of_the_calls_and_ten_a_second() {
        let (retries, count) = (Retries::default(), RefCell::new(0));
        for _ in 0..1000 {
            let attempt = || async {
                *count.borrow_mut() += 1;
                unreachable()
            };
            let _ = retries.run(&RequestContext::background(LONG), attempt).await;
        }
        let (extra, reserve) = (count.into_inner() - 1000, 10 * BUDGET_WINDOW.as_secs());
        assert!((200..=200 + 2 * reserve).contains(&extra), "{extra} retries of 1000 calls");
    }
}
