//! JSON as it is sent. What serde writes is quick enough for most; rows of long lists write themselves, piece by piece,
//! which takes much less.

use std::ops::Range;

use jiff::Timestamp;
use serde::Serialize;
use serde::ser::Error as _;
pub use serde_json::Error;

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
