//! Extractors that reject a bad request with a [`Problem`]. axum's own respond in plain text.

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

/// A body that is a JSON object, with the media type `application/json` or `application/…+json`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: FromJson> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        body::read_object(&json_bytes(request).await?).map(Self)
    }
}

/// A body that is a JSON array of 1 to `MAX` objects, each read on its own.
#[derive(Debug)]
pub struct JsonList<T, const MAX: usize>(pub Vec<Result<T, Problem>>);

impl<S: Send + Sync, T: FromJson, const MAX: usize> FromRequest<S> for JsonList<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        body::read_list(&json_bytes(request).await?, 1..=MAX).map(Self)
    }
}

async fn json_bytes(request: Request) -> Result<Bytes, Problem> {
    if !is_json(request.headers()) {
        return Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "The body must be sent as application/json"));
    }
    // The pipeline has already read the whole body, within its limits.
    Ok(request.into_body().collect().await.map_err(Problem::internal)?.to_bytes())
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
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

/// The query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Sync, T: FromQuery> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        body::read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// A request header that may appear once.
pub trait Header: Sized {
    /// The name of the header.
    const NAME: HeaderName;

    /// Parses the value.
    ///
    /// # Errors
    /// What is wrong with it, as clients read it.
    fn parse(value: &str) -> Result<Self, Detail>;
}

/// The header `H`, or `None` if it is absent. A repeated header is rejected.
#[derive(Debug)]
pub struct OptionalHeader<H>(pub Option<H>);

impl<S: Sync, H: Header> FromRequestParts<S> for OptionalHeader<H> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all(H::NAME).iter();
        let parsed = match (values.next(), values.next()) {
            (None, _) => return Ok(Self(None)),
            (Some(value), None) => value.to_str().map_err(|_| "must be ASCII".into()).and_then(H::parse),
            (Some(_), Some(_)) => Err("is given more than once".into()),
        };
        let bad = |detail: Detail| Problem::invalid(vec![FieldError::in_parameter(H::NAME.as_str(), detail)]);
        parsed.map(|value| Self(Some(value))).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_json_media_types() {
        let accepts = |media_type: &str| {
            let value = header::HeaderValue::from_str(media_type).unwrap();
            is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        for json in
            ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/merge-patch+json"]
        {
            assert!(accepts(json), "{json}");
        }
        for other in ["", "text/plain", "text/json", "application/jsonp", "application/x-www-form-urlencoded", "json"] {
            assert!(!accepts(other), "{other}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
