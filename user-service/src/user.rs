//! Every rule about a user.

use std::borrow::Cow;
use std::iter::once;

use chassis::http::body::values::{Detail, is_invisible, text};
use chassis::http::body::{FromJson, Members};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use shared::Id;
use shared::users::User;
use unicode_normalization::UnicodeNormalization;
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::password::{Password, PasswordHash};

/// A user as stores keep it. Its JSON is the JSON of [`User`], so it never contains the password.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct UserRecord {
    /// What clients see.
    pub user: User,
    /// The hash of the password, if the user has one.
    #[serde(skip)]
    pub password: Option<PasswordHash>,
    /// Starts at 1, and rises by 1 with each change. An update can name the version that it is based on.
    #[serde(skip)]
    pub version: i64,
}

/// The body of `POST /users`: `{name}`, or `{username, email, password}`, or all four. By default `name` is the username.
#[derive(Default)]
pub struct CreateUser {
    /// See [`UpdateUser::name`].
    pub name: String,
    /// See [`UpdateUser::username`].
    pub username: Option<String>,
    /// See [`UpdateUser::email`].
    pub email: Option<String>,
    /// See [`UpdateUser::password`].
    pub password: Option<Password>,
}

impl FromJson for CreateUser {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.optional("name", name);
        let username = body.optional("username", username);
        let email = body.optional("email", email);
        let password = body.optional("password", Password::parse);
        if let (Some(None), Some(None)) = (&name, &username) {
            body.reject("name", "is required, or a username in its place");
        }
        let (name, username) = (name?, username?);
        let name = name.or_else(|| username.clone())?;
        Some(Self { name, username, email: email?, password: password? })
    }
}

impl CreateUser {
    /// Returns a new user with this name and no account.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Returns the new user with the id that the store assigns.
    pub fn into_record(self, id: Id, password: Option<PasswordHash>, created_at: Timestamp) -> UserRecord {
        let Self { name, username, email, password: _ } = self;
        UserRecord { user: User { id, name, username, email, created_at }, password, version: 1 }
    }
}

impl ToSchema for CreateUser {}

impl PartialSchema for CreateUser {
    /// Returns the schema of [`UpdateUser`] with two differences: `name` may be `null` too, and `name` or `username` is
    /// required. A member that is `null` counts as absent.
    fn schema() -> RefOr<Schema> {
        let mut schema = UpdateUser::schema();
        let RefOr::T(Schema::Object(body)) = &mut schema else { return schema };
        body.description = Some(
            "The body of `POST /users`: `{name}`, or `{username, email, password}`, or all four.\n\n\
             `name` or `username` is required. Without `name`, the name is the username."
                .to_owned(),
        );
        for (name, member) in &mut body.properties {
            let RefOr::T(Schema::Object(member)) = member else { continue };
            member.schema_type = SchemaType::from_iter([Type::String, Type::Null]);
            if name == "name" {
                member.example = Some(json!("Ada Lovelace"));
            }
        }
        let has = |name: &str| json!({"required": [name], "properties": {name: {"type": "string"}}});
        // utoipa has no `anyOf` for an object, but writes an extension of any name as it is.
        body.extensions = Some([("anyOf", json!([has("name"), has("username")]))].into_iter().collect());
        schema
    }
}

/// The body of `PATCH /users/{id}`, a JSON Merge Patch: the members to change. The others stay as they are.
///
/// `null` removes a username, an e-mail or a password. A name cannot be removed.
#[derive(ToSchema)]
pub struct UpdateUser {
    /// The name that people see: 1 to 200 characters, not blank, no control characters.
    #[schema(
        nullable = false,
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Ada King"
    )]
    pub name: Option<String>,
    /// The name of the account: 1 to 64 characters, stored in Unicode NFC. Unique in any case and any width of letters.
    ///
    /// By RFC 8265 it has no control or invisible characters, no compatibility characters such as ligatures, and no white space
    /// except single spaces inside.
    #[schema(
        value_type = Option<String>,
        min_length = 1,
        max_length = 64,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "ada"
    )]
    pub username: Option<Option<String>>,
    /// Unique in any case: one `@` with text on both sides, no white space or invisible characters, at most 254 characters.
    #[schema(
        value_type = Option<String>,
        min_length = 3,
        max_length = 254,
        pattern = "^[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+@[^@\\s\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "ada@example.com"
    )]
    pub email: Option<Option<String>>,
    /// 8 to 128 characters. No response contains it.
    #[schema(
        value_type = Option<String>,
        min_length = 8,
        max_length = 128,
        example = "correct horse battery staple"
    )]
    pub password: Option<Option<Password>>,
}

impl FromJson for UpdateUser {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.patch("name", name);
        let username = body.removable("username", username);
        let email = body.removable("email", email);
        let password = body.removable("password", Password::parse);
        Some(Self { name: name?, username: username?, email: email?, password: password? })
    }
}

