//! The parameters of a query, each read and checked on its own.

use std::borrow::Cow;

use url::form_urlencoded;

use crate::http::body::values::Detail;
use crate::problem::{FieldError, Problem};

/// Maximum unknown parameters that one response lists.
const MAX_UNKNOWN: usize = 16;

/// The parameters of one query, and the mistakes found so far.
pub struct QueryParams<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The names that were read. Each other name is a mistake: a misspelt filter must not return everything.
    known: Vec<&'static str>,
    pub(super) errors: Vec<FieldError>,
}

impl<'a> QueryParams<'a> {
    pub(super) fn new(query: &'a str) -> Self {
        Self { pairs: form_urlencoded::parse(query.as_bytes()).collect(), known: Vec::new(), errors: Vec::new() }
    }

    /// Records each parameter that was not read, and returns all mistakes.
    pub(super) fn finish(mut self) -> Vec<FieldError> {
        let mut unknown: Vec<&str> = Vec::new();
        for (name, _) in &self.pairs {
            if unknown.len() < MAX_UNKNOWN && !self.known.contains(&&**name) && !unknown.contains(&&**name) {
                unknown.push(name);
            }
        }
        let known = || match self.known.as_slice() {
            [] => "no parameters".to_owned(),
            [only] => (*only).to_owned(),
            [names @ .., last] => format!("{} and {last}", names.join(", ")),
        };
        let error = |name| FieldError::in_parameter(name, format!("is unknown; this call has {}", known()));
        self.errors.extend(unknown.into_iter().map(error));
        self.errors
    }

    /// Reads the parameter `name`, which must be present.
    pub fn required<U, D: Into<Detail>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<U, D>,
    ) -> Option<U> {
        let value = self.optional(name, parse)?;
        if value.is_none() {
            self.errors.push(FieldError::in_parameter(name, "is required"));
        }
        value
    }

    /// Reads the parameter `name`. Returns `Some(None)` if it is absent. A repeated parameter is a mistake.
    pub fn optional<U, D: Into<Detail>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<U, D>,
    ) -> Option<Option<U>> {
        self.known.push(name);
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let parsed = match (values.next(), values.next()) {
            (None, _) => return Some(None),
            (Some(value), None) => parse(value).map_err(Into::into),
            (Some(_), Some(_)) => Err("is given more than once".into()),
        };
        match parsed {
            Ok(value) => Some(Some(value)),
            Err(detail) => {
                self.errors.push(FieldError::in_parameter(name, detail));
                None
            }
        }
    }
}

/// Rejects every parameter of a query, for a call that has none.
///
/// # Errors
/// If the query has a parameter.
pub(crate) fn reject_all(query: &str) -> Result<(), Problem> {
    let errors = QueryParams::new(query).finish();
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::tests::{locations, mistakes};
    use crate::http::body::{FromQuery, read_query};

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

    #[test]
    fn decodes_parameters() {
        let search = read_query::<Search>("limit=5&word=a%20b%2B+c&").unwrap();
        assert_eq!((search.word.as_str(), search.limit), ("a b+ c", Some(5)));
    }

    #[test]
    fn rejects_an_unknown_parameter_and_lists_the_known_ones() {
        let unknown = |name: &str| (name.to_owned(), "is unknown; this call has word and limit".to_owned());
        assert_eq!(mistakes(read_query::<Search>("word=a&Limit=5")), [unknown("Limit")]);
        assert_eq!(mistakes(read_query::<Search>("word=a&word[]=b&=1&word[]=c")), [unknown("word[]"), unknown("")]);
        assert_eq!(locations(read_query::<Search>("limit=x&wort=a")), ["word", "limit", "wort"]);
        let many: String = (0..1000).map(|n| format!("&x{n}=")).collect();
        assert_eq!(locations(read_query::<Search>(&format!("word=a{many}"))).len(), MAX_UNKNOWN);
    }

    #[test]
    fn says_that_a_call_has_no_parameters() {
        let mistake = |query: &str| reject_all(query).map_err(|problem| mistakes::<()>(Err(problem)));
        assert_eq!(mistake("a=1"), Err(vec![("a".to_owned(), "is unknown; this call has no parameters".to_owned())]));
        assert!(mistake("").is_ok() && mistake("&").is_ok());
    }

    #[test]
    fn reports_every_missing_repeated_or_invalid_parameter() {
        for (query, expected) in [
            ("", vec!["word"]),
            ("limit=x", vec!["word", "limit"]),
            ("word=a&limit=", vec!["limit"]),
            ("word=a&limit=1&limit=1", vec!["limit"]),
            ("word=a&word=b&limit=x", vec!["word", "limit"]),
        ] {
            assert_eq!(locations(read_query::<Search>(query)), expected, "{query}");
        }
    }
}
