//! Calls to another service.
//!
//! [`Peer`] is the other service. A call carries the ids of the request for which it is made, and ends at the deadline of that
//! request. Its result is a [`PeerResponse`] with any status, or a [`PeerError`]. After an error the caller does not know what
//! the peer did, unless the call was [`PeerError::NotSent`].
//!
//! - Transient failures are retried ([`retry`]). So every call must be safe to repeat, each `post` too.
//! - A peer that fails most calls gets few calls ([`throttle`]).
//! - A slow peer gets as many calls as it can end in time ([`limit`]). At most `PEER_MAX_IN_FLIGHT` calls wait for any peer.
//! - A connection is used for a limited time ([`connections`]).
//! - Concurrent calls can share one request ([`batched`]).

mod batched;
mod connections;
mod limit;
mod retry;
mod throttle;

use std::error::Error;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use tokio::sync::Semaphore;
use tokio::time;
use tracing::Instrument;
use url::{Position, Url};

pub use self::batched::{BatchEndpoint, BatchedCalls, Outcome};
use self::connections::{Connections, SHORT_URL};
pub use self::limit::{AdaptiveLimit, Admission};
use self::retry::Retries;
use self::throttle::Throttle;
use crate::config::PeerSettings;
use crate::context::RequestContext;
use crate::problem::{self, PEER_UNAVAILABLE, Problem};
use crate::telemetry::metrics::{self, Counter, Durations, Family, Histogram, Labels};
use crate::telemetry::traces;

/// `/readyz` reports a peer as down when it does not answer within this time.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// When a call with less time than this times out, it does not count against the peer.
const MIN_FAIR_TIMEOUT: Duration = Duration::from_millis(250);

/// The outcome of a call that was answered with a status below 400.
const OK: &str = "ok";

/// Counts each attempt. Outcomes: `ok` is a status below 400, `refused` below 500, `failed` any other status; the rest are the
/// kinds of [`PeerError`].
static CALLS: LazyLock<Family<Labels<2>, Counter>> = LazyLock::new(|| {
    metrics::register("peer_calls", "Calls to peers, by outcome; each attempt counts", Family::default())
});
static DURATIONS: LazyLock<Durations<Labels<1>>> = LazyLock::new(|| {
    let help = "Time from sending a call to its response or failure";
    metrics::register("peer_call_duration_seconds", help, metrics::durations())
});
static RETRIES: LazyLock<Family<Labels<1>, Counter>> =
    LazyLock::new(|| metrics::register("peer_retries", "Calls to peers that were retried", Family::default()));
static THROTTLED: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    let help = "Calls rejected locally because most recent calls to the peer failed";
    metrics::register("peer_throttled", help, Family::default())
});
static OVERLOADED: LazyLock<Family<Labels<1>, Counter>> = LazyLock::new(|| {
    let help = "Calls rejected locally because the peer cannot end more calls in time";
    metrics::register("peer_overloaded", help, Family::default())
});

/// A service that this one calls.
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    name: &'static str,
    base: Url,
    /// [`SHORT_URL`] with the path of `base`.
    short_base: Url,
    /// The host and the port of `base`.
    host: HeaderValue,
    connections: Connections,
    settings: PeerSettings,
    permits: Semaphore,
    throttle: Throttle,
    retries: Option<Retries>,
    /// The attempts with the outcome `ok`.
    ok_calls: Counter,
    durations: Histogram,
}

/// One call to a peer.
struct Call<'a> {
    method: Method,
    path: &'a str,
    json: Option<Bytes>,
}

/// The response of a peer, with any status.
#[derive(Debug)]
pub struct PeerResponse {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body, at most `PEER_MAX_ANSWER_BYTES` long.
    pub body: Bytes,
}

