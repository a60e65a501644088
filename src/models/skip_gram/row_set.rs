//! Which rows of the two tables a worker is going to read and update, for the others to know.

/// Bits of a set.
const BITS: usize = 1 << 14;

/// A table of a skip-gram model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableName {
    Input,
    Output,
}

/// A set of rows that may seem to have a few more than were inserted: a Bloom filter with one hash (Bloom, "Space/time
/// trade-offs in hash coding with allowable errors", 1970).
#[derive(Clone, Debug)]
pub(crate) struct RowSet([u64; BITS / 64]);

impl Default for RowSet {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl RowSet {
    pub const EMPTY: Self = Self([0; BITS / 64]);

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    pub fn insert(&mut self, table: TableName, row: u32) {
        let (word, bit) = place(table, row);
        self.0[word] |= bit;
    }

    /// True for every row that was inserted.
    pub fn may_contain(&self, table: TableName, row: u32) -> bool {
        let (word, bit) = place(table, row);
        self.0[word] & bit != 0
    }
}

/// Which rows are in one set, and which in several.
#[derive(Default)]
pub(crate) struct RowCount {
    in_one: RowSet,
    in_several: RowSet,
}

impl RowCount {
    /// Takes one set more.
    pub fn add(&mut self, set: &RowSet) {
        for ((one, several), new) in self.in_one.0.iter_mut().zip(&mut self.in_several.0).zip(&set.0) {
            *several |= *one & new;
            *one |= new;
        }
    }

    /// The bits that two or more of the sets have.
    pub fn in_several(self) -> RowSet {
        self.in_several
    }
}

/// The word and the bit that stand for a row, by Fibonacci hashing.
fn place(table: TableName, row: u32) -> (usize, u64) {
    let key = (u64::from(row) << 1 | u64::from(table == TableName::Output)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bit = (key >> (64 - BITS.trailing_zeros())) as usize;
    (bit / 64, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_workers_are_in_several_sets_and_few_others_seem_to_be() {
        let mut sets = [RowSet::EMPTY, RowSet::EMPTY, RowSet::EMPTY];
        // Worker w has the rows from 200·w to 200·w + 299: neighbours have a third in common.
        for (worker, set) in (0..).zip(&mut sets) {
            (200 * worker..200 * worker + 300).for_each(|row| set.insert(TableName::Input, row));
        }
        sets[0].insert(TableName::Output, 5);
        let mut count = RowCount::default();
        sets.iter().for_each(|set| count.add(set));
        let several = count.in_several();
        let seems = |row: u32| several.may_contain(TableName::Input, row);
        let shared = |row: u32| (200..300).contains(&row) || (400..500).contains(&row);
        assert!((0..700).filter(|&row| shared(row)).all(seems));
        let others = (0..700).filter(|&row| !shared(row) && seems(row)).count();
        assert!(others < 50, "{others} of 500");
        assert!(!several.may_contain(TableName::Output, 5));
        assert!(sets[0].may_contain(TableName::Output, 5) && !sets[0].may_contain(TableName::Input, 5000));
        sets[0].clear();
        assert!(!sets[0].may_contain(TableName::Output, 5));
    }
}
