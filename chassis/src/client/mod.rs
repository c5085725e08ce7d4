//! Calling another service.
//!
//! [`Peer`] is one such service. A call carries the ids of the request it is made for, is given no more time than that
//! request has left, and takes no more of an answer than the limit. It comes back as an [`PeerResponse`] to be matched on by
//! status, or as a [`PeerError`]: then nothing is known about what the peer did.
//!
//! What fails and may pass is tried again ([`retry`]); a peer that fails most of the time is left alone ([`throttle`]);
//! one that hangs holds only so many of our calls. All calls here are safe to repeat, also each `post`. What many ask at the
//! same time can go out in one call ([`batched`]).

mod batched;
mod retry;
mod throttle;

use std::error::Error;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use tokio::sync::Semaphore;
use tokio::time;
use tracing::Instrument;
use url::Url;

pub use self::batched::{BatchEndpoint, BatchedCalls, Outcome};
use self::retry::Retries;
use self::throttle::Throttle;
use crate::config::PeerSettings;
use crate::context::RequestContext;
use crate::problem::{self, PEER_UNAVAILABLE, Problem};
use crate::telemetry::metrics::{self, Counter, Durations, Family, Labels};
use crate::telemetry::traces;

/// How long a peer may be silent before `/readyz` calls it down.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that had less than this for its answer is not blamed for giving none.
const FAIR_TIME: Duration = Duration::from_millis(250);
/// How long an unused connection is kept: less than the 15 s after which the other side closes it, so that no request
/// is sent into a connection that is just going.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Each try is a call. `ok` is an answer below 400, `refused` one below 500, `failed` any other; else there was none.
static CALLS: LazyLock<Family<Labels<2>, Counter>> =
    LazyLock::new(|| metrics::register("peer_calls", "Calls to other services", Family::default()));
static DURATIONS: LazyLock<Durations<Labels<1>>> = LazyLock::new(|| {
    let help = "Time until another service had answered, or was given up";
    metrics::register("peer_call_duration_seconds", help, metrics::durations())
});
static RETRIES: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("peer_retries", "Calls that were tried again", Family::default()));
static THROTTLED: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    let help = "Calls that were not made since the other service answers next to nothing";
    metrics::register("peer_throttled", help, Family::default())
});

/// A service that this one calls.
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    name: &'static str,
    base: Url,
    http: reqwest::Client,
    settings: PeerSettings,
    places: Semaphore,
    throttle: Throttle,
    retries: Option<Retries>,
}

/// What is asked of a peer.
struct Call<'a> {
    method: Method,
    path: &'a str,
    json: Option<Bytes>,
}

/// What a peer answered: any status.
#[derive(Debug)]
pub struct PeerResponse {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body, not larger than the limit.
    pub body: Bytes,
}

/// No answer that means anything. Whether the peer acted on the call is unknown, unless it was not asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// Not reached, or the connection broke.
    #[error("{peer} did not answer: {cause}")]
    Unreachable {
        /// Who was called.
        peer: &'static str,
        /// The whole chain of causes.
        cause: String,
    },
    /// It was not asked, since it answers next to nothing lately, or holds too many of our calls already.
    #[error("{peer} was not asked: {reason}")]
    NotSent {
        /// Who would have been called.
        peer: &'static str,
        /// Why it was not.
        reason: &'static str,
    },
    /// Its answer did not come in time.
    #[error("{peer} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Who was called.
        peer: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It answered more than is taken.
    #[error("{peer} answered more than {limit} bytes")]
    TooLarge {
        /// Who was called.
        peer: &'static str,
        /// How much is taken.
        limit: usize,
    },
    /// It answered something that the contract does not have.
    #[error("{peer} answered {status}: {detail}")]
    Unexpected {
        /// Who was called.
        peer: &'static str,
        /// The status of its answer.
        status: StatusCode,
        /// What is wrong with it.
        detail: String,
    },
}

impl PeerError {
    /// Its kind, as metrics and traces name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::NotSent { .. } => "not_asked",
            Self::TimedOut { .. } => "timed_out",
            Self::TooLarge { .. } => "too_large",
            Self::Unexpected { .. } => "unexpected",
        }
    }
}

