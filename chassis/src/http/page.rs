//! Lists in pages: `?limit=` and `?after=`, and a `Link` to the next page (RFC 8288).
//!
//! A page starts after a key, not at an offset. So every page costs the same, and rows that are inserted or deleted
//! meanwhile make no other row appear twice or disappear.

use std::fmt;
use std::str::FromStr;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::response::Response;
use serde::Serialize;
use url::form_urlencoded;

use crate::http::body::QueryParams;
use crate::http::entity::Entity;

/// Maximum rows of a page.
pub const MAX_LIMIT: usize = 1000;
/// Rows of a page if the client sets no limit.
pub const DEFAULT_LIMIT: usize = 100;

/// The part of a list that a client wants, by ascending key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<K> {
    /// Only rows after this key.
    pub after: Option<K>,
    /// Maximum number of rows: 1 to [`MAX_LIMIT`].
    pub limit: usize,
}

impl<K: FromStr<Err: fmt::Display>> Page<K> {
    /// Reads `limit` and `after` from a query.
    pub fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let limit = params.optional("limit", parse_limit);
        let after = params.optional("after", |text| text.parse().map_err(|error: K::Err| error.to_string()));
        Some(Self { after: after?, limit: limit?.unwrap_or(DEFAULT_LIMIT) })
    }
}

/// The rows of one page, and whether more follow.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// The rows, by ascending key.
    pub rows: Vec<T>,
    /// Whether the list continues after them.
    pub more: bool,
}

impl<T> Rows<T> {
    /// Takes the first `limit` of `rows`. One row more, if there is one, shows that the list continues.
    pub fn cut(rows: impl Iterator<Item = T>, limit: usize) -> Self {
        let mut page = Vec::with_capacity(limit + 1);
        rows.take(limit + 1).for_each(|row| page.push(row)); // faster than `extend` for a chain of iterators
        let more = page.len() > limit;
        page.truncate(limit);
        Self { rows: page, more }
    }

    /// Wraps the rows of a list that has only one page.
    pub fn all(rows: Vec<T>) -> Self {
        Self { rows, more: false }
    }

    /// Returns the `Link` header to the next page of `uri`, or `None` if this is the last page.
    ///
    /// The link keeps the query of `uri`, except that it starts after the last row's key.
    fn next_link<'a, K: fmt::Display>(
        &'a self,
        uri: &Uri,
        key: impl Fn(&'a T) -> K,
    ) -> Option<(HeaderName, HeaderValue)> {
        let last = self.rows.last().filter(|_| self.more)?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        let current = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        query.extend_pairs(current.filter(|(name, _)| name != "after"));
        query.append_pair("after", &key(last).to_string());
        next_link(uri.path(), &query.finish())
    }
}

impl<T: Serialize> Rows<Entity<T>> {
    /// Returns the response to `GET uri`: the entities as a JSON array, and a `Link` to the next page if more follow.
    pub fn respond<K: fmt::Display>(&self, uri: &Uri, key: impl Fn(&T) -> K) -> Response {
        let bytes = self.rows.iter().map(|row| row.json().len() + ",".len()).sum::<usize>();
        let mut json = Vec::with_capacity(bytes + "[]".len());
        json.push(b'[');
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            json.extend_from_slice(row.json());
        }
        json.push(b']');
        let mut response = Response::new(Body::from(json));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.next_link(uri, |row| key(row)));
        response
    }
}

/// Returns the `Link` header to the next page, or `None` if path and query are not a valid header value.
pub fn next_link(path: &str, query: &str) -> Option<(HeaderName, HeaderValue)> {
    let link = HeaderValue::try_from(["<", path, "?", query, ">; rel=\"next\""].concat());
    link.ok().map(|link| (header::LINK, link))
}

