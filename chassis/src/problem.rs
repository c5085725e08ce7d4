//! Errors as clients see them: `application/problem+json` (RFC 9457). Only this module writes an error body.
//!
//! A handler returns a [`Problem`]. It reaches the pipeline as an extension of an empty response. There it becomes a body
//! with the id of its request. So every error looks the same, and the text for the client (`detail`) is never confused with
//! the cause, which is only logged.

use std::borrow::Cow;
use std::error::Error;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A kind of problem: a slug that clients may match on, a status and a title.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable. The member `type` is `urn:problem-type:<slug>`.
    pub slug: &'static str,
    /// The status code of every problem of this kind.
    pub status: StatusCode,
    /// A short name for people.
    pub title: &'static str,
}

impl Kind {
    /// Declares a kind of problem.
    pub const fn new(status: StatusCode, slug: &'static str, title: &'static str) -> Self {
        Self { slug, status, title }
    }
}

/// The request is invalid; `errors` lists the mistakes.
pub static INVALID_REQUEST: Kind = Kind::new(StatusCode::BAD_REQUEST, "invalid-request", "Invalid request");
/// The body is not JSON.
pub static MALFORMED_JSON: Kind = Kind::new(StatusCode::BAD_REQUEST, "malformed-json", "Malformed JSON");
/// The media type of the body is not accepted, or the body has a content coding.
pub static UNSUPPORTED_MEDIA_TYPE: Kind =
    Kind::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type");
/// The body is larger than the limit.
pub static PAYLOAD_TOO_LARGE: Kind = Kind::new(StatusCode::PAYLOAD_TOO_LARGE, "payload-too-large", "Payload too large");
/// The header is larger than the limit.
pub static HEADERS_TOO_LARGE: Kind =
    Kind::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", "Headers too large");
/// The resource does not exist.
pub static NOT_FOUND: Kind = Kind::new(StatusCode::NOT_FOUND, "not-found", "Not found");
/// The resource does not support the method; `Allow` lists those that it supports.
pub static METHOD_NOT_ALLOWED: Kind =
    Kind::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed");
/// The body did not arrive in time.
pub static REQUEST_TIMEOUT: Kind = Kind::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout");
/// `If-Match` or `If-None-Match` does not allow the current state.
pub static PRECONDITION_FAILED: Kind =
    Kind::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "Precondition failed");
/// The service has too much load. The request has no effect.
pub static OVERLOADED: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded");
/// The request took too long. It may have been carried out.
pub static TIMED_OUT: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "timed-out", "Timed out");
/// The time that the caller gave is over. It may have been carried out. This is no failure of the service.
pub static DEADLINE_EXCEEDED: Kind = Kind::new(StatusCode::GATEWAY_TIMEOUT, "deadline-exceeded", "Deadline exceeded");
/// The service is shutting down.
pub static DRAINING: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "Draining");
/// A peer does not answer.
pub static PEER_UNAVAILABLE: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "peer-unavailable", "Peer unavailable");
/// The store does not answer. Nothing was changed.
pub static STORE_UNAVAILABLE: Kind =
    Kind::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable");
/// A bug, or an error that the client cannot correct.
pub static INTERNAL: Kind = Kind::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error");

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error response, and its cause for the log.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: Cow<'static, str>,
    extra: Box<Extra>, // boxed, so that a `Result` with a problem stays small
}

/// The members that only some problems have.
#[derive(Clone, Debug, Default)]
struct Extra {
    errors: Vec<FieldError>,
    reasons: Vec<String>,
    retry_after: Option<u32>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<String>,
}

/// One bad member of a body, or one bad parameter of a path, query or header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where in the body: a JSON pointer, RFC 6901.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "/name")]
    pub pointer: Option<String>,
    /// Which parameter of the path or the query, or which header.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub parameter: Option<String>,
    /// What is wrong with it.
    #[schema(example = "must be 1 to 200 characters")]
    pub detail: String,
    /// What holds instead, where the client guessed: a price, the units left.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub actual: Option<serde_json::Value>,
}

