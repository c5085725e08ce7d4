//! Conditional requests (RFC 9110, section 13): `ETag`, `If-None-Match`, `If-Match`.
//!
//! The tag is a digest of the representation. So no store has to keep it, and all replicas compute the same tag. A
//! restart of a service without a database cannot give an old tag a new meaning.
//!
//! A compressed response has a tag of its own: `"0123456789abcdef-gzip"`, made by [`mark_coding`]. Both tags name the same
//! state, so each of them fulfils a precondition.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::entity::Entity;
use crate::problem::{PRECONDITION_FAILED, Problem};

/// The preconditions of a request: `If-Match` and `If-None-Match`.
#[derive(Debug, Default)]
pub struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

impl Preconditions {
    /// Reads the preconditions of a request. Each header is a list, on one line or several.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let tags = |name| headers.contains_key(&name).then(|| Tags::parse(headers.get_all(name).iter()));
        Self { if_match: tags(header::IF_MATCH), if_none_match: tags(header::IF_NONE_MATCH) }
    }

    /// Returns whether the request has no precondition.
    pub fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Returns whether the request is only for something that does not exist yet (`If-None-Match: *`).
    pub fn requires_absence(&self) -> bool {
        self.if_none_match.as_ref().is_some_and(|tags| tags.any)
    }

    /// Checks the preconditions of a change. `current` is `None` if the entity does not exist.
    ///
    /// # Errors
    /// 412 if `If-Match` does not name the current tag, or if `If-None-Match` does.
    pub fn check<T: Serialize>(&self, current: Option<&Entity<T>>) -> Result<(), Problem> {
        let tag = current.map(Entity::etag);
        self.check_if_match(tag.as_ref())?;
        match (&self.if_none_match, &tag) {
            (Some(tags), Some(tag)) if tags.any || tags.matching(tag, Comparison::Weak).is_some() => {
                Err(failed("It is in a state that If-None-Match rules out"))
            }
            _ => Ok(()),
        }
    }

    fn check_if_match(&self, current: Option<&HeaderValue>) -> Result<(), Problem> {
        match (&self.if_match, current) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(failed("It does not exist")),
            (Some(tags), Some(tag)) if tags.any || tags.matching(tag, Comparison::Strong).is_some() => Ok(()),
            (Some(_), Some(_)) => Err(failed("It has changed since you read it")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Preconditions {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_headers(&parts.headers))
    }
}

/// Returns the problem of a precondition that is not fulfilled.
pub fn failed(detail: &'static str) -> Problem {
    Problem::new(&PRECONDITION_FAILED, detail)
}

/// The tags of one of the two headers. What is no tag is ignored.
#[derive(Debug, Default)]
struct Tags {
    /// Whether the list has a `*`.
    any: bool,
    tags: Vec<Tag>,
}

#[derive(Debug)]
struct Tag {
    is_weak: bool,
    /// With its quotes.
    opaque: HeaderValue,
}

/// RFC 9110, section 8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// A weak tag never matches.
    Strong,
    Weak,
}

impl Tags {
    fn parse<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> Self {
        let mut tags = Self::default();
        for line in lines {
            let mut rest = line.as_bytes();
            while !rest.is_empty() {
                rest = tags.parse_next(rest);
            }
        }
        tags
    }

    /// Reads the first element of a list and returns the rest. A comma inside a tag does not end it.
    fn parse_next<'a>(&mut self, list: &'a [u8]) -> &'a [u8] {
        let element = list.trim_ascii_start();
        let (is_weak, quoted) = element.strip_prefix(b"W/").map_or((false, element), |rest| (true, rest));
        let is_quote = |byte: &u8| *byte == b'"';
        let inner = quoted.strip_prefix(b"\"").and_then(|inner| inner.iter().position(is_quote));
        let (tag, after) = quoted.split_at(inner.map_or(0, |length| length + 2));
        let end = after.iter().position(|byte| *byte == b',').unwrap_or(after.len());
        match after[..end].trim_ascii() {
            b"" if !tag.is_empty() => {
                let opaque = HeaderValue::from_bytes(tag).ok();
                self.tags.extend(opaque.map(|opaque| Tag { is_weak, opaque }));
            }
            b"*" if !is_weak && tag.is_empty() => self.any = true,
            _ => {}
        }
        after.get(end + 1..).unwrap_or_default()
    }

    /// Returns the first tag that names the current state, in any content coding.
    fn matching(&self, current: &HeaderValue, comparison: Comparison) -> Option<&HeaderValue> {
        let named = self.tags.iter().filter(|tag| comparison == Comparison::Weak || !tag.is_weak);
        named.map(|tag| &tag.opaque).find(|tag| tag == current || is_coded(tag, current))
    }
}

