//! Reading a JSON body or a query member by member, so that a client is told all its mistakes at once.
//!
//! A derived `Deserialize` stops at the first mistake, and the popular validators speak of Rust's field names rather
//! than the wire's. Here a type says how it is read ([`FromJson`], [`FromQuery`]): each member is parsed on its own, each
//! mistake is noted with the place it stands at, and the value exists only if there was none.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use url::form_urlencoded;

use crate::problem::{FieldError, MALFORMED_JSON, Problem};

/// What is wrong with a value, said to the client: `must be 1 to 64 characters`.
pub type Detail = Cow<'static, str>;

/// A type that is read from a JSON object.
pub trait FromJson: Sized {
    /// Reads all members. `None` if anything was wrong, which `fields` has then noted.
    fn from_json(fields: &mut Fields<'_>) -> Option<Self>;
}

/// A type that is read from a query.
pub trait FromQuery: Sized {
    /// Reads all parameters. `None` if anything was wrong, which `params` has then noted.
    fn from_query(params: &mut Params<'_>) -> Option<Self>;
}

/// Reads a body that is one JSON object.
pub fn read_object<T: FromJson>(body: &Bytes) -> Result<T, Problem> {
    let json: &RawValue = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let mut fields = Fields { place: Place::Root, members: Vec::new(), errors: Vec::new(), body };
    let value = if fields.open(json) { T::from_json(&mut fields) } else { None };
    finish(value, fields.errors)
}

/// Reads a body that is a JSON array of objects, each on its own: a bad one does not spoil the others.
pub fn read_each<T: FromJson>(body: &Bytes, length: RangeInclusive<usize>) -> Result<Vec<Result<T, Problem>>, Problem> {
    let json: &RawValue = serde_json::from_slice(body).map_err(|error| malformed(&error))?;
    let items = items(json, &length).map_err(|detail| Problem::invalid(vec![FieldError::at("", detail)]))?;
    let read = |item: &&RawValue| read_object(&body.slice_ref(item.get().as_bytes()));
    Ok(items.iter().map(read).collect())
}

/// Reads a query string.
pub fn read_query<T: FromQuery>(query: &str) -> Result<T, Problem> {
    let mut params = Params { pairs: form_urlencoded::parse(query.as_bytes()).collect(), errors: Vec::new() };
    finish(T::from_query(&mut params), params.errors)
}

/// Reads a number, an id, a status: whatever JSON value `T` is. For [`Fields::required`] and [`Fields::optional`].
pub fn any<T>(value: T) -> Result<T, Detail> {
    Ok(value)
}

/// The members of one JSON object, and the mistakes found so far.
pub struct Fields<'a> {
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

impl<'a> Fields<'a> {
    /// The member `name`, which must be there: a `T` in JSON that `parse` accepts.
    pub fn required<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<U> {
        let read = self.optional(name, parse)?;
        if read.is_none() {
            self.fail(name, "is required");
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
                self.fail(name, detail);
                None
            }
        }
    }

    /// The member `name` as in [`Fields::optional`], except that `null` is a mistake: for changes, where it would
    /// read as "remove this".
    pub fn change<T: DeserializeOwned, U>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(T) -> Result<U, Detail>,
    ) -> Option<Option<U>> {
        if self.members.iter().any(|(key, json)| key == name && json.get() == "null") {
            self.fail(name, "cannot be removed");
            return None;
        }
        self.optional(name, parse)
    }

    /// The member `name`, which must be an array of that many objects, each of which `read` accepts.
    pub fn each<U>(
        &mut self,
        name: &'static str,
        length: RangeInclusive<usize>,
        read: impl Fn(&mut Fields<'_>) -> Option<U>,
    ) -> Option<Vec<U>> {
        let json = self.member(name)?;
        let items = match json.map_or(Err("is required".into()), |json| items(json, &length)) {
            Ok(items) => items,
            Err(detail) => {
                self.fail(name, detail);
                return None;
            }
        };
        let place = Place::Member(&self.place, name);
        let mut values = Vec::with_capacity(items.len());
        let mut errors = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let place = Place::Item(&place, index);
            let mut fields = Fields { place, members: Vec::new(), errors: Vec::new(), body: self.body };
            if fields.open(item) {
                values.extend(read(&mut fields));
            }
            errors.append(&mut fields.errors);
        }
        let good = errors.is_empty();
        self.errors.append(&mut errors);
        good.then_some(values)
    }

    /// Notes that something is wrong with the member `name`, or with one below it: `lines/3/productId`.
    pub fn fail(&mut self, name: &str, detail: impl Into<Detail>) {
        self.errors.push(FieldError::at(format!("{}/{name}", self.place), detail.into()));
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
            self.fail(name, "is given more than once");
            return None;
        }
        Some(json.filter(|json| json.get() != "null"))
    }

    /// Takes the members out of `json`. If it is no object, that is noted, and there is nothing more to say.
    fn open(&mut self, json: &'a RawValue) -> bool {
        match serde_json::from_str::<Members<'a>>(json.get()) {
            Ok(Members(members)) => self.members = members,
            Err(_) => self.errors.push(FieldError::at(self.place.to_string(), "must be a JSON object")),
        }
        self.errors.is_empty()
    }
}

/// The parameters of one query, and the mistakes found so far.
pub struct Params<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    errors: Vec<FieldError>,
}

impl Params<'_> {
    /// The parameter `name`, which must be there.
    pub fn required<U, D: Into<Detail>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<U, D>,
    ) -> Option<U> {
        let read = self.optional(name, parse)?;
        if read.is_none() {
            self.errors.push(FieldError::of(name, "is required"));
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
                self.errors.push(FieldError::of(name, detail));
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
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), json)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name, json));
                }
                Ok(Members(members))
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

/// What serde_json says of one value, without the position, which would count from the start of that value.
fn plain(error: &serde_json::Error) -> Detail {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text[..end].to_owned().into()
}

fn finish<T>(value: Option<T>, errors: Vec<FieldError>) -> Result<T, Problem> {
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        _ => Err(Problem::invalid(errors)),
    }
}
