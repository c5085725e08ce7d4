//! The header `Idempotency-Key`: a client that does not know whether its order was placed can safely send it again.
//!
//! As in the IETF draft *The Idempotency-Key HTTP Header Field*, the same key with the same body returns the same order.

use std::fmt::Write;

use axum::http::HeaderName;
use chassis::http::body::values::Detail;
use chassis::http::extract::Header;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The idempotency key of a request: 1 to 255 visible ASCII characters, with or without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Header for Key {
    const NAME: HeaderName = HeaderName::from_static("idempotency-key");

    fn parse(value: &str) -> Result<Self, Detail> {
        let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let key = quoted.unwrap_or(value);
        let is_valid = (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if is_valid { Ok(Self(key.into())) } else { Err("must be 1 to 255 visible characters".into()) }
    }
}

impl Key {
    /// Returns the key without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key as the store keeps it: it differs from the equal keys of all other callers. `scope` is
    /// [`Caller::scope`](chassis::auth::Caller::scope): while sign-in is off there is none, and the key stays as it is.
    ///
    /// The blank keeps scoped keys apart from the others, because no client can send one in a key.
    #[must_use]
    pub fn scoped(self, scope: Option<&str>) -> Self {
        let Some(scope) = scope else { return self };
        let digest = Sha256::digest(scope);
        let mut text = String::with_capacity(2 * digest.len() + " ".len() + self.0.len());
        digest.iter().for_each(|byte| _ = write!(text, "{byte:02x}")); // writing to a String cannot fail
        Self((text + " " + &self.0).into())
    }
}

/// A digest of a JSON body. White space, the order of members and the notation of numbers do not matter. Of a repeated member the
/// last one counts, and of an integer beyond 64 bits its nearest double. Bodies that differ only there order the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a body.
    ///
    /// serde_json cannot parse some valid JSON: numbers above the range of `f64`, lone surrogates, more than 128
    /// levels. The fingerprint of such a body is a digest of its bytes.
    pub fn of(body: &[u8]) -> Self {
        let mut text = String::new();
        match serde_json::from_slice(body) {
            Ok(value) => write_canonical(&value, &mut text),
            Err(_) => return Self(Sha256::digest(body).into()),
        }
        Self(Sha256::digest(text).into())
    }

    /// Returns the digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes equal JSON values as equal text: members are sorted by name, numbers are written by value.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in members {
                let _ = write!(text, "{},", Value::from(name.as_str())); // writing to a String cannot fail
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Number(number) => {
            // Below 2^53 an f64 is exact for every integer, so 1.0, 1e0 and 1 become the same text.
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0);
            let _ = match whole {
                Some(whole) => write!(text, "{}", whole as i64),
                None => write!(text, "{number}"),
            };
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {
            let _ = write!(text, "{value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_quotes_and_rejects_bad_keys() {
        assert_eq!(Key::parse("\"abc\""), Key::parse("abc"));
        for bad in ["", "\"\"", "a b", "caf\u{e9}", "a\tb", &"x".repeat(256)] {
            assert!(Key::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Key::parse(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn gives_equal_keys_of_two_callers_different_texts() {
        let key = |scope| Key::parse("abc").unwrap().scoped(scope);
        assert_eq!(key(None), Key::parse("abc").unwrap());
        assert_eq!(key(Some("a")), key(Some("a")));
        assert_ne!(key(Some("a")), key(Some("b")));
        assert!(Key::parse(key(Some("a")).as_str()).is_err(), "no client can send it");
        assert_eq!(key(Some("a")).as_str().len(), 64 + " abc".len());
    }

    #[test]
    fn compares_bodies_as_json() {
        let fingerprint = |body: &str| Fingerprint::of(body.as_bytes());
        let same = [r#"{"a":1,"b":[1,2.5,"x"]}"#, r#" { "b" : [ 1.0, 25e-1, "\u0078" ], "a" : 1e0 } "#];
        assert_eq!(fingerprint(same[0]), fingerprint(same[1]));
        for other in [
            r#"{"a":1,"b":[2.5,1,"x"]}"#,
            r#"{"a":"1","b":[1,2.5,"x"]}"#,
            r#"{"a":1,"b":[1,2.5,"x"],"c":null}"#,
            r#"{"a":1,"b":[[1,2.5,"x"]]}"#,
        ] {
            assert_ne!(fingerprint(same[0]), fingerprint(other), "{other}");
        }
        assert_ne!(fingerprint("9007199254740993"), fingerprint("9007199254740992"), "large integers stay exact");
        assert_eq!(fingerprint("-0.0"), fingerprint("0"));
    }
}
