//! Every rule about a user.

use std::borrow::Cow;

use chassis::http::body::values::{Detail, text};
use chassis::http::body::{FromJson, Members};
use shared::users;
use unicode_normalization::UnicodeNormalization;

use crate::password::{HashError, Hasher, Password, PasswordHash};

const MAX_NAME: usize = 200;
const MAX_USERNAME: usize = 64;
/// What fits into an SMTP path, RFC 5321.
const MAX_EMAIL: usize = 254;

/// A user, whole.
#[derive(Clone)]
pub struct User {
    /// What anyone may see.
    pub public: users::User,
    /// What no one may see.
    pub password: Option<PasswordHash>,
    /// Counts the changes, so that a change can be made to just the state that was seen.
    pub version: i64,
}

/// A user to be stored; the store gives it its id.
#[derive(Clone)]
pub struct Draft {
    /// What people see.
    pub name: String,
    /// The name of the account.
    pub username: Option<String>,
    /// Its e-mail.
    pub email: Option<String>,
    /// Its password.
    pub password: Option<PasswordHash>,
}

/// A user that a client wants added. Its parts follow the rules.
pub struct NewUser {
    name: String,
    username: Option<String>,
    email: Option<String>,
    password: Option<Password>,
}

impl FromJson for NewUser {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.optional("name", text(1..=MAX_NAME));
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

impl NewUser {
    /// The user as it is stored: without the password.
    pub async fn into_draft(self, hasher: &Hasher) -> Result<Draft, HashError> {
        let password = hasher.hash_optional(self.password).await?;
        Ok(Draft { name: self.name, username: self.username, email: self.email, password })
    }
}

/// The members of a user that a client wants changed. They follow the same rules.
pub struct UserChange {
    name: Option<String>,
    username: Option<String>,
    email: Option<String>,
    password: Option<Password>,
}

impl FromJson for UserChange {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        let name = body.patch("name", text(1..=MAX_NAME));
        let username = body.patch("username", username);
        let email = body.patch("email", email);
        let password = body.patch("password", Password::parse);
        Some(Self { name: name?, username: username?, email: email?, password: password? })
    }
}

/// A change that holds no password any more.
pub struct UserPatch {
    name: Option<String>,
    username: Option<String>,
    email: Option<String>,
    password: Option<PasswordHash>,
}

impl UserChange {
    /// The same change, ready to be stored.
    pub async fn hashed(self, hasher: &Hasher) -> Result<UserPatch, HashError> {
        let password = hasher.hash_optional(self.password).await?;
        Ok(UserPatch { name: self.name, username: self.username, email: self.email, password })
    }
}

impl UserPatch {
    /// What becomes of `user`.
    pub fn apply(&self, mut user: User) -> User {
        user.version += 1;
        user.public.name = self.name.clone().unwrap_or(user.public.name);
        user.public.username = self.username.clone().or(user.public.username);
        user.public.email = self.email.clone().or(user.public.email);
        user.password = self.password.clone().or(user.password);
        user
    }
}

/// What a username or an e-mail is compared by: `Ada` and `ada` are one account, however their accents are encoded.
pub fn fold(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        return name.into(); // as most are, and there is nothing to fold
    }
    if name.is_ascii() {
        return name.to_ascii_lowercase().into();
    }
    name.nfc().collect::<String>().to_lowercase().nfc().collect()
}

fn username(given: String) -> Result<String, Detail> {
    text(1..=MAX_USERNAME)(given.nfc().collect())
}

fn email(given: String) -> Result<String, Detail> {
    let given = text(3..=MAX_EMAIL)(given)?;
    let parts: Vec<&str> = given.split('@').collect();
    let good = matches!(parts.as_slice(), [local, domain] if !local.is_empty() && !domain.is_empty());
    if !good || given.contains(char::is_whitespace) {
        return Err("must be an e-mail address: one @ with something on both sides, and no white space".into());
    }
    Ok(given)
}
