//! The members of a JSON object, each read and checked on its own.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::http::body::values::Detail;
use crate::problem::FieldError;

/// The members of one JSON object, and the mistakes found so far.
pub struct Members<'a> {
    pointer: Pointer<'a>,
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    pub(super) errors: Vec<FieldError>,
}

impl<'a> Members<'a> {
    pub(super) fn at(pointer: Pointer<'a>) -> Self {
        Self { pointer, members: Vec::new(), errors: Vec::new() }
    }

    /// Splits `json` into its members. Returns `false`, with a mistake recorded, if it is not an object.
    pub(super) fn open(&mut self, json: &'a str) -> bool {
        match serde_json::from_str::<RawMembers<'a>>(json) {
            Ok(RawMembers(members)) => self.members = members,
            Err(_) => self.errors.push(FieldError::at_pointer(self.pointer.to_string(), "must be a JSON object")),
        }
        self.errors.is_empty()
    }

    /// Reads the member `name`, which must be present and not `null`: a JSON value of type `T` that `parse` accepts.
    pub fn required<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<U> {
        let value = self.optional(name, parse)?;
        if value.is_none() {
            self.reject(name, "is required");
        }
        value
    }

    /// Reads the member `name`. Returns `Some(None)` if it is absent or `null`. A repeated member is a mistake.
    pub fn optional<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<Option<U>> {
        let Some(json) = self.find(name)? else { return Some(None) };
        let value = serde_json::from_str::<T>(json.get()).map_err(|error| expected_type(&error));
        match value.and_then(parse) {
            Ok(value) => Some(Some(value)),
            Err(detail) => {
                self.reject(name, detail);
                None
            }
        }
    }

    /// Reads the member `name` of a change (RFC 7396) that cannot be removed: like [`Members::optional`], except that `null`
    /// is a mistake.
    pub fn patch<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<Option<U>> {
        if self.members.iter().any(|(key, json)| key == name && json.get() == "null") {
            self.reject(name, "cannot be removed");
            return None;
        }
        self.optional(name, parse)
    }

    /// Reads the member `name` of a change (RFC 7396). Returns `Some(None)` if it is absent and `Some(Some(None))` if it is
    /// `null`, which removes it.
    pub fn removable<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<Option<Option<U>>> {
        let is_given = self.members.iter().any(|(key, _)| key == name);
        let value = self.optional(name, parse)?;
        Some(is_given.then_some(value))
    }

    /// Reads the member `name`, which must be an array of objects, each of which `read` accepts. `length` limits the number
    /// of objects.
    pub fn list<U>(
        &mut self,
        name: &'static str,
        length: RangeInclusive<usize>,
        mut read: impl FnMut(&mut Members<'_>) -> Option<U>,
    ) -> Option<Vec<U>> {
        let json = self.find(name)?;
        let items = match json.map_or(Err("is required".into()), |json| items(json, &length)) {
            Ok(items) => items,
            Err(detail) => {
                self.reject(name, detail);
                return None;
            }
        };
        let array = Pointer::Member(&self.pointer, name);
        let mut values = Vec::with_capacity(items.len());
        let mut errors = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let mut members = Members::at(Pointer::Item(&array, index));
            if members.open(item.get()) {
                values.extend(read(&mut members));
            }
            errors.append(&mut members.errors);
        }
        let valid = errors.is_empty();
        self.errors.append(&mut errors);
        valid.then_some(values)
    }

    /// Records a mistake in the member `name`.
    pub fn reject(&mut self, name: &str, detail: impl Into<Detail>) {
        self.errors.push(FieldError::at_pointer(format!("{}/{name}", self.pointer), detail.into()));
    }

    /// Returns the JSON of the member `name`, or `Some(None)` if it is absent or `null`.
    fn find(&mut self, name: &'static str) -> Option<Option<&'a RawValue>> {
        let mut values = self.members.iter().filter(|(key, _)| key == name).map(|(_, json)| *json);
        let (json, repeated) = (values.next(), values.next());
        if repeated.is_some() {
            self.reject(name, "is given more than once");
            return None;
        }
        Some(json.filter(|json| json.get() != "null"))
    }
}

/// Splits a JSON array into its items.
pub(super) fn items<'a>(json: &'a RawValue, length: &RangeInclusive<usize>) -> Result<Vec<&'a RawValue>, Detail> {
    let items: Vec<&RawValue> = serde_json::from_str(json.get()).map_err(|_| "must be an array")?;
    if !length.contains(&items.len()) {
        return Err(format!("must have {} to {} items", length.start(), length.end()).into());
    }
    Ok(items)
}

