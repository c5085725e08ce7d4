//! Conditional requests (RFC 9110, section 13): `ETag`, `If-None-Match`, `If-Match`.
//!
//! The tag is a digest of the representation. So a store needs no version column, all replicas compute the same tag, and a
//! restart of a service without a database cannot give an old tag a new meaning.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::body::values::Detail;
use crate::http::entity::Entity;
use crate::http::extract::Header;
use crate::problem::{PRECONDITION_FAILED, Problem};

/// The header `If-Match`: the tags of the states in which the client allows a change.
#[derive(Debug)]
pub struct IfMatch(String);

impl Header for IfMatch {
    const NAME: HeaderName = header::IF_MATCH;

    fn parse(value: &str) -> Result<Self, Detail> {
        Ok(Self(value.to_owned()))
    }
}

/// Checks `If-Match` before a change. A request without the header passes.
///
/// Tags are compared strongly: a weak tag never matches.
///
/// # Errors
/// 412 unless the header names the tag of `entity` or is `*`.
pub fn check_if_match<T: Serialize>(if_match: Option<&IfMatch>, entity: &Entity<T>) -> Result<(), Problem> {
    check_tag(if_match, &entity.etag())
}

/// Returns the response with one entity and its `ETag`: 200, or 304 if the client already has it.
///
/// The client has it if `If-None-Match` names the tag, compared weakly, or is `*`.
pub fn respond<T: Serialize>(entity: &Entity<T>, request: &HeaderMap) -> Response {
    respond_with(entity.json().clone(), entity.etag(), request)
}

/// Returns the response to a creation: 201 with the entity, its `ETag` and its path in `Location`.
///
/// # Errors
/// If `location` is not a valid header value.
pub fn respond_created<T: Serialize>(entity: &Entity<T>, location: &str) -> Result<Response, Problem> {
    mark_created(respond(entity, &HeaderMap::new()), location)
}

pub(super) fn check_tag(if_match: Option<&IfMatch>, current: &HeaderValue) -> Result<(), Problem> {
    let Some(IfMatch(expected)) = if_match else { return Ok(()) };
    let matches = expected.split(',').map(str::trim).any(|tag| tag == "*" || tag == current);
    if matches { Ok(()) } else { Err(Problem::new(&PRECONDITION_FAILED, "It has changed since you read it")) }
}

pub(super) fn respond_with(json: impl Into<Body>, tag: HeaderValue, request: &HeaderMap) -> Response {
    if names_tag(request, &tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let mut response = Response::new(json.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::ETAG, tag);
    response
}

pub(super) fn mark_created(mut response: Response, location: &str) -> Result<Response, Problem> {
    let location = HeaderValue::from_str(location).map_err(Problem::internal)?;
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// Returns whether `If-None-Match` names `current`. The comparison is weak, as RFC 9110 demands for this header.
fn names_tag(request: &HeaderMap, current: &HeaderValue) -> bool {
    let lines = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == current)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag_of(value: impl Serialize) -> String {
        Entity::new(value).etag().to_str().unwrap().to_owned()
    }

    #[test]
    fn allows_a_change_only_with_the_tag_of_the_current_state() {
        let tag = tag_of("x");
        let allows = |header: &str| check_if_match(IfMatch::parse(header).ok().as_ref(), &Entity::new("x")).is_ok();
        for good in [tag.clone(), "*".to_owned(), format!("\"other\", {tag}"), format!("{tag},\"other\"")] {
            assert!(allows(&good), "{good}");
        }
        for bad in [format!("W/{tag}"), tag_of("y"), tag.trim_matches('"').to_owned(), String::new(), format!("{tag}x")]
        {
            assert!(!allows(&bad), "{bad}");
        }
    }

    #[test]
    fn responds_304_to_a_client_that_has_the_entity() {
        let tag = tag_of("x");
        let status = |lines: &[&str]| {
            let headers = lines.iter().map(|line| (header::IF_NONE_MATCH, HeaderValue::from_str(line).unwrap()));
            respond(&Entity::new("x"), &headers.collect()).status()
        };
        for known in [tag.clone(), format!("W/{tag}"), "*".to_owned(), format!("\"other\" , W/{tag}")] {
            assert_eq!(status(&[&known]), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(status(&["\"other\"", &tag]), StatusCode::NOT_MODIFIED, "on two lines");
        for other in [String::new(), "\"other\"".to_owned(), tag.trim_matches('"').to_owned(), format!("w/{tag}")] {
            assert_eq!(status(&[&other]), StatusCode::OK, "{other}");
        }
        assert_eq!(status(&[]), StatusCode::OK);
    }
}
