//! The id of a user or of a product.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A whole number from 1 to `i64::MAX`.
///
/// Its JSON is an integer, which may be written `7`, `7.0` or `7e0`. It is also read from a string of decimal digits, because clients of one tutorial keep ids in
/// strings. `0`, signs, leading zeros and fractions are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(i64);

impl Id {
    /// Returns the id with this number. `None` if the number is less than 1.
    pub const fn new(number: i64) -> Option<Self> {
        if number >= 1 { Some(Self(number)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `i64::from_str` also accepts a sign and leading zeros, but each user and product must have exactly one path.
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        let number = if canonical { text.parse().ok() } else { None };
        number.and_then(Self::new).ok_or("must be an integer from 1 to 9223372036854775807")
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;

        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 1 to 9223372036854775807")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Id, E> {
                Id::new(number).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                let id = i64::try_from(number).ok().and_then(Id::new);
                id.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            /// `7.0` and `7e0` are integers too. From 2^53 on, a double may stand for another integer than the text.
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Id, E> {
                const LIMIT: f64 = 9_007_199_254_740_992.0; // 2^53
                let whole = (number.fract() == 0.0 && number.abs() < LIMIT).then_some(number as i64);
                whole.and_then(Id::new).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(IdVisitor)
    }
}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(1))
            .maximum(Some(i64::MAX))
            .examples([1])
            .into()
    }
}

impl ToSchema for Id {}

/// The schema of an id inside a request body, where a string of digits does as well.
pub fn lenient_schema() -> impl Into<RefOr<Schema>> {
    let digits = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[1-9][0-9]{0,17}$"));
    OneOfBuilder::new().item(Id::schema()).item(digits).examples([1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_id_from_a_whole_number_or_from_a_string_of_digits() {
        for json in ["7", "7.0", "7e0", "0.7e1", "\"7\""] {
            assert_eq!(serde_json::from_str::<Id>(json).expect(json), Id(7));
        }
        assert_eq!(serde_json::to_string(&Id(7)).expect("an id is JSON"), "7");
    }

    #[test]
    fn rejects_other_values_as_an_id() {
        let bad = [
            "0",
            "-1",
            "1.5",
            "0.0",
            "-1.0",
            "9007199254740993.0",
            "1e300",
            "9223372036854775808",
            "true",
            "null",
            "[1]",
            "{}",
        ];
        let quoted = ["\"\"", "\"0\"", "\"01\"", "\"+1\"", "\"-1\"", "\" 1\"", "\"1.0\"", "\"9223372036854775808\""];
        for json in bad.into_iter().chain(quoted) {
            let read = serde_json::from_str::<Id>(json);
            assert!(read.is_err(), "{json} was read as {read:?}");
        }
    }
}
