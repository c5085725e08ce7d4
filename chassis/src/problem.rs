//! Errors as clients see them: `application/problem+json`, RFC 9457. The only place that writes an error body.
//!
//! A handler returns a [`Problem`]; it travels to the outermost layer as an extension of an empty response, and there
//! gets the id of its request and becomes a body. So every error looks the same, whoever made it, and the text for the
//! client (`detail`) and the cause for the log are two things that cannot be mixed up.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One kind of problem: a slug that clients may match on, its status, and what it is called.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable; `type` is `urn:problem-type:<slug>`.
    pub slug: &'static str,
    /// The status code of every problem of this kind.
    pub status: StatusCode,
    /// A short name for people.
    pub title: &'static str,
}

impl Kind {
    /// A kind of problem.
    pub const fn new(status: StatusCode, slug: &'static str, title: &'static str) -> Self {
        Self { slug, status, title }
    }
}

/// The request is wrong in itself; `errors` says where.
pub static INVALID_REQUEST: Kind = Kind::new(StatusCode::BAD_REQUEST, "invalid-request", "Invalid request");
/// The body is not JSON.
pub static MALFORMED_JSON: Kind = Kind::new(StatusCode::BAD_REQUEST, "malformed-json", "Malformed JSON");
/// The body is not declared as JSON.
pub static UNSUPPORTED_MEDIA_TYPE: Kind =
    Kind::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type");
/// The body is larger than the limit.
pub static PAYLOAD_TOO_LARGE: Kind = Kind::new(StatusCode::PAYLOAD_TOO_LARGE, "payload-too-large", "Payload too large");
/// The header is larger than the limit.
pub static HEADERS_TOO_LARGE: Kind =
    Kind::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large", "Headers too large");
/// The thing in the path does not exist.
pub static NOT_FOUND: Kind = Kind::new(StatusCode::NOT_FOUND, "not-found", "Not found");
/// The thing in the path does not take this method; `Allow` says which it takes.
pub static METHOD_NOT_ALLOWED: Kind =
    Kind::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed");
/// The body did not arrive in time.
pub static REQUEST_TIMEOUT: Kind = Kind::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout");
/// `If-Match` no longer holds.
pub static PRECONDITION_FAILED: Kind =
    Kind::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "Precondition failed");
/// Too much to do; nothing happened.
pub static OVERLOADED: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded");
/// The service is going down.
pub static DRAINING: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "Draining");
/// Another service does not answer.
pub static PEER_UNAVAILABLE: Kind = Kind::new(StatusCode::SERVICE_UNAVAILABLE, "peer-unavailable", "Peer unavailable");
/// The store does not answer.
pub static STORE_UNAVAILABLE: Kind =
    Kind::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable");
/// A mistake of ours.
pub static INTERNAL: Kind = Kind::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error");

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Something that went wrong with a request, and all that is to be said about it.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: Cow<'static, str>,
    more: Box<More>, // so that a `Result` with a problem in it stays small
}

