//! JSON as it is sent. What serde writes is quick enough for most; rows of long lists write themselves, piece by piece,
//! which takes much less.

use jiff::Timestamp;
use serde::Serialize;
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
    /// The second of the last time that was written, since 1970, and how it is written as far as the decimals: rows that stand
    /// together are often of one second, and nothing else in a row takes as long.
    second: Option<(i64, [u8; 21])>,
}

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

    /// A time, as jiff writes it: with as many decimals as it has.
    pub fn time(&mut self, time: Timestamp) -> &mut Self {
        let (second, nanos) = (time.as_second(), time.subsec_nanosecond());
        if second < 0 || nanos <= 0 || nanos % 1000 != 0 {
            return self.written(&time);
        }
        let whole = match self.second {
            Some((last, whole)) if last == second => whole,
            _ => *format!("\"{time}").as_bytes().first_chunk().expect("it has decimals, and four digits in its year"),
        };
        self.second = Some((second, whole));
        let mut decimals = *b"000000";
        let mut left = nanos.unsigned_abs() / 1000;
        for digit in decimals.iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        let zeros = decimals.iter().rev().take_while(|digit| **digit == b'0').count();
        self.raw(&whole).raw(&decimals);
        self.text.truncate(self.text.len() - zeros);
        self.raw(b"Z\"")
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
        let times = ["0", "0.000001", "0.12345", "1795331234.000001", "1795331234.999999", "1795331235.123456"];
        let odd = ["-0.25", "-0.5", "-1", "-62135596800.123456", "1795331234.123456789", "1795331234.1234"];
        let times = times.iter().chain(&odd).map(|seconds| {
            let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, "0"));
            let nanos: i128 = format!("{decimals:0<9}").parse().unwrap();
            let sign = if whole.starts_with('-') { -1 } else { 1 };
            Timestamp::from_nanosecond(whole.parse::<i128>().unwrap() * 1_000_000_000 + sign * nanos).unwrap()
        });
        let mut expected = Vec::new();
        for number in [0, 7, -1, i64::MIN, i64::MAX] {
            json.raw(b"[").number(number).raw(b"]");
            expected.extend(serde_json::to_vec(&[number]).unwrap());
        }
        for time in times {
            json.time(time);
            expected.extend(serde_json::to_vec(&time).unwrap());
        }
        assert_eq!(String::from_utf8(json.finish()), String::from_utf8(expected));
    }
}
