//! Load, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::http::{self, Received, Sending};

/// A client that keeps its connections for the next request, as real ones do, and never sends one again. (Of one that finds
/// its connection closed before it has left, hyper opens another.)
#[derive(Clone)]
pub struct Caller(reqwest::Client);

/// What came of one request.
#[derive(Debug)]
pub struct Outcome {
    /// When it was to be sent.
    pub due: Instant,
    /// From then to the end of its answer.
    pub took: Duration,
    /// The status of the answer, or why there is none.
    pub status: Result<u16, String>,
}

/// What came of many.
pub struct Figures {
    /// In the order in which they were due.
    pub outcomes: Vec<Outcome>,
    length: Duration,
}

impl Default for Caller {
    fn default() -> Self {
        let builder = http::builder().retry(reqwest::retry::never());
        Self(builder.build().expect("a client without TLS needs nothing"))
    }
}

impl Caller {
    /// A request to this URL.
    pub fn request(&self, method: &str, url: String) -> Sending {
        Sending::new(&self.0, method, url)
    }
}

/// Sends `rate` requests a second for so long. Each is sent when it is due, whether or not those before it are answered,
/// and its time counts from then: a server that stands still cannot hide it by keeping the clients waiting.
pub async fn steady<F>(rate: u32, length: Duration, request: impl Fn() -> F) -> Figures
where
    F: Future<Output = Result<Received, String>> + Send + 'static,
{
    let mut due = time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = Vec::new();
    for _ in 0..(length.as_secs_f64() * f64::from(rate)) as u32 {
        let (due, answer) = (due.tick().await, request());
        running.push(tokio::spawn(async move { Outcome::of(due, answer.await) }));
    }
    let outcomes = join_all(running).await.into_iter().map(|outcome| outcome.expect("a request does not panic"));
    Figures { outcomes: outcomes.collect(), length }
}

/// Has so many clients send for so long, each its next request as soon as the last is answered.
pub async fn closed<F>(clients: u32, length: Duration, request: impl Fn() -> F) -> Figures
where
    F: Future<Output = Result<Received, String>>,
{
    let end = Instant::now() + length;
    let client = async || {
        let mut outcomes = Vec::new();
        while Instant::now() < end {
            let began = Instant::now();
            outcomes.push(Outcome::of(began, request().await));
        }
        outcomes
    };
    let outcomes = join_all((0..clients).map(|_| client())).await;
    Figures { outcomes: outcomes.into_iter().flatten().collect(), length }
}

impl Outcome {
    fn of(due: Instant, answer: Result<Received, String>) -> Self {
        Self { due, took: due.elapsed(), status: answer.map(|received| received.status) }
    }
}

impl Figures {
    /// How many were answered with this status.
    pub fn count(&self, status: u16) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.status == Ok(status)).count()
    }

    /// How many a second were.
    pub fn rate(&self, status: u16) -> f64 {
        self.count(status) as f64 / self.length.as_secs_f64()
    }

    /// Whether all were.
    pub fn all(&self, status: u16) -> bool {
        self.count(status) == self.total()
    }

    /// How many requests there were.
    pub fn total(&self) -> usize {
        self.outcomes.len()
    }

    /// The time within which 99 of 100 of those were answered.
    ///
    /// # Panics
    /// If none was.
    pub fn p99(&self, status: u16) -> Duration {
        let answered = self.outcomes.iter().filter(|outcome| outcome.status == Ok(status));
        let mut times: Vec<_> = answered.map(|outcome| outcome.took).collect();
        times.sort_unstable();
        assert!(!times.is_empty(), "no answer is {status}: {self}");
        times[(times.len() - 1) * 99 / 100]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::<String, usize>::new();
        for outcome in &self.outcomes {
            let status = outcome.status.as_ref().map_or_else(Clone::clone, ToString::to_string);
            *counts.entry(status).or_default() += 1;
        }
        write!(f, "{counts:?}")
    }
}

/// Shorter than all of them.
impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.outcomes.iter().map(|outcome| outcome.took).max();
        write!(f, "{self}, the longest {longest:?}")
    }
}