impl FieldError {
    /// Reports the member at this JSON pointer; the empty pointer is the whole body.
    pub fn at_pointer(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, detail: detail.into(), actual: None }
    }

    /// Reports the path, query or header parameter of this name.
    pub fn in_parameter(parameter: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(parameter.into()), detail: detail.into(), actual: None }
    }

    /// Adds the current value, where the client sent an outdated one.
    pub fn actual(self, value: impl Into<serde_json::Value>) -> Self {
        Self { actual: Some(value.into()), ..self }
    }
}

/// A problem as it stands on the wire.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// `urn:problem-type:<slug>`: stable, made to be matched on.
    #[schema(example = "urn:problem-type:not-found")]
    pub r#type: Cow<'static, str>,
    /// The kind of problem, for people.
    #[schema(example = "Not found")]
    pub title: Cow<'static, str>,
    /// The status code once more.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    pub status: u16,
    /// What happened this time.
    #[schema(example = "There is nothing here")]
    pub detail: Cow<'static, str>,
    /// The same as `x-request-id`: what to quote when asking about it.
    pub request_id: String,
    /// The same as `detail`.
    #[schema(example = "There is nothing here")]
    pub error: Cow<'static, str>,
    /// Every bad field, for `invalid-request` and wherever single fields are to blame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Why the service is not ready, for `/readyz`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

impl Problem {
    /// Returns a problem of this kind; `detail` is a short sentence for the client. A 503 gets `Retry-After: 1`.
    pub fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (kind.status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { kind, detail: detail.into(), extra: Box::new(Extra { retry_after, ..Extra::default() }) }
    }

    /// Returns the problem of an invalid request with these mistakes.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let location = |error: &FieldError| error.pointer.clone().or(error.parameter.clone()).filter(|l| !l.is_empty());
        let detail = match errors.as_slice() {
            [only] => {
                location(only).map_or_else(|| only.detail.clone(), |location| format!("{location}: {}", only.detail))
            }
            several => format!("{} fields are invalid", several.len()),
        };
        Self::new(&INVALID_REQUEST, detail).with_errors(errors)
    }

    /// Returns an internal error. The cause is only logged.
    pub fn internal(cause: impl ToString) -> Self {
        Self::new(&INTERNAL, "Something went wrong here").caused_by(cause)
    }

    /// Returns the problem of a store that does not answer; nothing was changed. The cause is only logged.
    pub fn store_unavailable(cause: impl ToString) -> Self {
        Self::new(&STORE_UNAVAILABLE, "The store does not answer").caused_by(cause)
    }

    /// Returns the problem of a change whose outcome is unknown, because the store did not answer. The cause is only logged.
    pub fn outcome_unknown(cause: impl ToString) -> Self {
        Self::new(&TIMED_OUT, "The store did not answer; the change may have been made").caused_by(cause)
    }

    /// Returns the problem for an error response of axum or another library, which has only a status and perhaps `Allow`.
    pub(crate) fn from_status(status: StatusCode, allow: Option<HeaderValue>) -> Self {
        let kinds = [&INVALID_REQUEST, &NOT_FOUND, &METHOD_NOT_ALLOWED, &PAYLOAD_TOO_LARGE, &UNSUPPORTED_MEDIA_TYPE];
        match kinds.into_iter().find(|kind| kind.status == status) {
            Some(kind) => {
                let problem = Self::new(kind, kind.title);
                allow.into_iter().fold(problem, |problem, allow| problem.with_header(header::ALLOW, allow))
            }
            None => Self::internal(format!("a library responded {status} without a problem")),
        }
    }

    /// Sets the fields that caused the problem.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.extra.errors = errors;
        self
    }

    /// Sets the reasons why the service is not ready.
    pub fn with_reasons(mut self, reasons: Vec<String>) -> Self {
        self.extra.reasons = reasons;
        self
    }

    /// Adds a header of the response.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.extra.headers.push((name, value));
        self
    }

    /// Replaces the value of a header of the response, if it has this header and there is a new value.
    pub(crate) fn map_header(&mut self, name: &HeaderName, new: impl FnOnce(&HeaderValue) -> Option<HeaderValue>) {
        if let Some((_, value)) = self.extra.headers.iter_mut().find(|(header, _)| header == name)
            && let Some(new) = new(value)
        {
            *value = new;
        }
    }

    /// Sets `Retry-After`, in seconds.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.extra.retry_after = Some(seconds);
        self
    }

    /// Sets the cause, which is only logged.
    pub fn caused_by(mut self, cause: impl ToString) -> Self {
        self.extra.cause = Some(cause.to_string());
        self
    }

    /// Returns whether it is a failure of the service: a 5xx, unless the caller gave too little time.
    pub(crate) fn is_failure(&self) -> bool {
        self.kind.status.is_server_error() && self.kind != &DEADLINE_EXCEEDED
    }

    /// Returns the kind of problem.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// Returns the cause, for the log.
    pub fn cause(&self) -> Option<&str> {
        self.extra.cause.as_deref()
    }

    /// Returns the body of the response to the request with this id.
    pub fn body(&self, request_id: &str) -> Body {
        Body {
            r#type: format!("urn:problem-type:{}", self.kind.slug).into(),
            title: self.kind.title.into(),
            status: self.kind.status.as_u16(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
            error: self.detail.clone(),
            errors: self.extra.errors.clone(),
            reasons: self.extra.reasons.clone(),
        }
    }

    /// Returns the response to the request with this id.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let mut response = (self.kind.status, Json(self.body(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(seconds) = self.extra.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        headers.extend(self.extra.headers.iter().cloned());
        response
    }
}

