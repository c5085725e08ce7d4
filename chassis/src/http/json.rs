//! JSON rendered without [`Entity`](crate::http::entity::Entity), and the responses made of it.
//!
//! Everything here is deleted together with the re-export in [`conditional`] as soon as all stores hold entities.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;
use serde::ser::Error as _;
pub use serde_json::Error;

use crate::http::conditional::{self, IfMatch};
use crate::http::page::{self, Rows};
use crate::problem::Problem;

/// Initial capacity for one entity or row, in bytes.
const ENTITY_SIZE: usize = 256;
const ROW_SIZE: usize = 128;

/// Checks `If-Match`, like [`conditional::check_if_match`].
///
/// # Errors
/// 412 unless the header names the tag of `entity` or is `*`.
pub fn check(if_match: Option<&IfMatch>, entity: &impl ToJson) -> Result<(), Problem> {
    let (_, tag) = represent(entity)?;
    conditional::check_tag(if_match, &tag)
}

/// Returns the response with one entity, like [`conditional::respond`].
///
/// # Errors
/// If the entity cannot be JSON.
pub fn show(entity: &impl ToJson, request: &HeaderMap) -> Result<Response, Problem> {
    let (json, tag) = represent(entity)?;
    Ok(conditional::respond_with(json, tag, request))
}

/// Returns the response to a creation, like [`conditional::respond_created`].
///
/// # Errors
/// If the entity cannot be JSON, or `location` is not a valid header value.
pub fn created(entity: &impl ToJson, location: &str) -> Result<Response, Problem> {
    conditional::mark_created(show(entity, &HeaderMap::new())?, location)
}

impl<T> Rows<T> {
    /// Returns the response to `GET uri`, like [`Rows::respond`], of the rows as `show` gives them.
    ///
    /// # Errors
    /// If a row cannot be JSON.
    pub fn answer<'a, V: ToJson + 'a, K: fmt::Display>(
        &'a self,
        uri: &Uri,
        show: impl Fn(&'a T) -> &'a V,
        key: impl Fn(&'a T) -> K,
    ) -> Result<Response, Problem> {
        let mut json = Writer::with_capacity(ROW_SIZE * self.rows.len());
        json.raw(b"[");
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                json.raw(b",");
            }
            show(row).to_json(&mut json).map_err(Problem::internal)?;
        }
        json.raw(b"]");
        Ok(page::respond_with(Body::from(json.finish()), self.next_link(uri, key)))
    }
}

fn represent(entity: &impl ToJson) -> Result<(Vec<u8>, HeaderValue), Problem> {
    let mut json = Writer::with_capacity(ENTITY_SIZE);
    entity.to_json(&mut json).map_err(Problem::internal)?;
    let json = json.finish();
    let mut hasher = DefaultHasher::new();
    hasher.write(&json);
    let tag = format!("\"{:016x}\"", hasher.finish());
    Ok((json, HeaderValue::try_from(tag).map_err(Problem::internal)?))
}

/// A type that is sent as JSON.
pub trait ToJson {
    /// Writes it.
    ///
    /// # Errors
    /// If it cannot be JSON.
    fn to_json(&self, json: &mut Writer) -> Result<(), Error>;
}

impl<T: Serialize + ?Sized> ToJson for T {
    fn to_json(&self, json: &mut Writer) -> Result<(), Error> {
        serde_json::to_writer(&mut json.text, self)
    }
}

/// JSON that is being written. Whoever writes it puts the pieces where JSON wants them.
#[derive(Default)]
pub struct Writer {
    text: Vec<u8>,
    /// The second of the last time that was written, since 1970, and how it is written, with decimals to be filled in: rows that
    /// stand together are often of one second, and nothing else in a row takes as long.
    second: Option<(i64, TimeText)>,
}

type TimeText = [u8; r#""2026-11-22T10:15:24.000000Z""#.len()];
const DECIMALS: Range<usize> = r#""2026-11-22T10:15:24."#.len()..r#""2026-11-22T10:15:24.000000"#.len();

impl Writer {
    /// One with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), second: None }
    }

    /// What is JSON already, or a piece of it.
    pub fn raw(&mut self, json: &[u8]) -> &mut Self {
        self.text.extend_from_slice(json);
        self
    }

    /// A number.
    pub fn number(&mut self, number: i64) -> &mut Self {
        self.written(&number)
    }

    /// A time in microseconds since 1970, as jiff writes it: with as many decimals as it has.
    ///
    /// # Errors
    /// If it is out of jiff's range.
    pub fn time(&mut self, micros: i64) -> Result<&mut Self, Error> {
        let (second, decimals) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if second < 0 || decimals == 0 {
            let time = Timestamp::from_microsecond(micros).map_err(Error::custom)?;
            return Ok(self.written(&time));
        }
        let mut text = match self.second {
            Some((last, text)) if last == second => text,
            _ => {
                let time = Timestamp::new(second, 1000).map_err(Error::custom)?; // one with all decimals
                let text = *format!("\"{time}\"").as_bytes().first_chunk().ok_or_else(|| Error::custom("no time"))?;
                self.second.insert((second, text)).1
            }
        };
        let mut left = decimals;
        for digit in text[DECIMALS].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        self.raw(&text);
        if decimals % 10 == 0 {
            let zeros = text[DECIMALS].iter().rev().take_while(|digit| **digit == b'0').count();
            self.text.truncate(self.text.len() - zeros - "Z\"".len());
            self.raw(b"Z\"");
        }
        Ok(self)
    }

    /// The JSON.
    pub fn finish(self) -> Vec<u8> {
        self.text
    }

    /// What can always be JSON.
    fn written(&mut self, value: &impl Serialize) -> &mut Self {
        let _ = serde_json::to_writer(&mut self.text, value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_what_serde_writes() {
        let mut json = Writer::default();
        let times = [0, 1, 123_450, 1_795_331_234_000_001, 1_795_331_234_999_999, 1_795_331_235_123_450];
        let odd = [1_795_331_235_000_000, 1_795_331_235_100_000, -250_000, -1_000_000, -62_135_596_800_123_456];
        let mut expected = Vec::new();
        for number in [0, 7, -1, i64::MIN, i64::MAX] {
            json.raw(b"[").number(number).raw(b"]");
            expected.extend(serde_json::to_vec(&[number]).unwrap());
        }
        for micros in times.into_iter().chain(odd) {
            json.time(micros).unwrap();
            expected.extend(serde_json::to_vec(&Timestamp::from_microsecond(micros).unwrap()).unwrap());
        }
        for beyond in [i64::MIN, i64::MAX] {
            assert!(json.time(beyond).is_err(), "{beyond}");
        }
        assert_eq!(String::from_utf8(json.finish()), String::from_utf8(expected));
    }
}
