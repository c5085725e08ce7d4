//! The keys of the issuer.
//!
//! One task fetches the JWKS and replaces the keys. Requests only read them. A token whose key is not known wakes the task, but
//! not more often than [`MIN_INTERVAL`], however many such tokens come.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::http::StatusCode;
use jsonwebtoken::Header;
use reqwest::redirect;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{self, Instant};
use url::Url;

use super::NotVerified;
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
/// Limits of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 << 10;
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
        let client = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build()
            .map_err(|error| format!("cannot set up the client for the keys of the issuer: {error}"))?;
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
        let fetcher = Fetcher { client, issuer: issuer.to_owned(), jwks_url: jwks_url.clone(), discovered: jwks_url };
        tokio::spawn(fetcher.run(sender, Arc::clone(&wake)));
        Ok(Self::Remote { state, wake })
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
        wake.notify_one(); // if a fetch is not due yet, it follows when it is
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

struct Fetcher {
    client: reqwest::Client,
    issuer: String,
    jwks_url: Option<Url>,
    /// The address of the keys, once it is known. A failed fetch forgets it, unless it is a setting.
    discovered: Option<Url>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Fetcher {
    /// Fetches the keys for ever, until all receivers are gone.
    async fn run(mut self, sender: watch::Sender<State>, wake: Arc<Notify>) {
        loop {
            sender.send_modify(|state| state.is_fetching = true);
            let began = Instant::now();
            let fetched = time::timeout(FETCH_TIMEOUT, self.fetch()).await;
            let fetched = fetched.unwrap_or_else(|_| Err("the answer took too long".to_owned()));
            let outcome = if fetched.is_ok() { "ok" } else { "failed" };
            FETCHES.get_or_create(&[("outcome", outcome)]).inc();
            if fetched.is_err() {
                self.discovered.clone_from(&self.jwks_url);
            }
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

    async fn fetch(&mut self) -> Result<KeySet, String> {
        let url = match &self.discovered {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        let keys = KeySet::from_jwks(&self.get(&url).await?)?;
        self.discovered = Some(url);
        Ok(keys)
    }

    /// Returns the address of the keys, from the issuer's document (OpenID Connect Discovery).
    async fn discover(&self) -> Result<Url, String> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| error.to_string())?;
        let document = serde_json::from_slice(&self.get(&url).await?);
        let Discovery { issuer, jwks_uri } = document.map_err(|_| "the answer is no discovery document")?;
        if issuer != self.issuer {
            return Err("the discovery document names another issuer than AUTH_ISSUER".to_owned());
        }
        let jwks_uri = Url::parse(&jwks_uri).map_err(|error| error.to_string())?;
        if url.scheme() == "https" && jwks_uri.scheme() != "https" {
            return Err("the discovery document names an address of keys without TLS".to_owned());
        }
        Ok(jwks_uri)
    }

    /// Returns the body of a response, which must be 200 and not too large.
    async fn get(&self, url: &Url) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() { "the answer took too long".to_owned() } else { chain(&error.without_url()) }
        };
        let mut response = self.client.get(url.clone()).send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Returns an error with its causes, because the text of reqwest's errors leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
