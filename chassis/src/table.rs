//! Rows in memory, by numbers that are given one after the other.

use std::array;
use std::collections::BTreeMap;

/// Rows that lie side by side. Who looks for the next row passes at most so many gaps.
const BLOCK: usize = 64;

/// Rows by number: 1, 2, 3 and so on, with gaps where rows were removed. A row takes its own size and no more: its number says
/// where it lies. A list of them costs the same wherever it begins, for a block with nothing in it is gone.
pub struct Table<T> {
    blocks: BTreeMap<i64, Box<[Option<T>; BLOCK]>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    /// The row of this number.
    pub fn get(&self, number: i64) -> Option<&T> {
        let (block, at) = place(number);
        self.blocks.get(&block)?[at].as_ref()
    }

    /// The row of this number, to be changed.
    pub fn get_mut(&mut self, number: i64) -> Option<&mut T> {
        let (block, at) = place(number);
        self.blocks.get_mut(&block)?[at].as_mut()
    }

    /// Puts a row in the place of the one of this number, if there is one.
    pub fn put(&mut self, number: i64, row: T) {
        let (block, at) = place(number);
        self.blocks.entry(block).or_insert_with(|| Box::new(array::from_fn(|_| None)))[at] = Some(row);
    }

    /// Takes the row of this number out.
    pub fn remove(&mut self, number: i64) -> Option<T> {
        let (block, at) = place(number);
        let rows = self.blocks.get_mut(&block)?;
        let removed = rows[at].take();
        if rows.iter().all(Option::is_none) {
            self.blocks.remove(&block);
        }
        removed
    }

    /// The rows behind this number, or all, in their order.
    pub fn after(&self, number: Option<i64>) -> impl Iterator<Item = (i64, &T)> {
        let (first, skip) = number.map_or((i64::MIN, 0), |number| {
            let (block, at) = place(number);
            (block, at + 1)
        });
        self.blocks.range(first..).flat_map(move |(&block, rows)| {
            let rows = rows.iter().enumerate().skip(if block == first { skip } else { 0 });
            rows.filter_map(move |(at, row)| Some((block * BLOCK as i64 + at as i64, row.as_ref()?)))
        })
    }
}

/// The block that a number lies in, and where in it.
fn place(number: i64) -> (i64, usize) {
    let size = BLOCK as i64;
    (number.div_euclid(size), number.rem_euclid(size) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map keeps the same promises, at another price.
    #[test]
    fn a_table_is_a_map() {
        let (mut table, mut map) = (Table::default(), BTreeMap::new());
        let numbers = || (1..=200).chain([1000, 100_000, i64::MAX]);
        for number in numbers() {
            table.put(number, number % 1001);
            map.insert(number, number % 1001);
        }
        for number in numbers().filter(|n| n % 3 != 0 || (65..=190).contains(n)) {
            assert_eq!(table.remove(number), map.remove(&number));
            assert_eq!(table.remove(number), None, "{number} is gone");
        }
        table.put(3, 33);
        *table.get_mut(6).unwrap() = 66;
        map.extend([(3, 33), (6, 66)]);
        assert_eq!(table.blocks.len(), 2, "blocks with nothing in them are gone");
        for after in
            [None, Some(0), Some(2), Some(3), Some(63), Some(64), Some(66), Some(150), Some(1000), Some(i64::MAX)]
        {
            let expected = map.iter().filter(|(number, _)| after.is_none_or(|after| **number > after));
            let expected: Vec<_> = expected.map(|(&number, row)| (number, row)).collect();
            assert_eq!(table.after(after).collect::<Vec<_>>(), expected, "after {after:?}");
        }
        for number in (0..=200).chain([999, 1000, i64::MAX]) {
            assert_eq!(table.get(number), map.get(&number), "{number}");
        }
    }
}
