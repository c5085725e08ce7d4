//! Reading a JSON body or a query member by member, so that a client is told all its mistakes at once.
//!
//! A derived `Deserialize` stops at the first mistake, and the popular validators speak of Rust's field names rather
//! than the wire's. Here a type says how it is read ([`FromJson`], [`FromQuery`]): each member is parsed on its own, each
//! mistake is noted with the place it stands at, and the value exists only if there was none.

pub mod values;

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use url::form_urlencoded;

use crate::http::body::values::Detail;
use crate::problem::{FieldError, MALFORMED_JSON, Problem};

/// A type that is read from a JSON object.
pub trait FromJson: Sized {
    /// Reads all members. `None` if anything was wrong, which `fields` has then noted.
    fn from_json(fields: &mut Members<'_>) -> Option<Self>;
}

/// A type that is read from a query.
pub trait FromQuery: Sized {
    /// Reads all parameters. `None` if anything was wrong, which `params` has then noted.
    fn from_query(params: &mut QueryParams<'_>) -> Option<Self>;
}

/// Reads a body that is one JSON object.
pub fn read_object<T: FromJson>(body: &Bytes) -> Result<T, Problem> {
    let json: &RawValue = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let mut fields = Members { place: Place::Root, members: Vec::new(), errors: Vec::new(), body };
    let value = if fields.open(json) { T::from_json(&mut fields) } else { None };
    finish(value, fields.errors)
}

/// Reads a body that is a JSON array of objects, each on its own: a bad one does not spoil the others.
pub fn read_list<T: FromJson>(body: &Bytes, length: RangeInclusive<usize>) -> Result<Vec<Result<T, Problem>>, Problem> {
    let json: &RawValue = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let items = items(json, &length).map_err(|detail| Problem::invalid(vec![FieldError::at_pointer("", detail)]))?;
    let read = |item: &&RawValue| read_object(&body.slice_ref(item.get().as_bytes()));
    Ok(items.iter().map(read).collect())
}

/// Reads a query string.
pub fn read_query<T: FromQuery>(query: &str) -> Result<T, Problem> {
    let mut params = QueryParams { pairs: form_urlencoded::parse(query.as_bytes()).collect(), errors: Vec::new() };
    finish(T::from_query(&mut params), params.errors)
}

/// The members of one JSON object, and the mistakes found so far.
pub struct Members<'a> {
    place: Place<'a>,
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    errors: Vec<FieldError>,
    body: &'a Bytes,
}

/// Where a value stands. A pointer is only written out when there is something to say about it.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'static str),
    Item(&'a Place<'a>, usize),
}

impl<'a> Members<'a> {
    /// The member `name`, which must be there: a `T` in JSON that `parse` accepts.
    pub fn required<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<U> {
        let read = self.optional(name, parse)?;
        if read.is_none() {
            self.reject(name, "is required");
        }
        read
    }

    /// The member `name`: `Some(None)` when it is absent or `null`.
    pub fn optional<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<Option<U>> {
        let Some(json) = self.member(name)? else { return Some(None) };
        let read = serde_json::from_str::<T>(json.get()).map_err(|error| plain(&error));
        match read.and_then(parse) {
            Ok(value) => Some(Some(value)),
            Err(detail) => {
                self.reject(name, detail);
                None
            }
        }
    }

    /// The member `name` as in [`Members::optional`], except that `null` is a mistake: for changes, where it would
    /// read as "remove this".
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

    /// The member `name`, which must be an array of that many objects, each of which `read` accepts.
    pub fn list<U>(
        &mut self,
        name: &'static str,
        length: RangeInclusive<usize>,
        mut read: impl FnMut(&mut Members<'_>) -> Option<U>,
    ) -> Option<Vec<U>> {
        let json = self.member(name)?;
        let items = match json.map_or(Err("is required".into()), |json| items(json, &length)) {
            Ok(items) => items,
            Err(detail) => {
                self.reject(name, detail);
                return None;
            }
        };
        let place = Place::Member(&self.place, name);
        let mut values = Vec::with_capacity(items.len());
        let mut errors = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let place = Place::Item(&place, index);
            let mut fields = Members { place, members: Vec::new(), errors: Vec::new(), body: self.body };
            if fields.open(item) {
                values.extend(read(&mut fields));
            }
            errors.append(&mut fields.errors);
        }
        let good = errors.is_empty();
        self.errors.append(&mut errors);
        good.then_some(values)
    }

    /// Notes that something is wrong with the member `name`.
    pub fn reject(&mut self, name: &str, detail: impl Into<Detail>) {
        self.errors.push(FieldError::at_pointer(format!("{}/{name}", self.place), detail.into()));
    }

    /// The bytes of the whole body.
    pub fn body(&self) -> &Bytes {
        self.body
    }

