//! Value parsers for the members of a body ([`super::Members`]) and the parameters of a query ([`super::QueryParams`]).

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};
use serde_json::Value;

/// What is wrong with a value, as clients read it: `must be 1 to 64 characters`.
pub type Detail = Cow<'static, str>;

/// Accepts every JSON value of type `T`.
pub fn any<T>(value: T) -> Result<T, Detail> {
    Ok(value)
}

/// Accepts text whose number of characters is in `length`, without control characters (PostgreSQL cannot store U+0000) and
/// not blank.
pub fn text(length: RangeInclusive<usize>) -> impl Fn(String) -> Result<String, Detail> {
    move |text| {
        if !length.contains(&text.chars().count()) {
            return Err(format!("must be {} to {} characters", length.start(), length.end()).into());
        }
        if text.contains(char::is_control) {
            return Err("must not have control characters".into());
        }
        if text.chars().all(|c| c.is_whitespace() || is_invisible(c)) {
            return Err("must not be blank".into());
        }
        Ok(text)
    }
}

/// Returns whether a character shows nothing, or only changes how others are shown: a control or format character, a filler,
/// a variation selector. Spaces, such as U+0020 and U+3000, are not among them.
pub fn is_invisible(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    /// Blank by their shape, although Unicode counts them as letters or symbols.
    const BLANK: [char; 3] = ['\u{2800}', '\u{16fe4}', '\u{1d159}'];
    let category = || CodePointMapData::<GeneralCategory>::new().get(c);
    !(c.is_ascii_graphic() || c == ' ')
        && (BLANK.contains(&c)
            || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
            || matches!(category(), Control | Format | LineSeparator | ParagraphSeparator))
}

/// Accepts an integer in `range`, also as `1.0` or `1e0`. Rejects a number with a fraction and digits in quotes.
pub fn integer<T: TryFrom<i64> + Into<i64> + Copy>(range: RangeInclusive<T>) -> impl Fn(Value) -> Result<T, Detail> {
    let (min, max) = ((*range.start()).into(), (*range.end()).into());
    move |value| {
        let integer =
            value.as_i64().or_else(|| value.as_f64().and_then(whole)).filter(|integer| (min..=max).contains(integer));
        let integer = integer.and_then(|integer| T::try_from(integer).ok());
        integer.ok_or_else(|| format!("must be an integer from {min} to {max}").into())
    }
}

/// Returns the integer that a double is. `None` if it has a fraction, or is so large that it may stand for another integer.
fn whole(number: f64) -> Option<i64> {
    const LIMIT: f64 = 9_007_199_254_740_992.0; // 2^53
    (number.fract() == 0.0 && number.abs() < LIMIT).then_some(number as i64)
}

/// Parses a `T` from a string.
pub fn parsed<T: FromStr<Err: fmt::Display>>(text: String) -> Result<T, Detail> {
    text.parse().map_err(|error: T::Err| error.to_string().into())
}

/// Parses 1 to `max` values, separated by commas.
pub fn list<T: FromStr<Err: fmt::Display>>(max: usize) -> impl Fn(&str) -> Result<Vec<T>, Detail> {
    move |text| {
        if text.split(',').count() > max {
            return Err(format!("must be 1 to {max} values").into());
        }
        let parse = |part: &str| part.parse().map_err(|error: T::Err| format!("each {error}").into());
        text.split(',').map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_characters_and_rejects_control_characters() {
        let good = |given: &str| text(1..=3)(given.to_owned()).is_ok();
        for given in ["a", "äöü", "日本語", "🦀🦀🦀", " a ", "a\u{200d}"] {
            assert!(good(given), "{given:?}");
        }
        for given in ["", "abcd", "🦀🦀🦀🦀", "\0", "a\n", "\u{7f}", "\u{85}"] {
            assert!(!good(given), "{given:?}");
        }
    }

    #[test]
    fn rejects_blank_text() {
        for blank in [" ", "\u{a0}\u{3000}", "\u{200b}", "\u{3164} ", "\u{2800}\u{2800}", "\u{feff}", "\u{2028}"] {
            assert_eq!(text(1..=3)(blank.to_owned()), Err("must not be blank".into()), "{blank:?}");
        }
    }

    #[test]
    fn distinguishes_invisible_characters_from_visible_ones() {
        for c in [
            '\0', '\u{ad}', '\u{34f}', '\u{61c}', '\u{115f}', '\u{180e}', '\u{200b}', '\u{200c}', '\u{200d}',
            '\u{200e}',
        ]
        .into_iter()
        .chain([
            '\u{2028}', '\u{2029}', '\u{202e}', '\u{2060}', '\u{2066}', '\u{2800}', '\u{3164}', '\u{fe0f}', '\u{feff}',
        ])
        .chain(['\u{ffa0}', '\u{fff9}', '\u{1d159}', '\u{1d173}', '\u{e0001}', '\u{e0041}', '\u{e0100}'])
        {
            assert!(is_invisible(c), "{c:?}");
        }
        for c in ['a', '~', ' ', 'é', '\u{301}', 'ﬁ', '日', '\u{a0}', '\u{3000}', '🦀'] {
            assert!(!is_invisible(c), "{c:?}");
        }
    }

    #[test]
    fn parses_a_list_separated_by_commas_without_gaps() {
        let numbers = |given: &str| list::<u32>(3)(given).ok();
        assert_eq!(numbers("1"), Some(vec![1]));
        assert_eq!(numbers("3,1,3"), Some(vec![3, 1, 3]), "in the given order");
        for bad in ["", ",", "1,", ",1", "1,,2", "1;2", "1, 2", "1,x", "1,2,3,4"] {
            assert_eq!(numbers(bad), None, "{bad}");
        }
    }

    #[test]
    fn accepts_only_an_integer_in_the_range() {
        let good = |value: Value| integer(1..=10_u32)(value).is_ok();
        assert!(good(json!(1)) && good(json!(10)));
        for bad in [json!(0), json!(-1), json!(11), json!(1.5), json!("1"), json!(null), json!(u64::MAX)] {
            let detail = integer(1..=10_u32)(bad.clone()).expect_err("no such integer");
            assert_eq!(detail, "must be an integer from 1 to 10", "{bad}");
        }
    }

    /// JSON Schema calls `1.0` an integer.
    #[test]
    fn accepts_a_whole_number_in_each_of_its_forms() {
        let read = |json: &str| integer(-20..=i64::MAX)(serde_json::from_str(json).unwrap()).ok();
        for (json, number) in [("7", 7), ("7.0", 7), ("7e0", 7), ("0.7E1", 7), ("70e-1", 7), ("-2.0", -2), ("-0.0", 0)]
        {
            assert_eq!(read(json), Some(number), "{json}");
        }
        // A double with a larger value may stand for another integer than the text.
        for bad in ["7.5", "1e-3", "9007199254740993.0", "1e16", "1e300", "-21.0", "\"7\""] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
