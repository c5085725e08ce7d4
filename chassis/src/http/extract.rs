//! Extractors that reject a bad request with a [`Problem`]. axum's own respond in plain text.

use std::fmt;
use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use bytes::Bytes;

use crate::http::body::values::Detail;
use crate::http::body::{self, FromJson, FromQuery};
use crate::http::pipeline;
use crate::problem::{FieldError, Problem, UNSUPPORTED_MEDIA_TYPE};

/// A body that is a JSON object. Its media type is one of [`accepted_media_types`].
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: FromJson> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        body::read_object(&json_bytes(request).await?).map(Self)
    }
}

/// The bytes of a body that should be JSON. Its media type is one of [`accepted_media_types`].
#[derive(Debug)]
pub struct JsonBytes(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        json_bytes(request).await.map(Self)
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
    check_encoding(request.headers())?;
    check_media_type(request.method(), request.headers())?;
    // The pipeline has already read the whole body, within its limits.
    pipeline::collect(request.into_body()).await.map_err(Problem::internal)
}

/// Rejects a body with a content coding. A decompressed body could be far larger than the limit.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter().map(|line| line.to_str().unwrap_or("?"));
    let mut codings = lines.flat_map(|line| line.split(',')).map(str::trim);
    if codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    let problem =
        Problem::new(&UNSUPPORTED_MEDIA_TYPE, "The body must not have a Content-Encoding other than identity");
    Err(problem.with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")))
}

fn check_media_type(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter().filter_map(|value| value.to_str().ok());
    let (media_type, other) = (lines.next().unwrap_or_default(), lines.next());
    let mut parts = media_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let accepted = accepted_media_types(method);
    if other.is_none() && accepted.iter().any(|accepted| essence.eq_ignore_ascii_case(accepted)) && parts.all(is_utf8) {
        return Ok(());
    }
    let problem =
        Problem::new(&UNSUPPORTED_MEDIA_TYPE, format!("The body must be {}, in UTF-8", accepted.join(" or ")));
    let list = HeaderValue::from_str(&accepted.join(", ")).map_err(Problem::internal)?;
    let problem = problem.with_header(header::ACCEPT, list.clone());
    Err(match *method {
        Method::PATCH => problem.with_header(HeaderName::from_static("accept-patch"), list), // RFC 5789
        Method::POST => problem.with_header(HeaderName::from_static("accept-post"), list),
        _ => problem,
    })
}

/// Returns whether a parameter of a media type leaves the body in UTF-8, the only encoding of JSON (RFC 8259).
fn is_utf8(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return true };
    let is = |encoding: &&str| value.trim_matches('"').eq_ignore_ascii_case(encoding);
    !name.eq_ignore_ascii_case("charset") || ["utf-8", "utf8", "us-ascii"].iter().any(is)
}