    /// The value of the member `name`: `Some(None)` when it is absent or `null`.
    fn member(&mut self, name: &'static str) -> Option<Option<&'a RawValue>> {
        let mut given = self.members.iter().filter(|(key, _)| key == name).map(|(_, json)| *json);
        let (json, another) = (given.next(), given.next());
        if another.is_some() {
            self.reject(name, "is given more than once");
            return None;
        }
        Some(json.filter(|json| json.get() != "null"))
    }

    /// Takes the members out of `json`. If it is no object, that is noted, and there is nothing more to say.
    fn open(&mut self, json: &'a RawValue) -> bool {
        match serde_json::from_str::<RawMembers<'a>>(json.get()) {
            Ok(RawMembers(members)) => self.members = members,
            Err(_) => self.errors.push(FieldError::at_pointer(self.place.to_string(), "must be a JSON object")),
        }
        self.errors.is_empty()
    }
}

/// The parameters of one query, and the mistakes found so far.
pub struct QueryParams<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    errors: Vec<FieldError>,
}

impl QueryParams<'_> {
    /// The parameter `name`, which must be there.
    pub fn required<U, D: Into<Detail>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<U, D>,
    ) -> Option<U> {
        let read = self.optional(name, parse)?;
        if read.is_none() {
            self.errors.push(FieldError::in_parameter(name, "is required"));
        }
        read
    }

    /// The parameter `name`: `Some(None)` when it is absent. Twice the same parameter is a mistake.
    pub fn optional<U, D: Into<Detail>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<U, D>,
    ) -> Option<Option<U>> {
        let mut given = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let read = match (given.next(), given.next()) {
            (None, _) => return Some(None),
            (Some(value), None) => parse(value).map_err(Into::into),
            (Some(_), Some(_)) => Err("is given more than once".into()),
        };
        match read {
            Ok(value) => Some(Some(value)),
            Err(detail) => {
                self.errors.push(FieldError::in_parameter(name, detail));
                None
            }
        }
    }
}

impl fmt::Display for Place<'_> {
    /// A JSON pointer, RFC 6901.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, name) => write!(f, "{parent}/{name}"), // our names need no escapes
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

/// The members of an object in their order. (A derived type would take an array for a struct.)
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

/// The name of a member, borrowed from the body unless it has escapes in it.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn items<'a>(json: &'a RawValue, length: &RangeInclusive<usize>) -> Result<Vec<&'a RawValue>, Detail> {
    let items: Vec<&RawValue> = serde_json::from_str(json.get()).map_err(|_| "must be an array")?;
    if !length.contains(&items.len()) {
        return Err(format!("must have {} to {} items", length.start(), length.end()).into());
    }
    Ok(items)
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(&MALFORMED_JSON, format!("The body is not JSON: {error}"))
}

/// What serde_json says of one value, without the value itself, which may be a password, and without the position, which
/// would count from the start of that value.
fn plain(error: &serde_json::Error) -> Detail {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("must be {expected}").into(),
        None => text.to_owned().into(),
    }
}