/// Returns the text of an error and of all its causes. reqwest's own text has no root cause.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl IntoResponse for Problem {
    /// Returns an empty response that carries the problem; the pipeline replaces it.
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_one_bad_field_in_the_detail_and_counts_several() {
        let detail = |errors| Problem::invalid(errors).body("").detail;
        assert_eq!(detail(vec![FieldError::at_pointer("/name", "is required")]), "/name: is required");
        assert_eq!(detail(vec![FieldError::in_parameter("limit", "must be 1")]), "limit: must be 1");
        assert_eq!(detail(vec![FieldError::at_pointer("", "must be a JSON object")]), "must be a JSON object");
        assert_eq!(
            detail(vec![FieldError::at_pointer("/a", "x"), FieldError::at_pointer("/b", "x")]),
            "2 fields are invalid"
        );
    }

    #[test]
    fn sends_retry_after_with_a_503_only() {
        let retry_after = |problem: Problem| problem.render("").headers().get(header::RETRY_AFTER).cloned();
        assert_eq!(retry_after(Problem::new(&OVERLOADED, "")), Some(HeaderValue::from_static("1")));
        assert_eq!(retry_after(Problem::new(&OVERLOADED, "").retry_after(7)), Some(HeaderValue::from_static("7")));
        assert_eq!(retry_after(Problem::new(&NOT_FOUND, "")), None);
    }

    #[test]
    fn does_not_show_the_cause_to_the_client() {
        let problem = Problem::internal("disk on fire");
        assert_eq!(problem.cause(), Some("disk on fire"));
        let body = serde_json::to_string(&problem.body("abc-1")).unwrap();
        assert!(!body.contains("fire") && body.contains("abc-1"), "{body}");
    }

    #[test]
    fn maps_the_status_of_a_library_to_a_problem() {
        for (status, slug) in [
            (400, "invalid-request"),
            (404, "not-found"),
            (405, "method-not-allowed"),
            (413, "payload-too-large"),
            (415, "unsupported-media-type"),
            (500, "internal"),
            (502, "internal"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Problem::from_status(status, None).kind().slug, slug, "{status}");
        }
    }
}
