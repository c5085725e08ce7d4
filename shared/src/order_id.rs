//! The id of an order, and of the reservation that holds its stock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A UUID; order-service makes version 7, so that later orders sort behind earlier ones. It is read and written in the
/// hyphenated form only, which `Display` has in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
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

impl TryFrom<String> for OrderId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<OrderId> for String {
    fn from(id: OrderId) -> Self {
        id.to_string()
    }
}