/// Returns the media types of a body that a call with this method accepts. A PATCH is a JSON Merge Patch (RFC 7396).
pub(crate) fn accepted_media_types(method: &Method) -> &'static [&'static str] {
    const MEDIA_TYPES: [&str; 2] = ["application/json", "application/merge-patch+json"];
    if method == Method::PATCH { &MEDIA_TYPES } else { &MEDIA_TYPES[..1] }
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

/// A request header.
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
        let lines: Result<Vec<&str>, _> = parts.headers.get_all(H::NAME).iter().map(HeaderValue::to_str).collect();
        let parsed = match lines.as_deref() {
            Ok([]) => return Ok(Self(None)),
            Ok([value]) => H::parse(value),
            Ok(_) => Err("is given more than once".into()),
            Err(_) => Err("must be ASCII".into()),
        };
        let bad = |detail: Detail| Problem::invalid(vec![FieldError::in_parameter(H::NAME.as_str(), detail)]);
        parsed.map(|value| Self(Some(value))).map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::FutureExt;

    use super::*;
    use crate::http::body::Members;

    #[derive(Debug)]
    struct Anything;

    impl FromJson for Anything {
        fn from_json(_: &mut Members<'_>) -> Option<Self> {
            Some(Self)
        }
    }

    /// Returns why the body `{}` with these headers is rejected.
    fn rejection(method: &Method, headers: &[(HeaderName, &'static str)]) -> Option<Problem> {
        let mut request = Request::new(Body::from("{}"));
        *request.method_mut() = method.clone();
        request
            .headers_mut()
            .extend(headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
        Json::<Anything>::from_request(request, &()).now_or_never().expect("the body is in memory").err()
    }

    #[test]
    fn accepts_only_json_media_types() {
        const MERGE_PATCH: &str = "Application/Merge-Patch+JSON";
        let rejects = |method: &Method, media_type| rejection(method, &[(header::CONTENT_TYPE, media_type)]).is_some();
        for json in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x"]
            .into_iter()
            .chain(["application/json;charset=\"UTF-8\"", "application/json; charset=utf8", "application/json; v=1"])
        {
            for method in [Method::POST, Method::PUT, Method::PATCH] {
                assert!(!rejects(&method, json), "{method} {json}");
            }
        }
        for other in ["", "text/plain", "text/json", "application/jsonp", "application/vnd.api+json", "*/*", "json"] {
            assert!(rejects(&Method::POST, other) && rejects(&Method::PATCH, other), "{other}");
        }
        for encoding in ["latin1", "iso-8859-1", "utf-16", "\"utf-16\"", ""] {
            let media_type: &str = format!("application/json; v=1; Charset={encoding}").leak();
            assert!(rejects(&Method::POST, media_type), "{encoding}");
        }
        assert!(rejection(&Method::POST, &[]).is_some());
        let line = || (header::CONTENT_TYPE, "application/json");
        assert!(rejection(&Method::POST, &[line(), line()]).is_some(), "a repeated header");
        assert!(rejects(&Method::POST, MERGE_PATCH) && !rejects(&Method::PATCH, MERGE_PATCH));
    }

    #[test]
    fn names_the_accepted_media_types() {
        let response = |method| rejection(&method, &[]).expect("no media type").render("");
        let detail = |method| rejection(&method, &[]).expect("no media type").body("").detail;
        const PATCH: &str = "application/json, application/merge-patch+json";
        assert_eq!(detail(Method::POST), "The body must be application/json, in UTF-8");
        assert_eq!(
            detail(Method::PATCH),
            "The body must be application/json or application/merge-patch+json, in UTF-8"
        );
        let header = |method, name: &str| response(method).headers().get(name).cloned();
        assert_eq!(header(Method::PUT, "accept").unwrap(), "application/json");
        assert_eq!(header(Method::POST, "accept").unwrap(), "application/json");
        assert_eq!(header(Method::POST, "accept-post").unwrap(), "application/json");
        assert_eq!(header(Method::PATCH, "accept").unwrap(), PATCH);
        assert_eq!(header(Method::PATCH, "accept-patch").unwrap(), PATCH);
        assert!(header(Method::PATCH, "accept-post").is_none() && header(Method::PUT, "accept-patch").is_none());
    }

    #[test]
    fn rejects_an_encoded_body_and_asks_for_identity() {
        let send = |codings: &[&'static str]| {
            let codings = codings.iter().map(|coding| (header::CONTENT_ENCODING, *coding));
            let media_type = (header::CONTENT_TYPE, "application/json");
            rejection(&Method::POST, &[media_type].into_iter().chain(codings).collect::<Vec<_>>())
        };
        for plain in [&["identity"][..], &["Identity, identity"], &["identity", ""], &[""], &[]] {
            assert!(send(plain).is_none(), "{plain:?}");
        }
        for encoded in [&["gzip"][..], &["br"], &["x"], &["identity, gzip"], &["identity", "deflate"]] {
            let problem = send(encoded).expect("an encoded body");
            assert_eq!(problem.kind(), &UNSUPPORTED_MEDIA_TYPE, "{encoded:?}");
            assert_eq!(problem.render("").headers()["accept-encoding"], "identity", "{encoded:?}");
        }
    }
}