/// Returns the query of the next page from a `Link` header, or `None` if the header has another relation or no query.
pub fn next_query(link: &HeaderValue) -> Option<&str> {
    let (target, rest) = link.to_str().ok()?.strip_prefix('<')?.split_once('>')?;
    let (_, query) = target.split_once('?')?;
    rest.contains("rel=\"next\"").then_some(query)
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let only_digits = text.bytes().all(|byte| byte.is_ascii_digit()); // `parse` accepts "+1"
    limit.filter(|_| only_digits).ok_or_else(|| format!("must be an integer from 1 to {MAX_LIMIT}"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;
    use crate::http::body::{FromQuery, read_query};

    impl FromQuery for Page<u32> {
        fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
            Self::from_query(params)
        }
    }

    #[test]
    fn has_100_rows_by_default() {
        for (query, after, limit) in [("", None, 100), ("limit=1", None, 1), ("after=7&limit=1000", Some(7), 1000)] {
            assert_eq!(read_query::<Page<u32>>(query).unwrap(), Page { after, limit }, "{query}");
        }
    }

    #[test]
    fn rejects_a_limit_that_is_not_an_integer_from_1_to_1000() {
        for limit in ["", "0", "1001", "-1", "%2B1", "+1", "1.5", "1e2", "0x10", "abc", "99999999999999999999"] {
            let problem = read_query::<Page<u32>>(&format!("limit={limit}")).expect_err(limit);
            assert_eq!(problem.body("").errors[0].parameter.as_deref(), Some("limit"), "{limit}");
        }
    }

    #[test]
    fn reports_more_rows_only_after_a_full_page() {
        let cut = |rows: u32, limit| {
            let cut = Rows::cut(0..rows, limit);
            (cut.rows.len(), cut.more)
        };
        assert_eq!([cut(0, 2), cut(1, 2), cut(2, 2), cut(3, 2)], [(0, false), (1, false), (2, false), (2, true)]);
    }

    fn link(uri: &str, rows: &Rows<Entity<u32>>) -> Option<String> {
        let response = rows.respond(&uri.parse().unwrap(), |row| *row);
        response.headers().get(header::LINK).map(|link| link.to_str().unwrap().to_owned())
    }

    #[test]
    fn joins_the_json_of_the_rows() {
        for (rows, json) in [(vec![], "[]"), (vec!["a"], r#"["a"]"#), (vec!["a", "b"], r#"["a","b"]"#)] {
            let rows = Rows::all(rows.into_iter().map(Entity::new).collect());
            let body = rows.respond(&"/rows".parse().unwrap(), |row| *row).into_body().collect();
            let body = body.now_or_never().expect("the whole body is in memory").unwrap();
            assert_eq!(body.to_bytes(), json);
        }
    }

    #[test]
    fn links_to_the_rows_after_the_last_one_and_keeps_the_rest_of_the_query() {
        let rows = || [3, 7].map(Entity::new).to_vec();
        let more = Rows { rows: rows(), more: true };
        for (uri, target) in [
            ("/rows", "/rows?after=7"),
            ("/api/rows?limit=2", "/api/rows?limit=2&after=7"),
            ("/rows?after=2&limit=2&name=%C3%A9%26%3E+x", "/rows?limit=2&name=%C3%A9%26%3E+x&after=7"),
            ("/rows?name={a|b}&x", "/rows?name=%7Ba%7Cb%7D&x=&after=7"),
        ] {
            assert_eq!(link(uri, &more), Some(format!("<{target}>; rel=\"next\"")), "{uri}");
        }
        assert_eq!(link("/rows?limit=2", &Rows::all(rows())), None);
        assert_eq!(link("/rows", &Rows { rows: vec![], more: true }), None);
    }

    #[test]
    fn reads_the_query_back_from_a_link() {
        let (_, link) = next_link("/rows", "limit=2&after=7").unwrap();
        assert_eq!(next_query(&link), Some("limit=2&after=7"));
        for bad in ["", "</rows?after=7>", "</rows?after=7>; rel=\"prev\"", "</rows>; rel=\"next\"", "/rows?after=7"] {
            assert_eq!(next_query(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }
}
