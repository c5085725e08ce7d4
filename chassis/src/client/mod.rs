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
mod response;
mod retry;
mod throttle;

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Method, header};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time;
use tracing::Instrument;
use url::{Position, Url};

pub use self::batched::{BatchEndpoint, BatchedCalls, Outcome};
use self::connections::{Connections, SHORT_URL};
pub use self::limit::{AdaptiveLimit, Admission};
pub use self::response::{PeerError, PeerResponse};
use self::retry::Retries;
use self::throttle::Throttle;
use crate::auth::ServiceTokens;
use crate::config::PeerSettings;
use crate::context::RequestContext;
use crate::problem::chain;
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
    /// The tokens of this service, while sign-in is on.
    tokens: Option<ServiceTokens>,
    /// The attempts with the outcome `ok`.
    ok_calls: Counter,
    durations: Histogram,
}

/// One call to a peer.
struct Call<'a> {
    method: Method,
    path: &'a str,
    json: Option<Bytes>,
    /// The token of a caller, in place of that of this service.
    authorization: Option<HeaderValue>,
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
            tokens: None,
            ok_calls: CALLS.get_or_create_owned(&[("peer", name), ("outcome", OK)]),
            durations: DURATIONS.get_or_create_owned(&[("peer", name)]),
        })))
    }

    /// Sends a token of this service with each call, if there are tokens.
    ///
    /// # Panics
    /// If the peer was cloned before.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Option<ServiceTokens>) -> Self {
        Arc::get_mut(&mut self.0).expect("a peer gets its tokens before it is cloned").tokens = tokens;
        self
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
        self.get_as(None, path, context).await
    }

    /// Calls `GET path` with the header `Authorization` of a caller, on whose behalf the call is made.
    pub async fn get_as(
        &self,
        authorization: Option<HeaderValue>,
        path: &str,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::GET, path, json: None, authorization }, context).await
    }

    /// Calls `PUT path` with a JSON body.
    pub async fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::PUT, path, json: Some(self.json(body)?), authorization: None }, context).await
    }

    /// Calls `POST path` with a JSON body. Use it only where a repeated call does no harm.
    pub async fn post(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &RequestContext,
    ) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::POST, path, json: Some(self.json(body)?), authorization: None }, context)
            .await
    }

    fn json(&self, body: &impl Serialize) -> Result<Bytes, PeerError> {
        let json = serde_json::to_vec(body);
        json.map(Bytes::from).map_err(|error| PeerError::Unreachable { peer: self.0.name, cause: error.to_string() })
    }

    /// Calls `DELETE path`.
    pub async fn delete(&self, path: &str, context: &RequestContext) -> Result<PeerResponse, PeerError> {
        self.call(&Call { method: Method::DELETE, path, json: None, authorization: None }, context).await
    }

    /// Returns whether the peer answers at all, with any status. The throttle and the limits do not apply.
    pub async fn is_up(&self) -> bool {
        let probe = Call { method: Method::GET, path: "/livez", json: None, authorization: None };
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
        // Pinned, because a future that gets another one by value stores it twice.
        let response = time::timeout(limit, pin!(self.exchange(call, &context))).instrument(span.clone()).await;
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
        if let Some(authorization) = self.authorization(call)? {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
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

    fn authorization(&self, call: &Call<'_>) -> Result<Option<HeaderValue>, PeerError> {
        match (&call.authorization, &self.0.tokens) {
            (Some(callers), _) => Ok(Some(callers.clone())),
            (None, Some(tokens)) => tokens
                .authorization()
                .map(Some)
                .map_err(|_| self.not_sent("the token of this service cannot be signed")),
            (None, None) => Ok(None),
        }
    }

    /// Returns the error for a response that is not in the contract.
    pub fn unexpected(&self, response: &PeerResponse, detail: impl ToString) -> PeerError {
        PeerError::Unexpected { peer: self.0.name, status: response.status, detail: detail.to_string() }
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
