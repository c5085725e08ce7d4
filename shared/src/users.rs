//! Users on the wire.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Id;

/// A user as user-service returns it, without a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Assigned by user-service, from 1.
    pub id: Id,
    /// The name that people see.
    #[schema(example = "John Doe")]
    pub name: String,
    /// The name of the account, if the user has one. Unique; case does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "john")]
    pub username: Option<String>,
    /// Unique; case does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "john@example.com")]
    pub email: Option<String>,
    /// The time when the user was added.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}
