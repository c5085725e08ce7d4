//! Lists, a page at a time: `?limit=` and `?after=`, and the `Link` to the next page (RFC 8288).
//!
//! A page starts behind a key, never at an offset: it costs the same wherever it is in the list, and rows that come or
//! go meanwhile neither hide another row nor show one twice.

use std::fmt;
use std::str::FromStr;

use axum::body::Body;
use axum::http::{HeaderValue, Uri, header};
use axum::response::Response;
use serde::Serialize;
use url::form_urlencoded;

use crate::http::body::QueryParams;
use crate::http::entity::Entity;
use crate::http::json::{ToJson, Writer};
use crate::problem::Problem;

/// Most rows of a page.
pub const MAX_LIMIT: usize = 1000;
/// Rows of a page when the client does not say.
pub const DEFAULT_LIMIT: usize = 100;
/// About how many bytes a row is: how much room a page gets at once.
const ROW_SIZE: usize = 128;

/// Which rows of a list, by ascending key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<K> {
    /// Only rows behind this key.
    pub after: Option<K>,
    /// At most so many of them: 1 to [`MAX_LIMIT`].
    pub limit: usize,
}

/// Rows of a list, and whether more follow.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// The rows, oldest first.
    pub rows: Vec<T>,
    /// Whether the list goes on behind them.
    pub more: bool,
}

impl<K: FromStr<Err: fmt::Display>> Page<K> {
    /// Reads `limit` and `after` from a query.
    pub fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
        let limit = params.optional("limit", parse_limit);
        let after = params.optional("after", |text| text.parse().map_err(|error: K::Err| error.to_string()));
        Some(Self { after: after?, limit: limit?.unwrap_or(DEFAULT_LIMIT) })
    }
}

impl<T> Rows<T> {
    /// The first `limit` of `rows`, which may be one more than that, to see whether more follow.
    pub fn cut(rows: impl Iterator<Item = T>, limit: usize) -> Self {
        let mut page = Vec::with_capacity(limit + 1);
        rows.take(limit + 1).for_each(|row| page.push(row)); // quicker through a chain of iterators than `extend`
        let more = page.len() > limit;
        page.truncate(limit);
        Self { rows: page, more }
    }

    /// All of a list.
    pub fn all(rows: Vec<T>) -> Self {
        Self { rows, more: false }
    }