/// Returns whether `tag` is `current` with the suffix of a content coding.
fn is_coded(tag: &HeaderValue, current: &HeaderValue) -> bool {
    let suffix = current.as_bytes().strip_suffix(b"\"").and_then(|current| tag.as_bytes().strip_prefix(current));
    let coding = suffix.and_then(|suffix| suffix.strip_prefix(b"-")?.strip_suffix(b"\""));
    coding.is_some_and(|coding| !coding.is_empty() && coding.iter().all(u8::is_ascii_alphanumeric))
}

/// Gives a compressed response a tag of its own. A strong tag names bytes, and these are others.
pub(super) fn mark_coding<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    if let (Some(coding), Some(tag)) = (headers.get(header::CONTENT_ENCODING), headers.get(header::ETAG)) {
        let tag = tag.as_bytes().strip_suffix(b"\"").unwrap_or_default();
        let coded = HeaderValue::from_bytes(&[tag, b"-", coding.as_bytes(), b"\""].concat());
        if let Ok(coded) = coded {
            headers.insert(header::ETAG, coded);
        }
    }
    response
}

/// Returns the response with one entity and its `ETag`: 200, or what the preconditions of the request demand.
///
/// That is 412 if `If-Match` does not name the tag, or else 304 if `If-None-Match` names it, compared weakly, or is `*`.
pub fn respond<T: Serialize>(entity: &Entity<T>, preconditions: &Preconditions) -> Response {
    let tag = entity.etag();
    if let Err(problem) = preconditions.check_if_match(Some(&tag)) {
        return problem.into_response();
    }
    // In both responses, so that a cache treats them alike.
    let vary = (header::VARY, HeaderValue::from(header::ACCEPT_ENCODING));
    if let Some(known) = &preconditions.if_none_match {
        let matching = known.matching(&tag, Comparison::Weak).cloned();
        if let Some(tag) = matching.or_else(|| known.any.then(|| tag.clone())) {
            return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag), vary]).into_response();
        }
    }
    let json_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Body::from(entity.json().clone()));
    response.headers_mut().reserve(6); // with those that are added later, so that the map need not grow
    response.headers_mut().extend([json_type, (header::ETAG, tag), vary]);
    response
}

