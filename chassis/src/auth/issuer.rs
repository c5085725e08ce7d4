//! The keys of the issuer.
//!
//! One task fetches the JWKS and replaces the keys. Requests only read them. A token whose key is not known wakes the task, but
//! not more often than [`MIN_INTERVAL`], however many such tokens come.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jsonwebtoken::Header;
use tokio::sync::{Notify, watch};
use tokio::time::{self, Instant};
use url::Url;

use super::NotVerified;
use super::fetch::Fetcher;
use super::keys::{Key, KeySet};
use super::system_clock;
use super::token::Rejection;
use crate::telemetry::metrics::{self, Counter, Family, Gauge, Labels};

/// The time between two fetches.
const REFRESH: Duration = Duration::from_secs(600);
/// The least time between a fetch and one that an unknown key causes. After a failure it doubles, up to [`MAX_BACKOFF`].
const MIN_INTERVAL: Duration = Duration::from_secs(30);
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// Until the first keys, the first of the times between two fetches; it doubles up to [`MIN_INTERVAL`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long keys are used after the last successful fetch.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Maximum time of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for a fetch that may bring its key.
const MAX_WAIT: Duration = Duration::from_secs(2);

static FETCHES: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    metrics::register("auth_key_fetches", "Fetches of the keys of the issuer, by outcome", Family::default())
});
static FETCHED_AT: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "Time of the last successful fetch of the keys of the issuer, in seconds since 1970";
    metrics::register("auth_keys_fetched_timestamp_seconds", help, Gauge::default())
});

/// No key could be fetched, so it is unknown whether the token is valid.
#[derive(Debug)]
pub(super) struct KeysUnavailable;

/// The keys of the issuer: its own, or those that were fetched.
pub(super) enum Issuer {
    /// This service is the issuer.
    Local(Arc<KeySet>),
    /// The issuer is another service.
    Remote { state: watch::Receiver<State>, wake: Arc<Notify> },
}

/// What the task that fetches the keys has reached.
#[derive(Clone)]
pub(super) struct State {
    keys: Arc<KeySet>,
    /// Rises with each set of keys that differs from the one before.
    generation: u64,
    /// When the last successful fetch began.
    fetched_at: Option<Instant>,
    /// Fetches that have ended.
    attempts: u64,
    /// Fetches that have failed since the last success.
    failures: u32,
    is_fetching: bool,
    /// From then on an unknown key causes a fetch.
    wake_from: Instant,
}

impl Issuer {
    /// Returns the issuer with these keys.
    pub(super) fn with_keys(keys: KeySet) -> Self {
        Self::Local(Arc::new(keys))
    }

    /// Starts the task that fetches the keys of the issuer at `jwks_url`, or at the address that its discovery document names.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub(super) fn fetching(issuer: &str, jwks_url: Option<Url>) -> Result<Self, String> {
        let fetcher = Arc::new(Fetcher::new(issuer, jwks_url)?);
        FETCHED_AT.set(0); // so that the metric exists before the first success
        Ok(Self::start(move || Arc::clone(&fetcher).fetch()))
    }

    /// Starts the task with this way to fetch the keys.
    fn start<F>(fetch: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<KeySet, String>> + Send + 'static,
    {
        let start = State {
            keys: Arc::default(),
            generation: 0,
            fetched_at: None,
            attempts: 0,
            failures: 0,
            is_fetching: true,
            wake_from: Instant::now(),
        };
        let ((sender, state), wake) = (watch::channel(start), Arc::new(Notify::new()));
        tokio::spawn(run(fetch, sender, Arc::clone(&wake)));
        Self::Remote { state, wake }
    }

    /// Returns the generation of the keys. `None` while there are none that may be used.
    pub(super) fn generation(&self) -> Option<u64> {
        match self {
            Self::Local(_) => Some(0),
            Self::Remote { state, .. } => {
                Some(&*state.borrow()).filter(|state| state.is_usable()).map(|state| state.generation)
            }
        }
    }

    /// Returns the key of a token. If it is unknown, this waits up to `limit` for a fetch, if one is running or due.
    ///
    /// # Errors
    /// If the issuer has no such key, or its keys cannot be fetched.
    pub(super) async fn find(&self, header: &Header, limit: Duration) -> Result<Key, NotVerified> {
        let (state, wake) = match self {
            Self::Local(keys) => return Ok(keys.find(header)?.ok_or(Rejection::UnknownKey)?.clone()),
            Self::Remote { state, wake } => (state, wake),
        };
        let seen = state.borrow().clone();
        if let Some(key) = seen.find(header)? {
            return Ok(key);
        }
        if !seen.is_fetching {
            wake.notify_one(); // if a fetch is not due yet, it follows when it is
        }
        if seen.is_fetching || seen.wake_from <= Instant::now() {
            let mut state = state.clone();
            let fetched = state.wait_for(|now| now.attempts > seen.attempts);
            if let Ok(Ok(now)) = time::timeout(limit.min(MAX_WAIT), fetched).await {
                return now.find(header)?.ok_or_else(|| now.unknown());
            }
            return Err(KeysUnavailable.into());
        }
        Err(seen.unknown())
    }
}