fn finish<T>(value: Option<T>, errors: Vec<FieldError>) -> Result<T, Problem> {
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        _ => Err(Problem::invalid(errors)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::body::values::any;

    /// An order of sorts: with one member of each kind.
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

    struct Search {
        word: String,
        limit: Option<u32>,
    }

    impl FromQuery for Search {
        fn from_query(params: &mut QueryParams<'_>) -> Option<Self> {
            let word = params.required("word", |text| Ok::<_, Detail>(text.to_owned()));
            let limit = params.optional("limit", |text| text.parse().map_err(|_| "must be a number"));
            Some(Self { word: word?, limit: limit? })
        }
    }

    fn positive(count: u32) -> Result<u32, Detail> {
        if count > 0 { Ok(count) } else { Err("must be positive".into()) }
    }

    fn read<T: FromJson>(json: &str) -> Result<T, Problem> {
        read_object(&Bytes::copy_from_slice(json.as_bytes()))
    }

    /// Where the mistakes are, and what is said of them.
    fn blamed<T>(read: Result<T, Problem>) -> Vec<(String, String)> {
        let body = read.err().expect("a mistake").body("");
        assert_eq!(body.r#type, "urn:problem-type:invalid-request");
        let place = |error: FieldError| (error.pointer.or(error.parameter).expect("a place"), error.detail);
        body.errors.into_iter().map(place).collect()
    }

    fn places<T>(read: Result<T, Problem>) -> Vec<String> {
        blamed(read).into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn a_value_is_read_whatever_stands_beside_it() {
        let json = r#" {"lines": [{"item": 1, "count": 2, "x": {}}], "\u0062uyer": 7, "note": null, "id": [[]]} "#;
        assert_eq!(read::<Order>(json).unwrap(), Order { buyer: 7, note: None, lines: vec![(1, 2)] });
    }

    #[test]
    fn all_mistakes_are_told_at_once_each_at_its_place() {
        let json = r#"{"note": 1, "lines": [{"item": "x"}, {"item": 1, "count": 0}]}"#;
        let told = [
            ("/buyer", "is required"),
            ("/note", "must be a string"),
            ("/lines/0/item", "must be u32"),
            ("/lines/0/count", "is required"),
            ("/lines/1/count", "must be positive"),
        ];
        assert_eq!(blamed(read::<Order>(json)), told.map(|(place, detail)| (place.to_owned(), detail.to_owned())));
    }

    #[test]
    fn a_member_that_must_be_there_may_not_be_null_either() {
        assert_eq!(places(read::<Order>(r#"{"buyer": null, "lines": null}"#)), ["/buyer", "/lines"]);
    }

    #[test]
    fn a_change_to_null_is_refused_and_no_change_is_none() {
        assert!(read::<Change>("{}").unwrap().0.is_none());
        assert_eq!(read::<Change>(r#"{"note": "new"}"#).unwrap().0.as_deref(), Some("new"));
        assert_eq!(places(read::<Change>(r#"{"note": null}"#)), ["/note"]);
        assert_eq!(places(read::<Change>(r#"{"note": "new", "note": null}"#)), ["/note"]);
    }

    #[test]
    fn a_member_given_twice_is_a_mistake_also_deep_inside() {
        let json = r#"{"buyer": 1, "buy\u0065r": 1, "lines": [{"item": 1, "item": 1, "count": 1}]}"#;
        assert_eq!(places(read::<Order>(json)), ["/buyer", "/lines/0/item"]);
        let unknown = r#"{"buyer": 1, "x": 1, "x": 2, "lines": [{"item": 1, "count": 1}]}"#;
        assert!(read::<Order>(unknown).is_ok(), "what is ignored may be given as often as one likes");
    }

    #[test]
    fn a_list_has_its_length_and_is_made_of_objects() {
        let of = |lines: Value| read::<Order>(&json!({"buyer": 1, "lines": lines}).to_string());
        let line = json!({"item": 1, "count": 1});
        assert_eq!(of(json!([line, line])).unwrap().lines.len(), 2);
        for bad in [json!([]), json!([line, line, line]), json!({}), json!("x"), json!({"0": line})] {
            assert_eq!(places(of(bad.clone())), ["/lines"], "{bad}");
        }
        assert_eq!(places(of(json!([line, [1, 1]]))), ["/lines/1"], "an array is no object");
    }

    #[test]
    fn a_body_is_one_object() {
        for json in ["null", "7", "\"x\"", "[]", r#"[{"note": "x"}]"#] {
            assert_eq!(places(read::<Change>(json)), [""], "{json}");
        }
        for json in ["", " ", "{", "{}}", "{} {}", "{'note': 1}", "{\"note\": NaN}", "\u{feff}{}"] {
            let problem = read::<Change>(json).err().expect(json);
            assert_eq!(problem.kind(), &MALFORMED_JSON, "{json}");
        }
    }

    #[test]
    fn no_mistake_is_told_with_the_value_itself() {
        for secret in ["1234567890", "[\"1234567890\"]", "{\"1234567890\": 1}", "1234567890.5"] {
            let told = blamed(read::<Change>(&format!(r#"{{"note": {secret}}}"#)));
            assert_eq!(told, [("/note".to_owned(), "must be a string".to_owned())], "{secret}");
        }
    }

    #[test]
    fn each_of_many_is_read_on_its_own() {
        let each = |json: &'static str| read_list::<Change>(&Bytes::from_static(json.as_bytes()), 1..=2);
        let read = each(r#" [ {"note": "a"} , {"note": 1}] "#).unwrap();
        assert!(matches!(read.as_slice(), [Ok(Change(Some(note))), Err(_)] if note == "a"));
        for json in ["[]", "{}", r#"[{}, {}, {}]"#] {
            assert_eq!(places(each(json)), [""], "{json}");
        }
    }

    #[test]
    fn an_object_within_many_has_its_own_body() {
        struct Whole(Bytes);
        impl FromJson for Whole {
            fn from_json(body: &mut Members<'_>) -> Option<Self> {
                Some(Self(body.body().clone()))
            }
        }
        let read = read_list::<Whole>(&Bytes::from_static(br#"[{"a": 1}, {"b": 2}]"#), 1..=2).unwrap();
        let bodies: Vec<Bytes> = read.into_iter().map(|whole| whole.unwrap().0).collect();
        assert_eq!(bodies, [r#"{"a": 1}"#, r#"{"b": 2}"#]);
    }

    #[test]
    fn a_query_is_read_like_a_body() {
        let search = read_query::<Search>("limit=5&word=a%20b%2B+c&other=1&other=2").unwrap();
        assert_eq!((search.word.as_str(), search.limit), ("a b+ c", Some(5)));
        for (query, blamed) in [
            ("", vec!["word"]),
            ("limit=x", vec!["word", "limit"]),
            ("word=a&limit=", vec!["limit"]),
            ("word=a&limit=1&limit=1", vec!["limit"]),
            ("word=a&word=b&limit=x", vec!["word", "limit"]),
        ] {
            assert_eq!(places(read_query::<Search>(query)), blamed, "{query}");
        }
    }
}