impl Peer {
    /// The service of this name at this address. Each call is tried once: for those whose callers try again themselves.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(name: &'static str, base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        Self::with(name, base, settings, None)
    }

    /// The same, but a call that fails is tried again. In a chain of services only one may do so, or the tries multiply.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn retrying(name: &'static str, base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        Self::with(name, base, settings, Some(Retries::default()))
    }

    fn with(
        name: &'static str,
        base: Url,
        settings: &PeerSettings,
        retries: Option<Retries>,
    ) -> Result<Self, PeerError> {
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .no_proxy() // the environment does not choose where internal calls go
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never()) // its own retries know nothing of deadlines and budgets
            .referer(false)
            .build();
        let http = http.map_err(|error| PeerError::Unreachable { peer: name, cause: chain(&error) })?;
        let (places, throttle) = (Semaphore::new(settings.max_in_flight as usize), Throttle::new());
        Ok(Self(Arc::new(Inner { name, base, http, settings: settings.clone(), places, throttle, retries })))
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Where it is.
    pub fn base(&self) -> &Url {
        &self.0.base
    }

    /// `GET path`. A path starts with `/` and may have a query.
    pub async fn get(&self, path: &str, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::GET, path, json: None }, context).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::PUT, path, json: Some(self.json(body)?) }, context).await
    }

    /// `POST path` with a JSON body, for what is safe to repeat all the same.
    pub async fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::POST, path, json: Some(self.json(body)?) }, context).await
    }

    fn json(&self, body: &impl Serialize) -> Result<Bytes, PeerError> {
        let json = serde_json::to_vec(body);
        json.map(Bytes::from).map_err(|error| PeerError::Unreachable { peer: self.0.name, cause: error.to_string() })
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::DELETE, path, json: None }, context).await
    }

    /// Whether it answers at all, whatever it answers. Nothing stands in the way of this question.
    pub async fn is_up(&self) -> bool {
        let probe = Call { method: Method::GET, path: "/livez", json: None };
        self.attempt(&probe, &RequestContext::background(PROBE_TIMEOUT)).await.is_ok()
    }

    /// One call within the time that `context` has left.
    async fn call(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let _place = self.0.places.try_acquire().map_err(|_| self.not_sent("too many calls wait for its answers"))?;
        let mut tries = 0;
        let attempt = || {
            if tries > 0 {
                RETRIES.get_or_create(&[("peer", self.0.name)]).inc();
            }
            tries += 1;
            self.one_try(call, context)
        };
        match &self.0.retries {
            Some(retries) => retries.run(context, attempt).await,
            None => self.one_try(call, context).await,
        }
    }

    async fn one_try(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let time_left = context.time_left();
        if time_left.is_zero() {
            return Err(self.not_sent("no time is left"));
        }
        if !self.0.throttle.should_admit(rand::random()) {
            THROTTLED.get_or_create(&[("peer", self.0.name)]).inc();
            return Err(self.not_sent("it answers next to nothing lately"));
        }
        let began = Instant::now();
        let outcome = self.attempt(call, context).await;
        self.count(&outcome, began.elapsed());
        let accepted = outcome.as_ref().is_ok_and(|answer| !answer.status.is_server_error());
        // That a client was in a hurry says nothing about the peer; that nobody is there does.
        let unreachable = matches!(outcome, Err(PeerError::Unreachable { .. }));
        if accepted || unreachable || time_left >= FAIR_TIME.min(self.0.settings.timeout) {
            self.0.throttle.learn(accepted);
        }
        outcome
    }

    fn not_sent(&self, reason: &'static str) -> PeerError {
        PeerError::NotSent { peer: self.0.name, reason }
    }

    fn count(&self, outcome: &Result<PeerResponse, PeerError>, took: Duration) {
        let peer = self.0.name;
        let outcome = match outcome {
            Ok(answer) if answer.status.is_server_error() => "failed",
            Ok(answer) if answer.status.is_client_error() => "refused",
            Ok(_) => "ok",
            Err(error) => error.kind(),
        };
        CALLS.get_or_create(&[("peer", peer), ("outcome", outcome)]).inc();
        DURATIONS.get_or_create(&[("peer", peer)]).observe(took.as_secs_f64());
    }

    async fn attempt(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let limit = self.0.settings.timeout.min(context.time_left());
        let url = self.url(call.path);
        let span = traces::of_call(&call.method, self.0.name, &url);
        let context = context.with_timeout(limit).with_span(&span);
        let exchanged = time::timeout(limit, self.exchange(call, url, &context)).instrument(span.clone()).await;
        let outcome = exchanged.unwrap_or(Err(PeerError::TimedOut { peer: self.0.name, limit }));
        match &outcome {
            Ok(answer) => traces::answered(&span, answer.status, 400),
            Err(error) => traces::failed(&span, error.kind()),
        }
        outcome
    }

    /// Where a path is, by parts: to print and to parse the whole address costs as much as a tenth of a call.
    fn url(&self, path: &str) -> Url {
        let mut url = self.0.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&[self.0.base.path().trim_end_matches('/'), path].concat());
        url.set_query(query);
        url
    }

    async fn exchange(&self, call: &Call<'_>, url: Url, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let peer = self.0.name;
        let broken = |error: reqwest::Error| PeerError::Unreachable { peer, cause: chain(&error) };
        let mut request = reqwest::Request::new(call.method.clone(), url);
        context.forward(request.headers_mut());
        if let Some(json) = &call.json {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(json.clone().into());
        }

        let mut response = self.0.http.execute(request).await.map_err(broken)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            let limit = self.0.settings.max_answer_bytes;
            if body.len() + chunk.len() > limit {
                return Err(PeerError::TooLarge { peer, limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(PeerResponse { status, headers, body: body.freeze() })
    }

    /// The error for an answer that the contract does not have.
    pub fn unexpected(&self, answer: &PeerResponse, detail: impl ToString) -> PeerError {
        PeerError::Unexpected { peer: self.0.name, status: answer.status, detail: detail.to_string() }
    }
}

impl PeerResponse {
    /// The body as a JSON `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let text = str::from_utf8(&self.body).map_err(serde_json::Error::custom)?; // looked at once, and not string by string
        serde_json::from_str(text)
    }

    /// The problem in the body, if it is one.
    pub fn problem(&self) -> Option<problem::Body> {
        self.json().ok()
    }
}

impl From<PeerError> for Problem {
    fn from(error: PeerError) -> Self {
        let peer = match &error {
            PeerError::Unreachable { peer, .. }
            | PeerError::NotSent { peer, .. }
            | PeerError::TimedOut { peer, .. }
            | PeerError::TooLarge { peer, .. }
            | PeerError::Unexpected { peer, .. } => *peer,
        };
        Self::new(&PEER_UNAVAILABLE, format!("{peer} does not answer")).caused_by(error)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.0.name, self.0.base)
    }
}

/// An error and all its causes: reqwest's own text leaves out the one that matters.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