impl State {
    fn is_usable(&self) -> bool {
        self.fetched_at.is_some_and(|fetched_at| fetched_at.elapsed() < MAX_AGE)
    }

    fn find(&self, header: &Header) -> Result<Option<Key>, Rejection> {
        if self.is_usable() { Ok(self.keys.find(header)?.cloned()) } else { Ok(None) }
    }

    /// Returns what an unknown key means: the token is wrong only if the keys are up to date.
    fn unknown(&self) -> NotVerified {
        if self.is_usable() && self.failures == 0 { Rejection::UnknownKey.into() } else { KeysUnavailable.into() }
    }

    /// Records the end of a fetch. Returns the time until the next one.
    fn record(&mut self, began: Instant, fetched: Result<KeySet, String>) -> Duration {
        self.attempts += 1;
        self.is_fetching = false;
        let (next, wake_after) = match fetched {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "fetched the keys of the issuer");
                FETCHED_AT.set(i64::try_from(system_clock()).unwrap_or(i64::MAX));
                if !self.keys.is_same(&keys) {
                    (self.keys, self.generation) = (Arc::new(keys), self.generation + 1);
                }
                (self.fetched_at, self.failures) = (Some(began), 0);
                (REFRESH, MIN_INTERVAL)
            }
            Err(error) => {
                let (first, most) =
                    if self.fetched_at.is_some() { (MIN_INTERVAL, MAX_BACKOFF) } else { (FIRST_RETRY, MIN_INTERVAL) };
                let delay = first.saturating_mul(1 << self.failures.min(16)).min(most);
                self.failures += 1;
                let age_seconds = self.fetched_at.map(|fetched_at| fetched_at.elapsed().as_secs());
                let retry_in_seconds = delay.as_secs();
                tracing::warn!(%error, age_seconds, retry_in_seconds, "cannot fetch the keys of the issuer; the known ones stay in use");
                (delay, delay)
            }
        };
        self.wake_from = Instant::now() + wake_after;
        next
    }
}

