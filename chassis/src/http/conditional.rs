//! Conditional requests, RFC 9110 section 13: `ETag`, `If-None-Match`, `If-Match`.
//!
//! The tag is a digest of the representation itself. So it needs nothing from a store, two replicas agree on it, and a
//! restart that forgets everything cannot make an old tag mean something new.

use std::hash::{DefaultHasher, Hasher};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use serde::Serialize;

use crate::http::body::values::Detail;
use crate::http::entity::Entity;
use crate::http::extract::Header;
use crate::http::json::{ToJson, Writer};
use crate::problem::{PRECONDITION_FAILED, Problem};

/// How many bytes an entity gets at once; few are larger.
const ROOM: usize = 256;

/// The header `If-Match`: a change is made only to the state that the client has seen.
#[derive(Debug)]
pub struct IfMatch(String);

impl Header for IfMatch {
    const NAME: HeaderName = header::IF_MATCH;

    fn parse(value: &str) -> Result<Self, Detail> {
        Ok(Self(value.to_owned()))
    }
}

/// Refuses unless `entity` is what the client has seen, if it says what that is. Tags are compared strongly: a weak one
/// never matches.
pub fn check(if_match: Option<&IfMatch>, entity: &impl ToJson) -> Result<(), Problem> {
    let Some(IfMatch(seen)) = if_match else { return Ok(()) };
    let (_, tag) = represent(entity)?;
    let matches = seen.split(',').map(str::trim).any(|given| given == "*" || given == tag);
    if matches { Ok(()) } else { Err(Problem::new(&PRECONDITION_FAILED, "It has changed since you read it")) }
}

/// Refuses with 412 unless `If-Match`, if the client sent it, names the tag of `entity` or is `*`.
///
/// Tags are compared strongly: a weak tag never matches.
pub fn check_if_match<T: Serialize>(if_match: Option<&IfMatch>, entity: &Entity<T>) -> Result<(), Problem> {
    let Some(IfMatch(expected)) = if_match else { return Ok(()) };
    let tag = entity.etag();
    let matches = expected.split(',').map(str::trim).any(|expected| expected == "*" || expected == tag);
    if matches { Ok(()) } else { Err(Problem::new(&PRECONDITION_FAILED, "It has changed since you read it")) }
}

/// Returns the response with one entity and its `ETag`: 200, or 304 if `If-None-Match` names the tag (compared weakly).
pub fn respond<T: Serialize>(entity: &Entity<T>, request: &HeaderMap) -> Response {
    let tag = entity.etag();
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(str::trim);
    if known.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let mut response = Response::new(Body::from(entity.json().clone()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::ETAG, tag);
    response
}

/// Returns the response to a creation: 201 with the entity, its `ETag` and its address.
///
/// # Errors
/// If `location` is not a header value.
pub fn respond_created<T: Serialize>(entity: &Entity<T>, location: &str) -> Result<Response, Problem> {
    let location = HeaderValue::from_str(location).map_err(Problem::internal)?;
    let mut response = respond(entity, &HeaderMap::new());
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// The answer that shows one entity, with its `ETag`: 200, or 304 if the client has it already.
pub fn show(entity: &impl ToJson, request: &HeaderMap) -> Result<Response, Problem> {
    let (json, tag) = represent(entity)?;
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(str::trim);
    // Weak comparison, as the RFC wants it here.
    if known.any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// The answer that shows one entity that was just made, at its address.
pub fn created(entity: &impl ToJson, location: &str) -> Result<Response, Problem> {
    let location = HeaderValue::from_str(location).map_err(Problem::internal)?;
    let mut response = show(entity, &HeaderMap::new())?;
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn represent(entity: &impl ToJson) -> Result<(Vec<u8>, HeaderValue), Problem> {
    let mut json = Writer::with_capacity(ROOM);
    entity.to_json(&mut json).map_err(Problem::internal)?;
    let json = json.finish();
    let mut hasher = DefaultHasher::new();
    hasher.write(&json);
    let tag = format!("\"{:016x}\"", hasher.finish());
    Ok((json, HeaderValue::try_from(tag).map_err(Problem::internal)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag_of(entity: &impl ToJson) -> String {
        represent(entity).unwrap().1.to_str().unwrap().to_owned()
    }

    #[test]
    fn equal_entities_have_equal_tags_and_others_others() {
        assert_eq!(tag_of(&[1, 2]), tag_of(&vec![1, 2]));
        assert_ne!(tag_of(&[1, 2]), tag_of(&[2, 1]));
        let tag = tag_of(&"x");
        assert!(tag.len() == 18 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    }

    #[test]
    fn a_change_needs_just_the_tag_of_the_state() {
        let tag = tag_of(&"x");
        let holds = |given: &str| check(IfMatch::parse(given).ok().as_ref(), &"x").is_ok();
        for good in [tag.clone(), "*".to_owned(), format!("\"other\", {tag}"), format!("{tag},\"other\"")] {
            assert!(holds(&good), "{good}");
        }
        for bad in
            [format!("W/{tag}"), tag_of(&"y"), tag.trim_matches('"').to_owned(), String::new(), format!("{tag}x")]
        {
            assert!(!holds(&bad), "{bad}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let tag = tag_of(&"x");
        let status = |given: &[&str]| {
            let headers = given.iter().map(|value| (header::IF_NONE_MATCH, HeaderValue::from_str(value).unwrap()));
            show(&"x", &headers.collect()).unwrap().status()
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
