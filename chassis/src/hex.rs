//! Hexadecimal digits of ids. `format!` takes ten times as long for them, and every request has some.

use std::ops::Deref;
use std::str;

use uuid::Uuid;
use uuid::fmt::Simple;

/// The last `N` hexadecimal digits of a number, in lower case.
pub(crate) struct Hex<const N: usize>([u8; Simple::LENGTH]);

impl<const N: usize> Hex<N> {
    pub(crate) fn of(number: u128) -> Self {
        let mut digits = [0; Simple::LENGTH];
        Uuid::from_u128(number).simple().encode_lower(&mut digits);
        Self(digits)
    }
}

impl<const N: usize> Deref for Hex<N> {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0[Simple::LENGTH - N..]).unwrap_or_default() // digits are ASCII
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_format_writes() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u128::from(u64::MAX), u128::MAX - 0xf0] {
            assert_eq!(*Hex::<32>::of(number), format!("{number:032x}"));
            assert_eq!(*Hex::<16>::of(number), format!("{:016x}", number as u64));
            assert_eq!(*Hex::<2>::of(number), format!("{:02x}", number as u8));
        }
    }
}
