//! Money, exact to the cent.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An amount of money from 0 to [`Money::MAX`], held in whole cents.
///
/// On the wire it is a JSON number with at most two decimals. Most readers parse a JSON number as a double. Below 10^13 the
/// double nearest to an amount prints as that amount, so no reader loses a cent. Sums and products are computed in cents,
/// never in floating point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(i64);

impl Money {
    /// The largest amount that a JSON number carries exactly: 9,999,999,999,999.99.
    pub const MAX: Self = Self(999_999_999_999_999);

    /// Returns the amount with this number of cents. `None` if it is negative or above [`Money::MAX`].
    pub const fn from_cents(cents: i64) -> Option<Self> {
        if cents >= 0 && cents <= Self::MAX.0 { Some(Self(cents)) } else { None }
    }

    /// Returns the amount in cents.
    pub const fn cents(self) -> i64 {
        self.0
    }

    /// Returns the amount multiplied by `quantity`. `None` above [`Money::MAX`].
    pub fn times(self, quantity: u32) -> Option<Self> {
        self.0.checked_mul(quantity.into()).and_then(Self::from_cents)
    }

    /// Returns the sum of the amounts. `None` if one of them is `None`, or above [`Money::MAX`].
    pub fn total(amounts: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let add = |sum: i64, amount: Option<Self>| sum.checked_add(amount?.0);
        amounts.into_iter().try_fold(0, add).and_then(Self::from_cents)
    }

    /// Returns the amount that this double stands for. `None` if it has more than two decimals.
    fn from_f64(amount: f64) -> Option<Self> {
        let cents = (amount * 100.0).round();
        // The range is checked before the cast, because `as` would turn a NaN or an infinity into a number.
        let exact = cents / 100.0 == amount && (0.0..=Self::MAX.0 as f64).contains(&cents);
        exact.then_some(Self(cents as i64))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 100 {
            0 => serializer.serialize_i64(self.0 / 100),
            _ => serializer.serialize_f64(self.0 as f64 / 100.0),
        }
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MoneyVisitor;

        impl Visitor<'_> for MoneyVisitor {
            type Value = Money;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount from 0 to 9999999999999.99 with at most two decimals")
            }

            fn visit_u64<E: de::Error>(self, whole: u64) -> Result<Money, E> {
                let cents = i64::try_from(whole).ok().and_then(|whole| whole.checked_mul(100));
                let money = cents.and_then(Money::from_cents);
                money.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(whole), &self))
            }

            fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Money, E> {
                Err(E::invalid_value(Unexpected::Signed(whole), &self)) // serde_json passes integers from 0 as u64
            }

            fn visit_f64<E: de::Error>(self, amount: f64) -> Result<Money, E> {
                Money::from_f64(amount).ok_or_else(|| E::invalid_value(Unexpected::Float(amount), &self))
            }
        }

        deserializer.deserialize_any(MoneyVisitor)
    }
}

impl PartialSchema for Money {
    /// The schema has no `multipleOf`: a validator that computes in floating point would reject 599.99 for 0.01.
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Number)
            .description(Some("An amount with at most two decimals"))
            .minimum(Some(0))
            .examples([999.99])
            .into()
    }
}

impl ToSchema for Money {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Option<Money> {
        serde_json::from_str(json).ok()
    }

    #[test]
    fn writes_an_amount_with_no_more_decimals_than_needed() {
        for (cents, json) in [(0, "0"), (1, "0.01"), (10, "0.1"), (59_900, "599"), (99_999, "999.99")] {
            assert_eq!(serde_json::to_string(&Money(cents)).expect("money is JSON"), json);
        }
    }

    #[test]
    fn rejects_values_that_are_not_amounts() {
        for json in [
            "-0.01",
            "-1",
            "19.999",
            "0.001",
            "1e14",
            "1e999",
            "9223372036854775807",
            "9223372036854775808",
            "\"19.99\"",
            "null",
            "true",
            "NaN",
            "[1]",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(read("19.990"), Some(Money(1999)), "a trailing zero does not count as a third decimal");
        assert_eq!(read("1e2"), Some(Money(10_000)));
    }

    proptest! {
        /// Checks amounts up to [`Money::MAX`]: the JSON is the decimal text, and is read back as the same number of cents.
        #[test]
        fn reads_every_amount_back_as_it_was_written(cents in 0..=Money::MAX.0) {
            let money = Money(cents);
            let json = serde_json::to_string(&money).expect("money is JSON");
            prop_assert_eq!(read(&json), Some(money));
            prop_assert_eq!(read(&money.to_string()), Some(money), "the decimal text means the same amount");
            let (whole, cents) = json.split_once('.').unwrap_or((&json, ""));
            prop_assert_eq!(format!("{whole}.{cents:0<2}"), money.to_string());
        }

        /// Compares with a sum in 128-bit integers.
        #[test]
        fn computes_totals_without_rounding(lines in prop::collection::vec((0..=100_000_000_i64, 1..=10_000_u32), 0..=100)) {
            let exact: i128 = lines.iter().map(|&(cents, n)| i128::from(cents) * i128::from(n)).sum();
            let total = Money::total(lines.iter().map(|&(cents, n)| Money(cents).times(n)));
            prop_assert_eq!(total.map(|total| i128::from(total.cents())), Some(exact));
        }
    }
}