/// Turns serde_json's "invalid type: …, expected a string at line …" into "must be a string". Rust types become JSON types.
///
/// The value is left out because it may be a password, the position because it counts from the start of the value.
fn expected_type(error: &serde_json::Error) -> Detail {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("must be {}", json_type(expected)).into(),
        // How serde_json reports a value of another type for an enum.
        None if matches!(text, "expected value" | "trailing characters") => "must be a string".into(),
        None if text == "number out of range" => "must be a smaller number".into(),
        None => text.to_owned().into(),
    }
}

/// Returns the JSON type that serde calls by the name of a Rust type. Other names are kept: a type may describe itself.
fn json_type(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" | "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => {
            "an integer"
        }
        "f32" | "f64" => "a number",
        "a sequence" => "an array",
        "a map" => "an object",
        "a character" | "string or map" | "variant identifier" | "a borrowed string" => "a string",
        _ if expected.starts_with("struct ") => "an object",
        _ if expected.starts_with("a tuple ") => "an array",
        _ if expected.starts_with("enum ") => "a string",
        _ => expected,
    }
}

/// A JSON pointer (RFC 6901). It becomes a string only when a mistake is recorded.
#[derive(Clone, Copy)]
pub(super) enum Pointer<'a> {
    Root,
    Member(&'a Pointer<'a>, &'static str),
    Item(&'a Pointer<'a>, usize),
}

impl fmt::Display for Pointer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, name) => write!(f, "{parent}/{name}"), // member names in our code need no escapes
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