/// Returns the response to a creation: 201 with the entity, its `ETag` and its path in `Location`.
///
/// # Errors
/// If `location` is not a valid header value.
pub fn respond_created<T: Serialize>(entity: &Entity<T>, location: &str) -> Result<Response, Problem> {
    let location = HeaderValue::from_str(location).map_err(Problem::internal)?;
    let mut response = respond(entity, &Preconditions::default());
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn tag_of(value: impl Serialize) -> String {
        Entity::new(value).etag().to_str().unwrap().to_owned()
    }

    #[test]
    fn allows_a_change_only_with_the_tag_of_the_current_state() {
        let tag = tag_of("x");
        let allows = |value: &str| preconditions(&[(header::IF_MATCH, value)]).check(Some(&Entity::new("x"))).is_ok();
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
            respond(&Entity::new("x"), &Preconditions::from_headers(&headers.collect())).status()
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

    fn preconditions(lines: &[(HeaderName, &str)]) -> Preconditions {
        let line =
            |(name, value): &(HeaderName, &str)| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        Preconditions::from_headers(&lines.iter().map(line).collect())
    }

    #[test]
    fn reads_a_list_on_several_lines_and_ignores_what_is_no_tag() {
        let tags = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| (header::IF_MATCH, *line)).collect();
            let Tags { any, tags } = preconditions(&lines).if_match.expect("the header");
            let text = |tag: Tag| (tag.is_weak, String::from_utf8(tag.opaque.as_bytes().to_vec()).unwrap());
            (any, tags.into_iter().map(text).collect::<Vec<_>>())
        };
        let strong = |tag: &str| (false, tag.to_owned());
        assert_eq!(
            tags(&["\"a\"", "\"b\", W/\"c\""]).1,
            [strong("\"a\""), strong("\"b\""), (true, "\"c\"".to_owned())]
        );
        assert_eq!(
            tags(&["\"a,b\",\"\" ,,\t\"\u{e9}\","]).1,
            [strong("\"a,b\""), strong("\"\""), strong("\"\u{e9}\"")]
        );
        assert_eq!(tags(&["a, \"b\"x, w/\"c\", \"d\" \"e\", W/, W/*, \"f"]), (false, vec![]));
        assert_eq!(tags(&["x, \"g\", *"]), (true, vec![strong("\"g\"")]));
        assert_eq!(tags(&["", " "]), (false, vec![]));
    }

    #[test]
    fn fails_a_change_that_if_none_match_rules_out() {
        fn status(lines: &[(HeaderName, &str)], current: Option<&str>) -> u16 {
            let problem = preconditions(lines).check(current.map(Entity::new).as_ref()).err();
            problem.map_or(200, |problem| problem.kind().status.as_u16())
        }
        fn none_match(value: &str) -> [(HeaderName, &str); 1] {
            [(header::IF_NONE_MATCH, value)]
        }
        let tag = tag_of("x");
        for excluded in ["*", &tag, &format!("W/{tag}"), &format!("\"a\", {tag}")] {
            assert_eq!(status(&none_match(excluded), Some("x")), 412, "{excluded}");
            assert_eq!(status(&none_match(excluded), None), 200, "{excluded}");
        }
        assert_eq!(status(&none_match(&tag), Some("y")), 200);
        for required in ["*", &tag, ""] {
            assert_eq!(status(&[(header::IF_MATCH, required)], None), 412, "{required}");
        }
        assert_eq!(status(&[(header::IF_MATCH, &tag), (header::IF_NONE_MATCH, "\"a\"")], Some("x")), 200);
        assert_eq!(status(&[(header::IF_MATCH, &tag), (header::IF_NONE_MATCH, &tag)], Some("x")), 412);
    }

    #[test]
    fn checks_if_match_before_if_none_match_in_a_read() {
        let tag = tag_of("x");
        let status = |lines: &[(HeaderName, &str)]| respond(&Entity::new("x"), &preconditions(lines)).status().as_u16();
        assert_eq!(status(&[(header::IF_MATCH, &tag)]), 200);
        assert_eq!(status(&[(header::IF_MATCH, &tag), (header::IF_NONE_MATCH, &tag)]), 304);
        assert_eq!(status(&[(header::IF_MATCH, "\"a\""), (header::IF_NONE_MATCH, &tag)]), 412);
    }

    #[test]
    fn accepts_the_tag_of_a_compressed_response() {
        let tag = tag_of("x");
        let mut response = respond(&Entity::new("x"), &Preconditions::default());
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let coded = mark_coding(response).headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(coded, format!("{}-gzip\"", tag.trim_end_matches('"')));

        assert!(preconditions(&[(header::IF_MATCH, &coded)]).check(Some(&Entity::new("x"))).is_ok());
        assert!(preconditions(&[(header::IF_MATCH, &coded)]).check(Some(&Entity::new("y"))).is_err());
        let response = respond(&Entity::new("x"), &preconditions(&[(header::IF_NONE_MATCH, &coded)]));
        assert_eq!(
            (response.status(), response.headers()[header::ETAG].to_str().unwrap()),
            (StatusCode::NOT_MODIFIED, &*coded)
        );
        for other in [coded.replace("-gzip", "-"), coded.replace("-gzip", "gzip"), coded.replace("-gzip", "-a-b")] {
            assert!(preconditions(&[(header::IF_MATCH, &other)]).check(Some(&Entity::new("x"))).is_err(), "{other}");
        }
    }
}
