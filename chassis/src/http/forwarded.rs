//! `X-Forwarded-Prefix`: the path that a proxy in front of the service has stripped.
//!
//! The service puts it before every path that clients will request next. A client that sends the header itself changes only
//! its own response. The value is a path, so it cannot lead to another host.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const MAX_LENGTH: usize = 200;

/// The path that a proxy has stripped, without a slash at its end: `/shop`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

impl Prefix {
    /// Returns the prefix of a request. `None` if there is none, or several, or if it is not a plain path.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(X_FORWARDED_PREFIX).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let path = line.to_str().ok()?.trim_end_matches('/');
        let is_plain = |segment: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
        };
        let is_valid = path.len() <= MAX_LENGTH && path.strip_prefix('/')?.split('/').all(is_plain);
        is_valid.then(|| Self(path.to_owned()))
    }

    /// Returns the path as clients of the proxy know it.
    pub(crate) fn before(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// Puts the prefix before the paths in `Location` and `Link`.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        for (name, start) in [(header::LOCATION, ""), (header::LINK, "<")] {
            let path = headers.get(&name).and_then(|value| value.to_str().ok()?.strip_prefix(start));
            let path = path.filter(|path| path.starts_with('/') && !path.starts_with("//"));
            let value = path.and_then(|path| HeaderValue::try_from(format!("{start}{}", self.before(path))).ok());
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(lines: &[&str]) -> Option<String> {
        let line = |line: &&str| (X_FORWARDED_PREFIX, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        Prefix::from_headers(&lines.iter().map(line).collect()).map(|Prefix(path)| path)
    }

    #[test]
    fn accepts_only_a_plain_path() {
        for (sent, path) in [("/shop", "/shop"), ("/shop/", "/shop"), ("/a/B-1._~/c", "/a/B-1._~/c")] {
            assert_eq!(prefix(&[sent]).as_deref(), Some(path), "{sent}");
        }
        let long = format!("/{}", "x".repeat(MAX_LENGTH));
        for bad in [
            "",
            "/",
            "//",
            "shop",
            "//evil.example",
            "/a//b",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a b",
            "/a?b",
            "/a#b",
            "/a>b",
            "/a%2fb",
            "/a\"b",
            "/a\\b",
            "/caf\u{e9}",
            "https://evil.example",
            "/a, /b",
            &long,
        ] {
            assert_eq!(prefix(&[bad]), None, "{bad}");
        }
        assert_eq!(prefix(&["/a", "/b"]), None);
    }

    #[test]
    fn changes_only_paths_of_this_service() {
        let applied = |name: HeaderName, value: &str| {
            let mut headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_str(value).unwrap())]);
            Prefix("/shop".to_owned()).apply(&mut headers);
            headers[name].to_str().unwrap().to_owned()
        };
        assert_eq!(applied(header::LOCATION, "/api/users/1"), "/shop/api/users/1");
        assert_eq!(applied(header::LINK, "</users?after=1>; rel=\"next\""), "</shop/users?after=1>; rel=\"next\"");
        for other in ["https://other.example/x", "//other.example/x", "docs/"] {
            assert_eq!(applied(header::LOCATION, other), other);
        }
    }
}
