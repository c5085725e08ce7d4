//! The response of a peer, and the error of a call without a usable response.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};

use crate::problem::{self, PEER_UNAVAILABLE, Problem};

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
