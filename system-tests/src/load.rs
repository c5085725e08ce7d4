//! Load on a service, and its results.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::http::{self, Request, Response};

/// A client that keeps its connections, as real clients do, and never repeats a request. (If a connection turns out to be
/// closed before the request has left, hyper opens another one.)
#[derive(Clone)]
pub struct Client(reqwest::Client);

/// The result of one request.
#[derive(Debug)]
pub struct Outcome {
    /// When the request was due.
    pub due: Instant,
    /// The time from then to the end of the response.
    pub took: Duration,
    /// The status of the response, or the reason why there is none.
    pub status: Result<u16, String>,
}

/// The results of many requests.
pub struct Figures {
    /// In the order in which the requests were due.
    pub outcomes: Vec<Outcome>,
    length: Duration,
}

impl Default for Client {
    fn default() -> Self {
        let builder = http::builder().retry(reqwest::retry::never());
        Self(builder.build().expect("a client without TLS can be built"))
    }
}

impl Client {
    /// Returns a request to this URL.
    pub fn request(&self, method: &str, url: String) -> Request {
        Request::new(&self.0, method, url)
    }
}

/// Sends `rate` requests per second (open loop). Each is sent when it is due, even if earlier ones are unanswered, and its
/// time counts from then: a stalled server cannot hide its delay by keeping the clients waiting.
pub async fn constant_rate<F>(rate: u32, length: Duration, request: impl Fn() -> F) -> Figures
where
    F: Future<Output = Result<Response, String>> + Send + 'static,
{
    let mut due = time::interval(Duration::from_secs(1) / rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = Vec::new();
    for _ in 0..(length.as_secs_f64() * f64::from(rate)) as u32 {
        let (due, response) = (due.tick().await, request());
        running.push(tokio::spawn(async move { Outcome::new(due, response.await) }));
    }
    let outcomes = join_all(running).await.into_iter().map(|outcome| outcome.expect("a request does not panic"));
    Figures { outcomes: outcomes.collect(), length }
}

/// Runs `clients` clients (closed loop). Each sends its next request as soon as the last one is answered.
pub async fn closed_loop<F>(clients: u32, length: Duration, request: impl Fn() -> F) -> Figures
where
    F: Future<Output = Result<Response, String>>,
{
    let end = Instant::now() + length;
    let client = async || {
        let mut outcomes = Vec::new();
        while Instant::now() < end {
            let began = Instant::now();
            outcomes.push(Outcome::new(began, request().await));
        }
        outcomes
    };
    let outcomes = join_all((0..clients).map(|_| client())).await;
    Figures { outcomes: outcomes.into_iter().flatten().collect(), length }
}

impl Outcome {
    fn new(due: Instant, response: Result<Response, String>) -> Self {
        Self { due, took: due.elapsed(), status: response.map(|response| response.status) }
    }
}

impl Figures {
    /// Returns the number of responses with this status.
    pub fn count(&self, status: u16) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.status == Ok(status)).count()
    }

    /// Returns the responses with this status per second.
    pub fn rate(&self, status: u16) -> f64 {
        self.count(status) as f64 / self.length.as_secs_f64()
    }

    /// Returns whether every response has this status.
    pub fn all(&self, status: u16) -> bool {
        self.count(status) == self.total()
    }

    /// Returns the number of requests.
    pub fn total(&self) -> usize {
        self.outcomes.len()
    }

    /// Returns the 99th percentile of the times of the responses with this status.
    ///
    /// # Panics
    /// If no response has it.
    pub fn p99(&self, status: u16) -> Duration {
        let answered = self.outcomes.iter().filter(|outcome| outcome.status == Ok(status));
        let mut times: Vec<_> = answered.map(|outcome| outcome.took).collect();
        times.sort_unstable();
        assert!(!times.is_empty(), "no response is {status}: {self}");
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

/// A summary: the list of all outcomes would be too long.
impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.outcomes.iter().map(|outcome| outcome.took).max();
        write!(f, "{self}, the longest {longest:?}")
    }
}
