//! Reads a JSON body or a query member by member, so that a response can list every mistake of the client.
//!
//! A derived `Deserialize` stops at the first mistake, and validation crates name Rust fields instead of JSON members.
//! Here a type says how it is read ([`FromJson`], [`FromQuery`]). Each member is parsed on its own, each mistake is recorded
//! with its location, and the value exists only if there is no mistake.

mod members;
mod query;
pub mod values;

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::value::RawValue;

pub use self::members::Members;
use self::members::Pointer;
pub use self::query::QueryParams;
pub(crate) use self::query::reject_all;
use crate::problem::{FieldError, MALFORMED_JSON, Problem};

/// A type that is read from a JSON object.
pub trait FromJson: Sized {
    /// Reads all members. Returns `None` if any of them is invalid; `members` has recorded why.
    fn from_json(members: &mut Members<'_>) -> Option<Self>;
}

/// A type that is read from a query.
pub trait FromQuery: Sized {
    /// Reads all parameters. Returns `None` if any of them is invalid; `params` has recorded why.
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self>;
}

/// Reads a body that is one JSON object.
///
/// # Errors
/// If the body is not JSON, or if a member is invalid: one [`FieldError`] for each mistake.
pub fn read_object<T: FromJson>(body: &[u8]) -> Result<T, Problem> {
    read_object_with(body, T::from_json)
}

/// Reads a body that is one JSON object with `read`, for an object whose meaning depends on more than its members.
///
/// # Errors
/// See [`read_object`].
pub fn read_object_with<T>(body: &[u8], read: impl FnOnce(&mut Members<'_>) -> Option<T>) -> Result<T, Problem> {
    let mut members = Members::at(Pointer::Root);
    let value = if members.open(str::from_utf8(body).map_err(not_json)?) {
        read(&mut members)
    } else {
        parse(body)?; // it may be no JSON at all
        None
    };
    finish(value, members.errors)
}

/// Reads a body that is a JSON array of objects. Each object is read on its own: an invalid one does not affect the others.
///
/// # Errors
/// If the body is not JSON, not an array, or an array with a number of items outside `length`.
pub fn read_list<T: FromJson>(body: &[u8], length: RangeInclusive<usize>) -> Result<Vec<Result<T, Problem>>, Problem> {
    let items = members::items(parse(body)?, &length);
    let items = items.map_err(|detail| Problem::invalid(vec![FieldError::at_pointer("", detail)]))?;
    let read = |item: &&RawValue| read_object(item.get().as_bytes());
    Ok(items.iter().map(read).collect())
}

/// Reads a query string.
///
/// # Errors
/// If a parameter is invalid, or if `T` does not read it: one [`FieldError`] for each mistake.
pub fn read_query<T: FromQuery>(query: &str) -> Result<T, Problem> {
    let mut params = QueryParams::new(query);
    let value = T::from_query(&mut params);
    finish(value, params.finish())
}

fn parse(body: &[u8]) -> Result<&RawValue, Problem> {
    serde_json::from_slice(body).map_err(not_json)
}

fn not_json(error: impl fmt::Display) -> Problem {
    Problem::new(&MALFORMED_JSON, format!("The body is not JSON: {error}"))
}

fn finish<T>(value: Option<T>, errors: Vec<FieldError>) -> Result<T, Problem> {
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        _ => Err(Problem::invalid(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::values::any;

    struct Note(Option<String>);

    impl FromJson for Note {
        fn from_json(body: &mut Members<'_>) -> Option<Self> {
            body.optional("note", any).map(Self)
        }
    }

    /// Returns location and detail of each mistake.
    pub(super) fn mistakes<T>(read: Result<T, Problem>) -> Vec<(String, String)> {
        let body = read.err().expect("a mistake").body("");
        assert_eq!(body.r#type, "urn:problem-type:invalid-request");
        let mistake = |error: FieldError| (error.pointer.or(error.parameter).expect("a location"), error.detail);
        body.errors.into_iter().map(mistake).collect()
    }

    /// Returns the location of each mistake.
    pub(super) fn locations<T>(read: Result<T, Problem>) -> Vec<String> {
        mistakes(read).into_iter().map(|(location, _)| location).collect()
    }

    #[test]
    fn rejects_a_body_that_is_not_one_object() {
        let read = |json: &str| read_object::<Note>(json.as_bytes());
        for json in ["null", "7", "\"x\"", "[]", r#"[{"note": "x"}]"#] {
            assert_eq!(locations(read(json)), [""], "{json}");
        }
        for json in ["", " ", "{", "{}}", "{} {}", "{'note': 1}", "{\"note\": NaN}", "\u{feff}{}"] {
            let problem = read(json).err().expect(json);
            assert_eq!(problem.kind(), &MALFORMED_JSON, "{json}");
        }
    }

    #[test]
    fn reads_each_item_of_a_list_on_its_own() {
        let read = |json: &str| read_list::<Note>(json.as_bytes(), 1..=2);
        let items = read(r#" [ {"note": "a"} , {"note": 1}] "#).unwrap();
        assert!(matches!(items.as_slice(), [Ok(Note(Some(note))), Err(_)] if note == "a"));
        for json in ["[]", "{}", r#"[{}, {}, {}]"#] {
            assert_eq!(locations(read(json)), [""], "{json}");
        }
    }
}