/// A call without a usable response. Unless it is [`PeerError::NotSent`], the peer may have acted on the call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection could not be made, or it broke.
    #[error("{peer} did not answer: {cause}")]
    Unreachable {
        /// The peer that was called.
        peer: &'static str,
        /// The whole chain of causes.
        cause: String,
    },
    /// The call was rejected locally: by the throttle, by the limit of calls in flight, or because no time was left.
    #[error("{peer} was not called: {reason}")]
    NotSent {
        /// The peer that would have been called.
        peer: &'static str,
        /// Why the call was not sent.
        reason: &'static str,
    },
    /// The response did not arrive in time.
    #[error("{peer} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// The peer that was called.
        peer: &'static str,
        /// The timeout of the call.
        limit: Duration,
    },
    /// The response was larger than the limit.
    #[error("{peer} answered more than {limit} bytes")]
    TooLarge {
        /// The peer that was called.
        peer: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The contract has no such response.
    #[error("{peer} answered {status}: {detail}")]
    Unexpected {
        /// The peer that was called.
        peer: &'static str,
        /// The status of the response.
        status: StatusCode,
        /// What is wrong with it.
        detail: String,
    },
}

impl PeerError {
    /// Returns the kind of the error, as metrics and traces name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::NotSent { .. } => "not_sent",
            Self::TimedOut { .. } => "timed_out",
            Self::TooLarge { .. } => "too_large",
            Self::Unexpected { .. } => "unexpected",
        }
    }
}

