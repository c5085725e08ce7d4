//! The id of an order, and of the reservation that holds its stock.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A UUID; order-service makes version 7, so that later orders sort behind earlier ones. It is read and written in the
/// hyphenated form only, which `Display` has in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Uuid, example = "019a2b3c-4d5e-7f60-8a9b-0c1d2e3f4a5b")]
pub struct OrderId(pub Uuid);

impl OrderId {
    /// Before all others.
    pub const MIN: Self = Self(Uuid::nil());
    /// Behind all others.
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
        // The uuid crate also reads braces, URNs and digits without hyphens.
        let hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
        let uuid = if hyphenated { Uuid::try_parse(text).ok() } else { None };
        uuid.map(Self).ok_or("must be a UUID")
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>); // borrowed unless it has escapes in it

        let Text(text) = Text::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_in_its_one_form_however_json_writes_it() {
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