/// What only some problems have.
#[derive(Clone, Debug, Default)]
struct More {
    errors: Vec<FieldError>,
    reasons: Vec<String>,
    retry_after: Option<u32>,
    allow: Option<HeaderValue>,
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
    /// The member at this JSON pointer is bad.
    pub fn at_pointer(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, detail: detail.into(), actual: None }
    }

    /// The path, query or header parameter of this name is bad.
    pub fn in_parameter(parameter: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(parameter.into()), detail: detail.into(), actual: None }
    }

    /// What holds instead of what the client said.
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
    /// A problem of this kind; `detail` is a short sentence for the client.
    pub fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (kind.status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { kind, detail: detail.into(), more: Box::new(More { retry_after, ..More::default() }) }
    }

    /// The request is wrong in these places.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let place = |error: &FieldError| error.pointer.clone().or(error.parameter.clone()).filter(|p| !p.is_empty());
        let detail = match errors.as_slice() {
            [only] => place(only).map_or_else(|| only.detail.clone(), |place| format!("{place}: {}", only.detail)),
            several => format!("{} fields are invalid", several.len()),
        };
        Self::new(&INVALID_REQUEST, detail).with_errors(errors)
    }

    /// A mistake of ours: the client is told nothing, the log the cause.
    pub fn internal(cause: impl ToString) -> Self {
        Self::new(&INTERNAL, "Something went wrong here").caused_by(cause)
    }

    /// The store does not answer; what it said is for the log.
    pub fn store_unavailable(cause: impl ToString) -> Self {
        Self::new(&STORE_UNAVAILABLE, "The store does not answer").caused_by(cause)
    }

    /// What a bare error response of this status means: the ones that axum and its friends make by themselves.
    pub(crate) fn from_bare(status: StatusCode, allow: Option<HeaderValue>) -> Self {
        let kinds = [&INVALID_REQUEST, &NOT_FOUND, &METHOD_NOT_ALLOWED, &PAYLOAD_TOO_LARGE, &UNSUPPORTED_MEDIA_TYPE];
        match kinds.into_iter().find(|kind| kind.status == status) {
            Some(kind) => {
                let mut problem = Self::new(kind, kind.title);
                problem.more.allow = allow;
                problem
            }
            None => Self::internal(format!("a bare {status} answer")),
        }
    }

    /// The single fields to blame.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.more.errors = errors;
        self
    }

    /// Why the service is not ready.
    pub fn with_reasons(mut self, reasons: Vec<String>) -> Self {
        self.more.reasons = reasons;
        self
    }

    /// When to try again, in seconds. Every 503 says 1 unless told otherwise.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.more.retry_after = Some(seconds);
        self
    }

    /// What the log is to know and the client is not.
    pub fn caused_by(mut self, cause: impl ToString) -> Self {
        self.more.cause = Some(cause.to_string());
        self
    }

    /// The kind of problem.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The cause, for the log.
    pub fn cause(&self) -> Option<&str> {
        self.more.cause.as_deref()
    }

    /// The problem as it stands on the wire, in the answer to the request of this id.
    pub fn body(&self, request_id: &str) -> Body {
        Body {
            r#type: format!("urn:problem-type:{}", self.kind.slug).into(),
            title: self.kind.title.into(),
            status: self.kind.status.as_u16(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
            error: self.detail.clone(),
            errors: self.more.errors.clone(),
            reasons: self.more.reasons.clone(),
        }
    }

    /// The whole answer to the request of this id.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let mut response = (self.kind.status, Json(self.body(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(seconds) = self.more.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = &self.more.allow {
            headers.insert(header::ALLOW, allow.clone());
        }
        response
    }
}

impl IntoResponse for Problem {
    /// A response without a body, which the outermost layer fills in.
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
    fn one_bad_field_is_named_in_the_detail_and_several_are_counted() {
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
    fn a_problem_says_when_to_try_again_only_if_that_may_help() {
        let retry_after = |problem: Problem| problem.render("").headers().get(header::RETRY_AFTER).cloned();
        assert_eq!(retry_after(Problem::new(&OVERLOADED, "")), Some(HeaderValue::from_static("1")));
        assert_eq!(retry_after(Problem::new(&OVERLOADED, "").retry_after(7)), Some(HeaderValue::from_static("7")));
        assert_eq!(retry_after(Problem::new(&NOT_FOUND, "")), None);
    }

    #[test]
    fn the_cause_is_nowhere_in_the_answer() {
        let problem = Problem::internal("disk on fire");
        assert_eq!(problem.cause(), Some("disk on fire"));
        let body = serde_json::to_string(&problem.body("abc-1")).unwrap();
        assert!(!body.contains("fire") && body.contains("abc-1"), "{body}");
    }

    #[test]
    fn a_bare_answer_becomes_the_problem_of_its_status() {
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
            assert_eq!(Problem::from_bare(status, None).kind().slug, slug, "{status}");
        }
    }
}
