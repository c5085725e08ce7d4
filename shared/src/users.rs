//! Users, as they cross the wire.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::Id;

/// A user as user-service answers it. There is no password in it, and no way to put one in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Given by user-service, from 1.
    pub id: Id,
    /// What people see.
    #[schema(example = "John Doe")]
    pub name: String,
    /// The name of the account, if it is one; unique, compared without case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "john")]
    pub username: Option<String>,
    /// Unique, compared without case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "john@example.com")]
    pub email: Option<String>,
    /// When the user was added.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.123456Z")]
    pub created_at: Timestamp,
}

/// The body of `POST /users`.
#[derive(Clone, Default, Serialize)]
#[serde(transparent)]
pub struct CreateUser(pub UserMembers);

impl PartialSchema for CreateUser {
    /// The members, and that one of two is needed, which no attribute can say.
    fn schema() -> RefOr<Schema> {
        let mut schema = UserMembers::schema();
        if let RefOr::T(Schema::Object(members)) = &mut schema {
            let has = |name: &str| json!({"required": [name], "properties": {name: {"type": "string"}}});
            // utoipa writes out what it takes for an extension as it is.
            members.extensions = Some([("anyOf", json!([has("name"), has("username")]))].into_iter().collect());
        }
        schema
    }
}

impl ToSchema for CreateUser {}

/// The body of `POST /users`: `{name}`, or `{username, email, password}`, or all four.
///
/// `name` defaults to `username`, so one of the two is needed.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct UserMembers {
    /// What people see: 1 to 200 characters, no control characters.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Ada Lovelace"
    )]
    pub name: Option<String>,
    /// 1 to 64 characters, no control characters.
    #[schema(min_length = 1, max_length = 64, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", example = "ada")]
    pub username: Option<String>,
    /// One `@` with something on both sides, no white space, at most 254 characters.
    #[schema(
        min_length = 3,
        max_length = 254,
        pattern = "^[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+@[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "ada@example.com"
    )]
    pub email: Option<String>,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128, example = "correct horse battery staple")]
    pub password: Option<String>,
}

/// The body of `PATCH /users/{id}`: the members to change, by the same rules as [`CreateUser`]; the rest stays.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct UpdateUser {
    /// What people see: 1 to 200 characters, no control characters.
    #[schema(
        nullable = false,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Ada King"
    )]
    pub name: Option<String>,
    /// 1 to 64 characters, no control characters.
    #[schema(
        nullable = false,
        min_length = 1,
        max_length = 64,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "ada"
    )]
    pub username: Option<String>,
    /// One `@` with something on both sides, no white space, at most 254 characters.
    #[schema(
        nullable = false,
        min_length = 3,
        max_length = 254,
        pattern = "^[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+@[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "ada@example.com"
    )]
    pub email: Option<String>,
    /// 8 to 128 characters.
    #[schema(nullable = false, min_length = 8, max_length = 128, example = "correct horse battery staple")]
    pub password: Option<String>,
}
