//! Retries with a budget: few, only within the caller's deadline, and never enough to keep an overloaded peer down.

use std::time::Duration;

use axum::http::header;
use tokio::time;
use tower::retry::budget::{Budget, TpsBudget};

use super::{PeerError, PeerResponse};
use crate::context::RequestContext;

/// Attempts of one call, the first included.
const MAX_ATTEMPTS: u32 = 3;
/// Upper bound of the first back-off. It doubles with each further attempt.
const BASE_BACKOFF: Duration = Duration::from_millis(25);
/// Retries allowed as a share of the calls within [`BUDGET_WINDOW`].
const BUDGET_SHARE: f32 = 0.2;
/// Retries allowed per second in addition, so that a caller that makes few calls may retry too.
const BUDGET_RESERVE: u32 = 10;
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// The retry budget of one caller for one peer.
pub(super) struct Retries {
    budget: TpsBudget,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Return its result.
    Final,
    /// Try again, after this time at the earliest.
    Retry(Duration),
}

impl Default for Retries {
    fn default() -> Self {
        Self { budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_RESERVE, BUDGET_SHARE) }
    }
}

impl Retries {
    /// Makes a call that is safe to repeat: up to [`MAX_ATTEMPTS`] times, while the budget and the deadline of `context`
    /// allow it.
    ///
    /// Back-offs have full jitter, so that callers that failed together do not retry together.
    pub(super) async fn run<F: Future<Output = Result<PeerResponse, PeerError>>>(
        &self,
        context: &RequestContext,
        mut attempt: impl FnMut() -> F,
    ) -> Result<PeerResponse, PeerError> {
        self.budget.deposit();
        let mut attempts = 1;
        loop {
            let outcome = attempt().await;
            let Verdict::Retry(at_least) = judge(&outcome) else { return outcome };
            let wait = backoff(attempts, at_least, rand::random());
            if attempts == MAX_ATTEMPTS || wait >= context.time_left() || !self.budget.withdraw() {
                return outcome;
            }
            time::sleep(wait).await;
            attempts += 1;
        }
    }
}

/// Returns the wait after attempt number `attempts`; `sample` is a uniform random number in 0..1.
///
/// The wait is never shorter than the peer asks for in `at_least`. It is up to half as long again, because the peer gives the
/// same time to every caller that it rejects.
fn backoff(attempts: u32, at_least: Duration, sample: f64) -> Duration {
    at_least.saturating_add((BASE_BACKOFF * 2_u32.pow(attempts - 1)).max(at_least / 2).mul_f64(sample))
}

fn judge(outcome: &Result<PeerResponse, PeerError>) -> Verdict {
    match outcome {
        Ok(response) if matches!(response.status.as_u16(), 502..=504) => Verdict::Retry(retry_after(response)),
        Err(PeerError::Unreachable { .. } | PeerError::TimedOut { .. }) => Verdict::Retry(Duration::ZERO),
        Ok(_) | Err(_) => Verdict::Final,
    }
}

/// Reads `Retry-After` in seconds. The services here never send its other form, a date.
fn retry_after(response: &PeerResponse) -> Duration {
    let seconds = response.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use axum::http::{HeaderMap, HeaderValue, StatusCode};
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    fn response(status: u16) -> Result<PeerResponse, PeerError> {
        let status = StatusCode::from_u16(status).unwrap();
        Ok(PeerResponse { status, headers: HeaderMap::new(), body: Bytes::new() })
    }

    fn overloaded(retry_after: &'static str) -> Result<PeerResponse, PeerError> {
        let mut response = response(503)?;
        response.headers.insert(header::RETRY_AFTER, HeaderValue::from_static(retry_after));
        Ok(response)
    }

    fn unreachable() -> Result<PeerResponse, PeerError> {
        Err(PeerError::Unreachable { peer: "peer", cause: "refused".to_owned() })
    }

    /// Makes a call with these outcomes, the last of which repeats, and returns the time of each attempt.
    async fn attempts(limit: Duration, outcomes: &[fn() -> Result<PeerResponse, PeerError>]) -> Vec<Duration> {
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
    async fn tries_three_times_after_a_transient_failure_and_once_otherwise() {
        let timed_out = || Err(PeerError::TimedOut { peer: "peer", limit: Duration::ZERO });
        for transient in [unreachable, timed_out, || response(502), || response(503), || response(504)] {
            assert_eq!(attempts(LONG, &[transient]).await.len(), 3);
        }
        let too_large = || Err(PeerError::TooLarge { peer: "peer", limit: 1 });
        for permanent in [|| response(200), || response(404), || response(409), || response(500), too_large] {
            assert_eq!(attempts(LONG, &[permanent]).await.len(), 1);
        }
        assert_eq!(attempts(LONG, &[unreachable, || response(200)]).await.len(), 2, "no attempt follows a success");
    }

    #[tokio::test(start_paused = true)]
    async fn waits_a_random_time_up_to_a_bound_that_doubles() {
        let mut longest = [Duration::ZERO; 2];
        for _ in 0..200 {
            let made = attempts(LONG, &[unreachable]).await;
            for (longest, times) in longest.iter_mut().zip(made.windows(2)) {
                *longest = (*longest).max(times[1] - times[0]);
            }
        }
        let [first, second] = longest.map(|wait| wait.as_millis());
        assert!((20..=26).contains(&first) && (40..=51).contains(&second), "{first} ms, {second} ms");
        assert_eq!(backoff(1, Duration::ZERO, 1.0), BASE_BACKOFF);
        assert_eq!(backoff(2, Duration::ZERO, 0.5), BASE_BACKOFF);
        assert_eq!(backoff(2, Duration::ZERO, 0.0), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_at_least_as_long_as_retry_after_says() {
        let made = attempts(LONG, &[|| overloaded("2"), || response(200)]).await;
        assert!(made[1] >= Duration::from_secs(2), "{made:?}");
        let second = Duration::from_secs(1);
        assert_eq!(
            [0.0, 0.5, 1.0].map(|sample| backoff(1, second, sample).as_millis()),
            [1000, 1250, 1500],
            "callers come back at different times"
        );
        let made = attempts(Duration::from_secs(1), &[|| overloaded("2")]).await;
        assert_eq!(made.len(), 1, "the deadline is nearer");
        let made = attempts(LONG, &[|| overloaded("18446744073709551615")]).await;
        assert_eq!(made.len(), 1, "the deadline is nearer than this, too");
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_retry_after_the_deadline() {
        assert_eq!(attempts(Duration::ZERO, &[unreachable]).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_a_fifth_of_the_calls_and_ten_more_per_second() {
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