impl Peer {
    /// Creates a client for the service `name` at `base`, without retries. It is for services whose own callers retry.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(name: &'static str, base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        Self::with(name, base, settings, None)
    }

    /// Creates a client that retries. Only one service of a chain may retry, otherwise the retries multiply.
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
        let unusable = |error: &dyn Error| PeerError::Unreachable { peer: name, cause: chain(error) };
        let mut short_base = Url::parse(SHORT_URL).map_err(|error| unusable(&error))?;
        short_base.set_path(base.path());
        let host = HeaderValue::from_str(&base[Position::BeforeHost..Position::AfterPort]);
        Ok(Self(Arc::new(Inner {
            name,
            short_base,
            host: host.map_err(|error| unusable(&error))?,
            connections: Connections::new(base.clone(), settings).map_err(|error| unusable(&error))?,
            base,
            settings: settings.clone(),
            permits: Semaphore::new(settings.max_in_flight as usize),
            throttle: Throttle::new(),
            retries,
            ok_calls: CALLS.get_or_create_owned(&[("peer", name), ("outcome", OK)]),
            durations: DURATIONS.get_or_create_owned(&[("peer", name)]),
        })))
    }

    /// Returns the name of the service.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Returns its address.
    pub fn base(&self) -> &Url {
        &self.0.base
    }

    /// Calls `GET path`. The path starts with `/` and may have a query.
    pub async fn get(&self, path: &str, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::GET, path, json: None }, context).await
    }

    /// Calls `PUT path` with a JSON body.
    pub async fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::PUT, path, json: Some(self.json(body)?) }, context).await
    }

    /// Calls `POST path` with a JSON body. Use it only where a repeated call does no harm.
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

    /// Calls `DELETE path`.
    pub async fn delete(&self, path: &str, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::DELETE, path, json: None }, context).await
    }

    /// Returns whether the peer answers at all, with any status. The throttle and the limits do not apply.
    pub async fn is_up(&self) -> bool {
        let probe = Call { method: Method::GET, path: "/livez", json: None };
        self.send(&probe, &RequestContext::background(PROBE_TIMEOUT)).await.is_ok()
    }

    /// Makes one call, with retries, within the deadline of `context`.
    async fn call(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let _permit = self.0.permits.try_acquire().map_err(|_| self.not_sent("too many calls are in flight"))?;
        let mut attempts = 0;
        let attempt = || {
            if attempts > 0 {
                RETRIES.get_or_create(&[("peer", self.0.name)]).inc();
            }
            attempts += 1;
            self.attempt(call, context)
        };
        match &self.0.retries {
            Some(retries) => retries.run(context, attempt).await,
            None => self.attempt(call, context).await,
        }
    }

    async fn attempt(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let time_left = context.time_left();
        if time_left.is_zero() {
            return Err(self.not_sent("no time is left"));
        }
        if !self.0.throttle.should_admit(rand::random()) {
            THROTTLED.get_or_create(&[("peer", self.0.name)]).inc();
            return Err(self.not_sent("most recent calls to it failed"));
        }
        let began = Instant::now();
        let outcome = self.send(call, context).await;
        self.count(&outcome, began.elapsed());
        let accepted = outcome.as_ref().is_ok_and(|response| !response.status.is_server_error());
        // A timeout of a call with a short deadline says nothing about the peer. A refused connection always counts.
        let unreachable = matches!(outcome, Err(PeerError::Unreachable { .. }));
        if accepted || unreachable || time_left >= MIN_FAIR_TIMEOUT.min(self.0.settings.timeout) {
            self.0.throttle.record_outcome(accepted);
        }
        outcome
    }

    fn not_sent(&self, reason: &'static str) -> PeerError {
        PeerError::NotSent { peer: self.0.name, reason }
    }

    fn count(&self, outcome: &Result<PeerResponse, PeerError>, duration: Duration) {
        let outcome = match outcome {
            Ok(response) if response.status.is_server_error() => "failed",
            Ok(response) if response.status.is_client_error() => "refused",
            Ok(_) => OK,
            Err(error) => error.kind(),
        };
        match outcome {
            OK => self.0.ok_calls.inc(),
            _ => CALLS.get_or_create(&[("peer", self.0.name), ("outcome", outcome)]).inc(),
        };
        self.0.durations.observe(duration.as_secs_f64());
    }

    async fn send(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let limit = self.0.settings.timeout.min(context.time_left());
        let span = traces::client_span(&call.method, self.0.name, || url(&self.0.base, call.path));
        let context = context.with_timeout(limit).with_span(&span);
        let response = time::timeout(limit, self.exchange(call, &context)).instrument(span.clone()).await;
        let outcome = response.unwrap_or(Err(PeerError::TimedOut { peer: self.0.name, limit }));
        match &outcome {
            Ok(response) => traces::record_status(&span, response.status, 400),
            Err(error) => traces::record_error(&span, error.kind()),
        }
        outcome
    }

    async fn exchange(&self, call: &Call<'_>, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        let peer = self.0.name;
        let broken = |error: reqwest::Error| {
            let cause = chain(&error.without_url());
            PeerError::Unreachable { peer, cause: format!("{} {}: {cause}", call.method, url(&self.0.base, call.path)) }
        };
        let mut request = reqwest::Request::new(call.method.clone(), url(&self.0.short_base, call.path));
        request.headers_mut().insert(header::HOST, self.0.host.clone());
        context.forward(request.headers_mut());
        if let Some(json) = &call.json {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(json.clone().into());
        }

        let mut response = self.0.connections.client().execute(request).await.map_err(broken)?;
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

    /// Returns the error for a response that is not in the contract.
    pub fn unexpected(&self, response: &PeerResponse, detail: impl ToString) -> PeerError {
        PeerError::Unexpected { peer: self.0.name, status: response.status, detail: detail.to_string() }
    }
}

impl PeerResponse {
    /// Parses the body as JSON.
    ///
    /// # Errors
    /// If the body is not UTF-8, or not the JSON of a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let text = str::from_utf8(&self.body).map_err(serde_json::Error::custom)?; // one pass here is cheaper than one per string in serde_json
        serde_json::from_str(text)
    }

    /// Returns whether the body is JSON, by its media type and its content. The error page of a gateway, for example, is not.
    pub fn is_json(&self) -> bool {
        let media_type =
            self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        (essence == "application/json" || essence.ends_with("+json")) && self.json::<IgnoredAny>().is_ok()
    }

    /// Returns the problem document in the body, if it is one.
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

/// Joins a base URL and a path. Replacing the parts is cheaper than parsing the whole URL.
fn url(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    url.set_path(&[base.path().trim_end_matches('/'), path].concat());
    url.set_query(query);
    url
}

/// Returns the text of an error and of all its causes. reqwest's own text has no root cause.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
