//! A user as the stores hand it out.

use std::borrow::Cow;

use bytes::BufMut;
use chassis::http::json::{self, ToJson, Writer};
use jiff::Timestamp;
use shared::{Id, users};
use smallvec::SmallVec;

use crate::password::PasswordHash;
use crate::user::{User, fold};

/// A user as the stores hand it out: packed, to be kept in little memory and shown as it lies.
#[derive(Clone)]
pub struct Row {
    /// Whose row it is.
    pub id: Id,
    pub(super) kept: Kept,
}

/// What is kept under an id. There may be millions of them. Most have a name and an e-mail, which fit into it: it takes 64 bytes,
/// and is read and copied without a look elsewhere.
pub(super) struct Kept {
    /// In microseconds since 1970: no time in a store is finer.
    created_at: i64,
    /// The [`Parts`]: the version, the lengths of all texts but the last, and the texts.
    packed: SmallVec<[u8; 47]>,
}

/// Bytes before the texts: a version and three lengths.
const HEADER: usize = 4 + 3 * 2;

/// The rest of a user, its texts as JSON writes them between quotes. What there is not is empty; what there is never is. They
/// are read as bytes: whoever passes them on need not look at each.
struct Parts<'a> {
    version: u32,
    name: &'a [u8],
    username: &'a [u8],
    email: &'a [u8],
    password: &'a [u8],
}

impl Row {
    /// How often this user was changed: see [`User::version`].
    pub fn version(&self) -> i64 {
        self.kept.version()
    }

    /// The user, to be changed.
    pub fn user(&self) -> User {
        let Parts { version, name, username, email, password } = self.kept.parts();
        let given = |part| given(part).map(|part| unescaped(part).into_owned());
        let (name, username, email) = (unescaped(name).into_owned(), given(username), given(email));
        let public = users::User { id: self.id, name, username, email, created_at: self.kept.created_at() };
        User { public, password: given(password).map(PasswordHash::stored), version: version.into() }
    }
}

impl From<&User> for Row {
    fn from(User { public, password, version }: &User) -> Self {
        let (username, email) = (public.username.as_deref(), public.email.as_deref());
        let password = password.as_ref().map(PasswordHash::expose);
        let texts = [Some(&*public.name), username, email, password].map(|text| escaped(text.unwrap_or_default()));
        let mut packed = Vec::with_capacity(256);
        packed.put_u32_le(u32::try_from(*version).expect("nobody is changed so often"));
        for text in &texts[..3] {
            packed.put_u16_le(u16::try_from(text.len()).expect("the rules keep it short"));
        }
        texts.iter().for_each(|text| packed.put_slice(text.as_bytes()));
        Self {
            id: public.id,
            kept: Kept { created_at: public.created_at.as_microsecond(), packed: SmallVec::from_slice(&packed) },
        }
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        Self { created_at: self.created_at, packed: SmallVec::from_slice(&self.packed) } // at once, not byte by byte
    }
}

impl ToJson for Row {
    /// As serde writes [`users::User`].
    fn to_json(&self, json: &mut Writer) -> Result<(), json::Error> {
        let Parts { name, username, email, .. } = self.kept.parts();
        json.raw(b"{\"id\":").number(self.id.get()).raw(b",\"name\":\"").raw(name);
        if let Some(username) = given(username) {
            json.raw(b"\",\"username\":\"").raw(username);
        }
        if let Some(email) = given(email) {
            json.raw(b"\",\"email\":\"").raw(email);
        }
        json.raw(b"\",\"createdAt\":").time(self.kept.created_at)?.raw(b"}");
        Ok(())
    }
}

impl Kept {
    pub(super) fn version(&self) -> i64 {
        self.parts().version.into()
    }

    /// The username as it is compared.
    pub(super) fn username(&self) -> Option<Cow<'_, str>> {
        folded(self.parts().username)
    }

    /// The e-mail as it is compared.
    pub(super) fn email(&self) -> Option<Cow<'_, str>> {
        folded(self.parts().email)
    }

    fn parts(&self) -> Parts<'_> {
        let (header, mut rest) = self.packed.split_first_chunk().expect("it was packed here");
        let [a, b, c, d, lengths @ ..]: [u8; HEADER] = *header;
        let mut part = |at| {
            let length = u16::from_le_bytes([lengths[at], lengths[at + 1]]).into();
            rest.split_off(..length).expect("it was packed here")
        };
        let [name, username, email] = [0, 2, 4].map(&mut part);
        Parts { version: u32::from_le_bytes([a, b, c, d]), name, username, email, password: rest }
    }

    fn created_at(&self) -> Timestamp {
        Timestamp::from_microsecond(self.created_at).expect("it was a time")
    }
}

/// What is not empty.
fn given(part: &[u8]) -> Option<&[u8]> {
    (!part.is_empty()).then_some(part)
}

fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c.is_ascii_control() || c == '"' || c == '\\') {
        return text.into();
    }
    let json = serde_json::to_string(text).expect("a string can be JSON");
    json[1..json.len() - 1].to_owned().into()
}

fn unescaped(part: &[u8]) -> Cow<'_, str> {
    let text = str::from_utf8(part).expect("it was packed as a string");
    if text.contains('\\') {
        serde_json::from_str(&format!("\"{text}\"")).expect("it was escaped here")
    } else {
        text.into()
    }
}

fn folded(part: &[u8]) -> Option<Cow<'_, str>> {
    let text = unescaped(given(part)?);
    Some(match text {
        Cow::Borrowed(text) => fold(text),
        Cow::Owned(text) => fold(&text).into_owned().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_shown_as_serde_shows_the_user_that_was_packed() {
        let some = |text: &str| Some(text.to_owned());
        for (name, username, email, hash) in [
            ("Ada", None, None, None),
            ("Ada \"\\ Ångström 🦀", some("ada"), some("\"Ada\"@Example.com"), Some("$argon2id$1")),
            ("Ada", some("\\"), None, None),
            ("Ada", None, some("ada@example.com"), Some("$argon2id$2")),
        ] {
            let (id, created_at) = (Id::new(7).unwrap(), "2026-01-31T09:30:00.123456Z".parse().unwrap());
            let public = users::User { id, name: name.to_owned(), username, email, created_at };
            let password = hash.map(|hash| PasswordHash::stored(hash.to_owned()));
            let row = Row::from(&User { public: public.clone(), password, version: 3 });
            let user = row.user();
            assert_eq!((&user.public, row.version(), user.version), (&public, 3, 3));
            assert_eq!(user.password.as_ref().map(PasswordHash::expose), hash);
            let mut json = Writer::default();
            row.to_json(&mut json).unwrap();
            assert_eq!(String::from_utf8(json.finish()).unwrap(), serde_json::to_string(&public).unwrap());
        }
    }
}
