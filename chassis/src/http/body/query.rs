//! The parameters of a query, each read and checked on its own.

use std::borrow::Cow;

use url::form_urlencoded;

use crate::http::body::values::Detail;
use crate::problem::FieldError;

/// The parameters of one query, and the mistakes found so far.
pub struct QueryParams<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) errors: Vec<FieldError>,
}

impl<'a> QueryParams<'a> {
    pub(super) fn new(query: &'a str) -> Self {
        Self { pairs: form_urlencoded::parse(query.as_bytes()).collect(), errors: Vec::new() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::tests::locations;
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
    fn decodes_parameters_and_ignores_unknown_ones() {
        let search = read_query::<Search>("limit=5&word=a%20b%2B+c&other=1&other=2").unwrap();
        assert_eq!((search.word.as_str(), search.limit), ("a b+ c", Some(5)));
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
