//! Calling another service.
//!
//! [`Peer`] is one such service. A call carries the ids of the request it is made for, is given no more time than that
//! request has left, and takes no more of an answer than the limit. It comes back as an [`Answer`] to be matched on by
//! status, or as a [`PeerError`]: then nothing is known about what the peer did.

use std::error::Error;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time;
use url::Url;

use crate::config::PeerSettings;
use crate::context::Context;
use crate::problem::{self, PEER_UNAVAILABLE, Problem};

/// How long a peer may be silent before `/readyz` calls it down.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an unused connection is kept: less than the 15 s after which the other side closes it, so that no request
/// is sent into a connection that is just going.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A service that this one calls.
#[derive(Clone, Debug)]
pub struct Peer {
    name: &'static str,
    base: Url,
    http: reqwest::Client,
    settings: PeerSettings,
}

/// What a peer answered: any status.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body, not larger than the limit.
    pub body: Bytes,
}

/// No answer that means anything. Whether the peer acted on the call is unknown.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not reached, or the connection broke.
    #[error("{peer} did not answer: {cause}")]
    Unreachable {
        /// Who was called.
        peer: &'static str,
        /// The whole chain of causes.
        cause: String,
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

impl Peer {
    /// The service of this name at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(name: &'static str, base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .no_proxy() // the environment does not choose where internal calls go
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never()) // its own retries know nothing of deadlines and budgets
            .referer(false)
            .build();
        let http = http.map_err(|error| PeerError::Unreachable { peer: name, cause: chain(&error) })?;
        Ok(Self { name, base, http, settings: settings.clone() })
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it is.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// `GET path`. A path starts with `/` and may have a query.
    pub async fn get(&self, path: &str, context: &Context) -> Result<Answer, PeerError> {
        self.call(Method::GET, path, None, context).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: &impl Serialize, context: &Context) -> Result<Answer, PeerError> {
        let json = serde_json::to_vec(body);
        let json = json.map_err(|error| PeerError::Unreachable { peer: self.name, cause: error.to_string() })?;
        self.call(Method::PUT, path, Some(json.into()), context).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str, context: &Context) -> Result<Answer, PeerError> {
        self.call(Method::DELETE, path, None, context).await
    }

    /// Whether it answers at all, whatever it answers.
    pub async fn is_up(&self) -> bool {
        self.get("/livez", &Context::background(PROBE_TIMEOUT)).await.is_ok()
    }

    /// One call within the time that `context` has left. (Retries, their budget and throttling belong here.)
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        context: &Context,
    ) -> Result<Answer, PeerError> {
        let limit = self.settings.timeout.min(context.time_left());
        let tried = time::timeout(limit, self.attempt(method, path, body, context)).await;
        tried.unwrap_or(Err(PeerError::TimedOut { peer: self.name, limit }))
    }

    async fn attempt(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        context: &Context,
    ) -> Result<Answer, PeerError> {
        let unreachable = |cause: String| PeerError::Unreachable { peer: self.name, cause };
        let broken = |error: reqwest::Error| unreachable(chain(&error));

        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = reqwest::Request::new(method, Url::parse(&url).map_err(|e| unreachable(e.to_string()))?);
        context.forward(request.headers_mut());
        if let Some(json) = body {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(json.into());
        }

        let mut response = self.http.execute(request).await.map_err(broken)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            let limit = self.settings.max_answer_bytes;
            if body.len() + chunk.len() > limit {
                return Err(PeerError::TooLarge { peer: self.name, limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// The error for an answer that the contract does not have.
    pub fn unexpected(&self, answer: &Answer, detail: impl ToString) -> PeerError {
        PeerError::Unexpected { peer: self.name, status: answer.status, detail: detail.to_string() }
    }
}

impl Answer {
    /// The body as a JSON `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
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
            | PeerError::TimedOut { peer, .. }
            | PeerError::TooLarge { peer, .. }
            | PeerError::Unexpected { peer, .. } => *peer,
        };
        Self::new(&PEER_UNAVAILABLE, format!("{peer} does not answer")).caused_by(error)
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
