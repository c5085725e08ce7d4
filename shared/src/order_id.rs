//! The id of an order, and of the reservation that holds its stock.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A UUID in hyphenated form, the only form that is accepted. It is written in lower case.
///
/// order-service assigns version 7, so later orders sort after earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Uuid, example = "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b")]
pub struct OrderId(pub Uuid);

impl OrderId {
    /// The lowest id.
    pub const MIN: Self = Self(Uuid::nil());
    /// The highest id.
    pub const MAX: Self = Self(Uuid::max());
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for OrderId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The uuid crate would also accept braces, URNs and digits without hyphens.
        let hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
        let uuid = if hyphenated { Uuid::try_parse(text).ok() } else { None };
        uuid.map(Self).ok_or("must be a UUID")
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>); // owned only if the JSON string has escapes

        let Text(text) = Text::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_the_hyphenated_form_with_or_without_json_escapes() {
        let id: OrderId = "01a2003e-e714-710e-a057-b9de0b11d83b".parse().unwrap();
        let written = serde_json::to_string(&id).unwrap();
        assert_eq!(written, format!("\"{id}\""));
        for json in
            [&*written, "\"01A2003E-E714-710E-A057-B9DE0B11D83B\"", r#""\u00301a2003e-e714-710e-a057-b9de0b11d83b""#]
        {
            assert_eq!(serde_json::from_str::<OrderId>(json).ok(), Some(id), "{json}");
        }
        for bad in
            ["7", "null", "\"\"", "\"01a2003ee714710ea057b9de0b11d83b\"", "\"{01a2003e-e714-710e-a057-b9de0b11d83b}\""]
        {
            assert!(serde_json::from_str::<OrderId>(bad).is_err(), "{bad}");
        }
    }
}