    /// The answer to `GET uri`: the rows as `show` shows them, and a `Link` behind the last one's key if more follow.
    ///
    /// # Errors
    /// If a row cannot be JSON.
    pub fn answer<'a, V: ToJson + 'a, K: fmt::Display>(
        &'a self,
        uri: &Uri,
        show: impl Fn(&'a T) -> &'a V,
        key: impl Fn(&'a T) -> K,
    ) -> Result<Response, Problem> {
        let mut json = Writer::with_capacity(ROW_SIZE * self.rows.len());
        json.raw(b"[");
        for (at, row) in self.rows.iter().enumerate() {
            if at > 0 {
                json.raw(b",");
            }
            show(row).to_json(&mut json).map_err(Problem::internal)?;
        }
        json.raw(b"]");
        let mut response = Response::new(Body::from(json.finish()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(last) = self.rows.last().filter(|_| self.more) {
            let mut query = form_urlencoded::Serializer::new(String::new());
            let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
            query.extend_pairs(given.filter(|(name, _)| name != "after"));
            query.append_pair("after", &key(last).to_string());
            response.headers_mut().extend(next_link(uri.path(), &query.finish()));
        }
        Ok(response)
    }
}

impl<T: Serialize> Rows<Entity<T>> {
    /// Returns the response to `GET uri`: the entities as a JSON array, and a `Link` to the next page if more follow.
    pub fn respond<K: fmt::Display>(&self, uri: &Uri, key: impl Fn(&T) -> K) -> Response {
        let bytes = self.rows.iter().map(|row| row.json().len() + 1).sum::<usize>();
        let mut json = Vec::with_capacity(bytes + 2);
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
        if let Some(last) = self.rows.last().filter(|_| self.more) {
            let mut query = form_urlencoded::Serializer::new(String::new());
            let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
            query.extend_pairs(given.filter(|(name, _)| name != "after"));
            query.append_pair("after", &key(last).to_string());
            response.headers_mut().extend(next_link(uri.path(), &query.finish()));
        }
        response
    }
}

/// The header that points to the next page.
pub fn next_link(path: &str, query: &str) -> Option<(header::HeaderName, HeaderValue)> {
    let link = HeaderValue::try_from(["<", path, "?", query, ">; rel=\"next\""].concat());
    link.ok().map(|link| (header::LINK, link))
}

/// The query of the page that a `Link` header points to, if it points to a next one.
pub fn next_query(link: &HeaderValue) -> Option<&str> {
    let (target, rest) = link.to_str().ok()?.strip_prefix('<')?.split_once('>')?;
    let (_, query) = target.split_once('?')?;
    rest.contains("rel=\"next\"").then_some(query)
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    limit.filter(|_| digits).ok_or_else(|| format!("must be an integer from 1 to {MAX_LIMIT}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::{FromQuery, read_query};

    impl FromQuery for Page<u32> {
        fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
            Self::from_query(params)
        }
    }

    #[test]
    fn a_page_has_a_hundred_rows_unless_the_client_says_otherwise() {
        for (query, after, limit) in [("", None, 100), ("limit=1", None, 1), ("after=7&limit=1000", Some(7), 1000)] {
            assert_eq!(read_query::<Page<u32>>(query).unwrap(), Page { after, limit }, "{query}");
        }
    }

    #[test]
    fn a_limit_out_of_range_is_refused() {
        for limit in ["", "0", "1001", "-1", "%2B1", "+1", "1.5", "1e2", "0x10", "abc", "99999999999999999999"] {
            let refused = read_query::<Page<u32>>(&format!("limit={limit}")).expect_err(limit);
            assert_eq!(refused.body("").errors[0].parameter.as_deref(), Some("limit"), "{limit}");
        }
    }

    #[test]
    fn more_follows_only_behind_a_full_page() {
        let cut = |rows: u32, limit| {
            let cut = Rows::cut(0..rows, limit);
            (cut.rows.len(), cut.more)
        };
        assert_eq!([cut(0, 2), cut(1, 2), cut(2, 2), cut(3, 2)], [(0, false), (1, false), (2, false), (2, true)]);
    }

    fn link(uri: &str, rows: &Rows<u32>) -> Option<String> {
        let response = rows.answer(&uri.parse().unwrap(), |row| row, |row| row).unwrap();
        response.headers().get(header::LINK).map(|link| link.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_link_leads_behind_the_last_row_and_keeps_the_rest_of_the_query() {
        let more = Rows { rows: vec![3, 7], more: true };
        for (uri, target) in [
            ("/rows", "/rows?after=7"),
            ("/api/rows?limit=2", "/api/rows?limit=2&after=7"),
            ("/rows?after=2&limit=2&name=%C3%A9%26%3E+x", "/rows?limit=2&name=%C3%A9%26%3E+x&after=7"),
            ("/rows?name={a|b}&x", "/rows?name=%7Ba%7Cb%7D&x=&after=7"),
        ] {
            assert_eq!(link(uri, &more), Some(format!("<{target}>; rel=\"next\"")), "{uri}");
        }
        assert_eq!(link("/rows?limit=2", &Rows::all(vec![3, 7])), None);
        assert_eq!(link("/rows", &Rows { rows: vec![], more: true }), None);
    }

    #[test]
    fn a_link_is_read_as_it_is_written() {
        let (_, link) = next_link("/rows", "limit=2&after=7").unwrap();
        assert_eq!(next_query(&link), Some("limit=2&after=7"));
        for bad in ["", "</rows?after=7>", "</rows?after=7>; rel=\"prev\"", "</rows>; rel=\"next\"", "/rows?after=7"] {
            assert_eq!(next_query(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }
}