/// The members of an object in their order. A derived `Deserialize` would also accept an array.
struct RawMembers<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawMembers<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = RawMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), json)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, json));
                }
                Ok(RawMembers(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// The name of a member, borrowed from the body unless it contains escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::body::tests::{locations, mistakes};
    use crate::http::body::values::any;
    use crate::http::body::{FromJson, read_object};
    use crate::problem::Problem;

    /// A body with one member of each kind.
    #[derive(Debug, PartialEq)]
    struct Order {
        buyer: u32,
        note: Option<String>,
        lines: Vec<(u32, u32)>,
    }

    impl FromJson for Order {
        fn from_json(body: &mut Members<'_>) -> Option<Self> {
            let buyer = body.required("buyer", any);
            let note = body.optional("note", any);
            let lines = body.list("lines", 1..=2, |line| {
                let (item, count) = (line.required("item", any), line.required("count", positive));
                Some((item?, count?))
            });
            Some(Self { buyer: buyer?, note: note?, lines: lines? })
        }
    }

    struct Change(Option<String>);

    impl FromJson for Change {
        fn from_json(body: &mut Members<'_>) -> Option<Self> {
            body.patch("note", any).map(Self)
        }
    }

    #[derive(Debug)]
    struct Removal(Option<Option<String>>);

    impl FromJson for Removal {
        fn from_json(body: &mut Members<'_>) -> Option<Self> {
            body.removable("note", any).map(Self)
        }
    }

    fn positive(count: u32) -> Result<u32, Detail> {
        if count > 0 { Ok(count) } else { Err("must be positive".into()) }
    }

    fn read<T: FromJson>(json: &str) -> Result<T, Problem> {
        read_object(json.as_bytes())
    }

    #[test]
    fn ignores_unknown_members() {
        let json = r#" {"lines": [{"item": 1, "count": 2, "x": {}}], "\u0062uyer": 7, "note": null, "id": [[]]} "#;
        assert_eq!(read::<Order>(json).unwrap(), Order { buyer: 7, note: None, lines: vec![(1, 2)] });
    }

    #[test]
    fn reports_every_mistake_with_its_pointer() {
        let json = r#"{"note": 1, "lines": [{"item": "x"}, {"item": 1, "count": 0}]}"#;
        let expected = [
            ("/buyer", "is required"),
            ("/note", "must be a string"),
            ("/lines/0/item", "must be an integer"),
            ("/lines/0/count", "is required"),
            ("/lines/1/count", "must be positive"),
        ];
        let expected = expected.map(|(location, detail)| (location.to_owned(), detail.to_owned()));
        assert_eq!(mistakes(read::<Order>(json)), expected);
    }

    #[test]
    fn rejects_null_for_a_required_member() {
        assert_eq!(locations(read::<Order>(r#"{"buyer": null, "lines": null}"#)), ["/buyer", "/lines"]);
    }

    #[test]
    fn rejects_null_in_a_patch_and_reads_an_absent_member_as_no_change() {
        assert!(read::<Change>("{}").unwrap().0.is_none());
        assert_eq!(read::<Change>(r#"{"note": "new"}"#).unwrap().0.as_deref(), Some("new"));
        assert_eq!(locations(read::<Change>(r#"{"note": null}"#)), ["/note"]);
        assert_eq!(locations(read::<Change>(r#"{"note": "new", "note": null}"#)), ["/note"]);
    }

    #[test]
    fn distinguishes_a_removed_member_from_an_absent_one() {
        assert_eq!(read::<Removal>("{}").unwrap().0, None);
        assert_eq!(read::<Removal>(r#"{"note": null}"#).unwrap().0, Some(None));
        assert_eq!(read::<Removal>(r#"{"note": "new"}"#).unwrap().0, Some(Some("new".to_owned())));
        for bad in [r#"{"note": 1}"#, r#"{"note": null, "note": null}"#, r#"{"note": "new", "n\u006fte": null}"#] {
            assert_eq!(locations(read::<Removal>(bad)), ["/note"], "{bad}");
        }
    }

    #[test]
    fn rejects_a_repeated_member_at_every_depth() {
        let json = r#"{"buyer": 1, "buy\u0065r": 1, "lines": [{"item": 1, "item": 1, "count": 1}]}"#;
        assert_eq!(locations(read::<Order>(json)), ["/buyer", "/lines/0/item"]);
        let unknown = r#"{"buyer": 1, "x": 1, "x": 2, "lines": [{"item": 1, "count": 1}]}"#;
        assert!(read::<Order>(unknown).is_ok(), "an unknown member may be repeated");
    }

    #[test]
    fn rejects_a_list_of_the_wrong_length_or_not_of_objects() {
        let with = |lines: Value| read::<Order>(&json!({"buyer": 1, "lines": lines}).to_string());
        let line = json!({"item": 1, "count": 1});
        assert_eq!(with(json!([line, line])).unwrap().lines.len(), 2);
        for bad in [json!([]), json!([line, line, line]), json!({}), json!("x"), json!({"0": line})] {
            assert_eq!(locations(with(bad.clone())), ["/lines"], "{bad}");
        }
        assert_eq!(locations(with(json!([line, [1, 1]]))), ["/lines/1"], "an array is no object");
    }

    #[test]
    fn does_not_repeat_a_rejected_value_in_the_detail() {
        for secret in ["1234567890", "[\"1234567890\"]", "{\"1234567890\": 1}", "1234567890.5"] {
            let mistakes = mistakes(read::<Change>(&format!(r#"{{"note": {secret}}}"#)));
            assert_eq!(mistakes, [("/note".to_owned(), "must be a string".to_owned())], "{secret}");
        }
    }

    #[test]
    fn names_json_types_and_no_rust_types() {
        fn detail<T: DeserializeOwned>(json: &str) -> String {
            serde_json::from_str::<T>(json).map_or_else(|error| expected_type(&error).into_owned(), |_| String::new())
        }

        #[derive(serde::Deserialize)]
        struct Point {
            #[expect(dead_code)]
            x: u8,
        }
        #[derive(serde::Deserialize)]
        enum Colour {
            #[serde(rename = "red")]
            Red,
        }

        assert_eq!(detail::<u32>("\"x\""), "must be an integer");
        assert_eq!(detail::<u32>("-1"), "must be an integer");
        assert_eq!(detail::<i64>("1e300"), "must be an integer");
        assert_eq!(detail::<u64>("18446744073709551616"), "must be an integer");
        assert_eq!(detail::<i8>("300"), "must be an integer");
        assert_eq!(detail::<f64>("true"), "must be a number");
        assert_eq!(detail::<String>("1"), "must be a string");
        assert_eq!(detail::<bool>("1"), "must be a boolean");
        assert_eq!(detail::<Vec<u8>>("1"), "must be an array");
        assert_eq!(detail::<(u8, u8)>("1"), "must be an array");
        assert_eq!(detail::<std::collections::BTreeMap<String, u8>>("1"), "must be an object");
        assert_eq!(detail::<Point>("1"), "must be an object");
        assert_eq!(detail::<Colour>("\"blue\""), "must be `red`");
        for json in ["1", "{}", "[]"] {
            assert_eq!(detail::<Colour>(json), "must be a string", "{json}");
        }
    }
}
