//! `Idempotency-Key`: how a client that does not know whether its order was placed asks again without ordering twice.
//!
//! As in the IETF draft *The Idempotency-Key HTTP Header Field*: the same key with the same body is the same order.

use std::fmt::Write;

use axum::http::HeaderName;
use chassis::http::body::values::Detail;
use chassis::http::extract::Header;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The key that a client gave its order: 1 to 255 visible characters, in quotes or without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Header for Key {
    const NAME: HeaderName = HeaderName::from_static("idempotency-key");

    fn parse(value: &str) -> Result<Self, Detail> {
        let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let key = quoted.unwrap_or(value);
        let good = (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if good { Ok(Self(key.into())) } else { Err("must be 1 to 255 visible characters".into()) }
    }
}

impl Key {
    /// The key, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What tells one body from another: a digest of its JSON, so that white space, the order of members and the way a
/// number is written do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of this body. Where it holds JSON that cannot be taken apart (numbers beyond all bounds, half
    /// surrogate pairs, a hundred levels) its bytes stand for it.
    pub fn of(body: &[u8]) -> Self {
        let mut text = String::new();
        match serde_json::from_slice(body) {
            Ok(value) => write_canonical(&value, &mut text),
            Err(_) => return Self(Sha256::digest(body).into()),
        }
        Self(Sha256::digest(text).into())
    }

    /// The digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes `value` so that equal JSON is equal text: members by name, numbers by value.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in members {
                let _ = write!(text, "{},", Value::from(name.as_str())); // writing to a string cannot fail
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
            // Below 2^53 a double holds every integer, so 1.0, 1e0 and 1 become the same text.
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
    fn quotes_do_not_belong_to_a_key() {
        assert_eq!(Key::parse("\"abc\""), Key::parse("abc"));
        for bad in ["", "\"\"", "a b", "caf\u{e9}", "a\tb", &"x".repeat(256)] {
            assert!(Key::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Key::parse(&"x".repeat(255)).is_ok());
    }

    #[test]
    fn bodies_are_compared_as_json() {
        let print = |body: &str| Fingerprint::of(body.as_bytes());
        let same = [r#"{"a":1,"b":[1,2.5,"x"]}"#, r#" { "b" : [ 1.0, 25e-1, "\u0078" ], "a" : 1e0 } "#];
        assert_eq!(print(same[0]), print(same[1]));
        for other in [
            r#"{"a":1,"b":[2.5,1,"x"]}"#,
            r#"{"a":"1","b":[1,2.5,"x"]}"#,
            r#"{"a":1,"b":[1,2.5,"x"],"c":null}"#,
            r#"{"a":1,"b":[[1,2.5,"x"]]}"#,
        ] {
            assert_ne!(print(same[0]), print(other), "{other}");
        }
        assert_ne!(print("9007199254740993"), print("9007199254740992"), "beyond doubles, integers stay exact");
        assert_eq!(print("-0.0"), print("0"));
    }
}