impl UpdateUser {
    /// Changes the members of `record` that are given, and raises its version. `password` is the hash of the new password, or
    /// `Some(None)` if the password is removed.
    pub fn apply(&self, record: &mut UserRecord, password: Option<&Option<PasswordHash>>) {
        let user = &mut record.user;
        if let Some(name) = &self.name {
            user.name.clone_from(name);
        }
        if let Some(username) = &self.username {
            user.username.clone_from(username);
        }
        if let Some(email) = &self.email {
            user.email.clone_from(email);
        }
        if let Some(password) = password {
            record.password.clone_from(password);
        }
        record.version += 1;
    }
}

/// Returns the form in which usernames and e-mails are compared: in one width, in lower case, in one Unicode form (NFC).
///
/// This is the `UsernameCaseMapped` profile of RFC 8265. In addition, both forms of the small sigma count as one letter.
pub fn case_fold(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        return name.into(); // the usual case, without an allocation
    }
    if name.is_ascii() {
        return name.to_ascii_lowercase().into();
    }
    map_width(name).to_lowercase().replace('ς', "σ").nfc().collect()
}

/// Replaces full-width and half-width characters by the usual ones (RFC 8265, section 3.3.1). Returns NFC.
fn map_width(name: &str) -> String {
    let is_wide_or_narrow = |c| matches!(c, '\u{3000}' | '\u{ff00}'..='\u{ffef}');
    let mut mapped = String::with_capacity(name.len());
    for c in name.chars() {
        if is_wide_or_narrow(c) { mapped.extend(once(c).nfkc()) } else { mapped.push(c) }
    }
    mapped.nfc().collect()
}

// The limits of these rules are also in the schema of `UpdateUser`.

fn name(name: String) -> Result<String, Detail> {
    text(1..=200)(name)
}

/// Rejects a username with characters that make two names look alike (RFC 8265).
///
/// These are invisible characters, characters with a compatibility mapping, such as ligatures, and white space. Single
/// spaces inside are accepted.
pub(crate) fn username(username: String) -> Result<String, Detail> {
    let username = text(1..=64)(username.nfc().collect())?;
    if username.is_ascii() && !username.contains(' ') {
        return Ok(username); // the usual case; `text` has rejected control characters
    }
    let mapped = map_width(&username);
    if username.contains(is_invisible) || mapped.contains(is_invisible) {
        return Err("must not have invisible characters".into());
    }
    if mapped.split(' ').any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        return Err("must not have white space, except single spaces inside".into());
    }
    if mapped.nfkc().ne(mapped.chars()) {
        return Err("must not have compatibility characters, such as ligatures".into());
    }
    Ok(username)
}

fn email(email: String) -> Result<String, Detail> {
    let email = text(3..=254)(email)?; // longer ones do not fit into an SMTP path (RFC 5321)
    let parts: Vec<&str> = email.split('@').collect();
    let is_address = matches!(parts.as_slice(), [local, domain] if !local.is_empty() && !domain.is_empty());
    if email.contains(is_invisible) {
        return Err("must not have invisible characters".into());
    }
    if !is_address || email.contains(char::is_whitespace) {
        return Err("must be an e-mail address: one @ with something on both sides, and no white space".into());
    }
    Ok(email)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_a_folded_name_to_itself() {
        for c in '\0'..=char::MAX {
            let folded = case_fold(c.encode_utf8(&mut [0; 4])).into_owned();
            assert_eq!(case_fold(&folded), folded, "{c:?}");
            assert!(folded.chars().count() <= 3, "{c:?}: an index entry has a maximum size");
        }
    }

    #[test]
    fn folds_names_that_look_alike_to_one() {
        for (one, other) in [
            ("ada", "ＡＤＡ"),
            ("İpek", "i\u{307}pek"),
            ("STRAẞE", "straße"),
            ("ΟΔΟΣ", "οδοσ"),
            ("ΟΔΟΣ", "οδος"),
            ("\u{212b}", "å"),
            ("ガ", "ｶﾞ"),
            ("K\u{212a}", "kk"),
            ("A\u{323}\u{307}", "a\u{307}\u{323}"),
        ] {
            assert_eq!(case_fold(one), case_fold(other), "{one} {other}");
        }
        assert_ne!(case_fold("strasse"), case_fold("straße"));
    }

    #[test]
    fn shows_the_user_without_the_password_and_the_version() {
        let (id, created_at) = (Id::new(7).unwrap(), "2026-01-31T09:30:00.123456Z".parse().unwrap());
        let user = CreateUser {
            username: Some("\\".to_owned()),
            email: Some("\"Ada\"@Example.com".to_owned()),
            ..CreateUser::named("Ada \"\\ Ångström 🦀")
        };
        let record = user.into_record(id, Some(PasswordHash::stored("$argon2id$1".to_owned())), created_at);
        assert_eq!(serde_json::to_string(&record).unwrap(), serde_json::to_string(&record.user).unwrap());
    }
}
