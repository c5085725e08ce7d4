//! Extractors that reject with a [`Problem`]: axum's own answer a bad request in plain text.

use std::fmt;
use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::http::body::values::Detail;
use crate::http::body::{self, FromJson, FromQuery};
use crate::problem::{FieldError, Problem, UNSUPPORTED_MEDIA_TYPE};

/// A body that is a JSON object. Its type may be any `application/json` or `…+json`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: FromJson> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        body::read_object(&json_bytes(request).await?).map(Self)
    }
}

/// A body that is a JSON array of objects, each read on its own.
#[derive(Debug)]
pub struct JsonList<T, const MOST: usize>(pub Vec<Result<T, Problem>>);

impl<S: Send + Sync, T: FromJson, const MOST: usize> FromRequest<S> for JsonList<T, MOST> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        body::read_list(&json_bytes(request).await?, 1..=MOST).map(Self)
    }
}

async fn json_bytes(request: Request) -> Result<Bytes, Problem> {
    if !is_json(request.headers()) {
        return Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "The body must be sent as application/json"));
    }
    // The layers have read the whole body already, within its limits.
    Ok(request.into_body().collect().await.map_err(Problem::internal)?.to_bytes())
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// The one parameter of the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: FromStr<Err: fmt::Display>> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = |name: &str, detail: String| Problem::invalid(vec![FieldError::in_parameter(name, detail)]);
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|_| bad("path", "must be UTF-8".to_owned()))?;
        let (name, text) = params.iter().next().ok_or_else(|| Problem::internal("a path without a parameter"))?;
        text.parse().map(Self).map_err(|error: T::Err| bad(name, error.to_string()))
    }
}

/// The query.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Sync, T: FromQuery> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        body::read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// A header of which there may be one.
pub trait Header: Sized {
    /// Its name.
    const NAME: HeaderName;

    /// Reads its value.
    fn parse(value: &str) -> Result<Self, Detail>;
}

/// The value of the header `H`, if it is there. Twice the same header is a mistake of the client's.
#[derive(Debug)]
pub struct OptionalHeader<H>(pub Option<H>);

impl<S: Sync, H: Header> FromRequestParts<S> for OptionalHeader<H> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut given = parts.headers.get_all(H::NAME).iter();
        let read = match (given.next(), given.next()) {
            (None, _) => return Ok(Self(None)),
            (Some(value), None) => value.to_str().map_err(|_| "must be ASCII".into()).and_then(H::parse),
            (Some(_), Some(_)) => Err("is given more than once".into()),
        };
        let bad = |detail: Detail| Problem::invalid(vec![FieldError::in_parameter(H::NAME.as_str(), detail)]);
        read.map(|value| Self(Some(value))).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_media_type() {
        let taken = |given: &str| {
            let value = header::HeaderValue::from_str(given).unwrap();
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        for json in
            ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/merge-patch+json"]
        {
            assert!(taken(json), "{json}");
        }
        for other in ["", "text/plain", "text/json", "application/jsonp", "application/x-www-form-urlencoded", "json"] {
            assert!(!taken(other), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