/// Fetches the keys for ever, until all receivers are gone.
async fn run<F>(mut fetch: impl FnMut() -> F + Send, sender: watch::Sender<State>, wake: Arc<Notify>)
where
    F: Future<Output = Result<KeySet, String>> + Send,
{
    loop {
        sender.send_modify(|state| state.is_fetching = true);
        let began = Instant::now();
        let fetched = time::timeout(FETCH_TIMEOUT, fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| Err("the answer took too long".to_owned()));
        FETCHES.get_or_create(&[("outcome", if fetched.is_ok() { "ok" } else { "failed" })]).inc();
        let mut next = REFRESH;
        sender.send_modify(|state| next = state.record(began, fetched));
        let (wake_from, next) = (sender.borrow().wake_from, Instant::now() + next);
        let woken = async {
            time::sleep_until(wake_from).await;
            wake.notified().await;
        };
        tokio::select! {
            () = time::sleep_until(next) => {}
            () = woken => {}
            () = sender.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future;
    use std::sync::Mutex;

    use jsonwebtoken::Algorithm;
    use serde_json::{Value, json};

    use super::*;

    fn jwks(ids: &[&str]) -> Value {
        let key = |id: &&str| json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        json!({"keys": ids.iter().map(key).collect::<Vec<_>>()})
    }

    fn keys(ids: &[&str]) -> Result<KeySet, String> {
        super::super::crypto::install();
        KeySet::from_jwks(jwks(ids).to_string().as_bytes())
    }

    fn down() -> Result<KeySet, String> {
        Err("down".to_owned())
    }

    /// The answers of an issuer, one for each fetch. The last one is repeated. Keeps the times of the fetches, in seconds.
    #[derive(Clone)]
    struct Script {
        answers: Arc<Mutex<VecDeque<Result<KeySet, String>>>>,
        times: Arc<Mutex<Vec<u64>>>,
        start: Instant,
    }

    impl Script {
        fn new(answers: impl IntoIterator<Item = Result<KeySet, String>>) -> Self {
            let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
            Self { answers, times: Arc::default(), start: Instant::now() }
        }

        fn issuer(&self) -> Issuer {
            let this = self.clone();
            Issuer::start(move || {
                this.times.lock().unwrap().push(this.start.elapsed().as_secs());
                let mut answers = this.answers.lock().unwrap();
                let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
                future::ready(answer.expect("an answer"))
            })
        }

        fn then(&self, answer: Result<KeySet, String>) {
            *self.answers.lock().unwrap() = [answer].into();
        }

        fn times(&self) -> Vec<u64> {
            self.times.lock().unwrap().clone()
        }
    }

    /// Looks a key up. `Ok`: it was found. `Err(true)`: the token is wrong. `Err(false)`: keys are unavailable.
    async fn find(issuer: &Issuer, id: &str) -> Result<(), bool> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(id.to_owned());
        let found = issuer.find(&header, Duration::from_secs(60)).await;
        found.map(drop).map_err(|error| matches!(error, NotVerified::Invalid(Rejection::UnknownKey)))
    }

    #[tokio::test(start_paused = true)]
    async fn retries_after_1_2_4_up_to_30_seconds_until_the_first_keys() {
        let script = Script::new([down()]);
        let issuer = script.issuer();
        time::sleep(Duration::from_millis(92_500)).await;
        assert_eq!(script.times(), [0, 1, 3, 7, 15, 31, 61, 91]);
        assert_eq!(find(&issuer, "a").await, Err(false));
        script.then(keys(&["a"]));
        time::sleep(Duration::from_secs(30)).await;
        assert_eq!(find(&issuer, "a").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_every_10_minutes_and_replaces_the_whole_set() {
        let script = Script::new([keys(&["a", "b"]), keys(&["b", "c"])]);
        let issuer = script.issuer();
        assert_eq!((find(&issuer, "a").await, find(&issuer, "b").await), (Ok(()), Ok(())));
        let before = issuer.generation();
        time::sleep(Duration::from_secs(601)).await;
        assert_eq!((find(&issuer, "b").await, find(&issuer, "c").await), (Ok(()), Ok(())));
        assert_eq!(script.times(), [0, 600]);
        assert_ne!(issuer.generation(), before, "remembered tokens of a key that is gone must not count");
        assert_eq!(find(&issuer, "a").await, Err(true), "it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_the_generation_while_the_keys_stay_the_same() {
        let issuer = Script::new([keys(&["a"])]).issuer();
        assert_eq!(find(&issuer, "a").await, Ok(()));
        let before = issuer.generation();
        time::sleep(Duration::from_secs(1300)).await;
        assert_eq!(issuer.generation(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn fetches_at_most_twice_for_200_unknown_keys() {
        let script = Script::new([keys(&["a"])]);
        let issuer = script.issuer();
        assert_eq!(find(&issuer, "a").await, Ok(()));
        time::sleep(Duration::from_secs(40)).await;
        let unknown = (0..200).map(|id| {
            let issuer = &issuer;
            async move { find(issuer, &format!("unknown {id}")).await }
        });
        let answers = futures_util::future::join_all(unknown).await;
        assert!(answers.iter().all(|answer| *answer == Err(true)), "{answers:?}");
        assert_eq!(script.times(), [0, 40]);
        time::sleep(Duration::from_secs(29)).await;
        assert_eq!(find(&issuer, "x").await, Err(true), "without a fetch");
        assert_eq!(script.times(), [0, 40]);
        time::sleep(Duration::from_secs(2)).await;
        assert_eq!(script.times(), [0, 40, 70], "those that came in between cause one fetch when it is due");
    }

    #[tokio::test(start_paused = true)]
    async fn finds_a_new_key_with_the_fetch_that_its_first_token_causes() {
        let script = Script::new([keys(&["a"]), keys(&["b", "a"])]);
        let issuer = script.issuer();
        assert_eq!(find(&issuer, "a").await, Ok(()));
        time::sleep(Duration::from_secs(31)).await;
        assert_eq!(find(&issuer, "b").await, Ok(()));
        assert_eq!(script.times(), [0, 31]);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_longer_after_each_failure_and_keeps_the_known_keys() {
        let script = Script::new([keys(&["a"]), down()]);
        let issuer = script.issuer();
        assert_eq!(find(&issuer, "a").await, Ok(()));
        for _ in 0..3000 {
            let _ = find(&issuer, "x").await; // an attacker who never stops
            time::sleep(Duration::from_secs(1)).await;
        }
        let times = script.times();
        let waits: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(waits[..6], [30, 30, 60, 120, 240, 300], "{times:?}");
        assert!(waits[5..].iter().all(|wait| *wait == 300), "{waits:?}");
        assert_eq!((find(&issuer, "a").await, find(&issuer, "x").await), (Ok(()), Err(false)));
        script.then(keys(&["a", "x"]));
        time::sleep(Duration::from_secs(301)).await;
        assert_eq!(find(&issuer, "x").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn uses_known_keys_for_a_day_without_the_issuer() {
        let script = Script::new([keys(&["a"]), down()]);
        let issuer = script.issuer();
        assert_eq!(find(&issuer, "a").await, Ok(()));
        time::sleep(MAX_AGE - Duration::from_secs(10)).await;
        assert_eq!(find(&issuer, "a").await, Ok(()));
        time::sleep(Duration::from_secs(20)).await;
        assert_eq!((find(&issuer, "a").await, issuer.generation()), (Err(false), None));
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_wait_for_a_slow_issuer_longer_than_2_seconds() {
        let issuer = Issuer::start(future::pending::<Result<KeySet, String>>);
        let began = Instant::now();
        assert_eq!(find(&issuer, "a").await, Err(false));
        assert_eq!(began.elapsed().as_secs(), 2);
    }
}
