//! Which ids a batch has, and where each of them stands.

use std::ops::Range;

use crate::parallel::{Parallelism, SplitRows, join};

/// No distinct id of the batch.
const ABSENT: u32 = u32::MAX;

/// The distinct ids of a batch in ascending order, each with its places: a segment of a permutation of the batch.
///
/// The gradient of a gathered row is a sum over the places of its id (a segment sum). Here every id is met once, its
/// places in the order of the batch, so that sums have a fixed order and a row of a table one writer. Ascending ids let
/// the table be cut between workers at a row.
///
/// Finding them takes time linear in the batch, but for the sort of the distinct ids, and no memory beyond what
/// [`new`](Self::new) allocates.
///
/// ```
/// use cllm::gather::DistinctIds;
/// let mut distinct = DistinctIds::new(10, 4);
/// distinct.find([7, 2, 7]);
/// assert_eq!(distinct.ids(), [2, 7]);
/// assert_eq!(distinct.places(1), [0, 2]);
/// ```
#[derive(Clone, Debug)]
pub struct DistinctIds {
    /// For each row of the table, while `find` runs, how often its id comes and then its next place; ABSENT otherwise.
    slots: Vec<u32>,
    capacity: usize,
    /// The batch's ids as they come.
    batch: Vec<u32>,
    ids: Vec<u32>,
    /// Where the places of each id begin; one more than ids.
    starts: Vec<u32>,
    places: Vec<u32>,
}

impl DistinctIds {
    /// Room for batches of up to `capacity` ids below `table_rows`.
    ///
    /// # Panics
    /// If either is 2³² − 1 or more.
    #[must_use]
    pub fn new(table_rows: usize, capacity: usize) -> Self {
        assert!(table_rows < ABSENT as usize && capacity < ABSENT as usize, "{table_rows} rows, {capacity} places");
        Self {
            slots: vec![ABSENT; table_rows],
            capacity,
            batch: Vec::with_capacity(capacity),
            ids: Vec::with_capacity(capacity.min(table_rows)),
            starts: Vec::with_capacity(capacity.min(table_rows) + 1),
            places: Vec::with_capacity(capacity),
        }
    }

    /// Forgets the former batch and finds the distinct ids of this one. Allocates nothing within the capacity.
    ///
    /// # Panics
    /// If there are more ids than the capacity, or one is not below the number of rows.
    #[track_caller]
    pub fn find(&mut self, batch: impl IntoIterator<Item = u32>) {
        self.batch.clear();
        self.ids.clear();
        self.starts.clear();
        for id in batch {
            assert!(self.batch.len() < self.capacity, "more than {} ids", self.capacity);
            let rows = self.slots.len();
            let slot = self.slots.get_mut(id as usize);
            let slot = slot.unwrap_or_else(|| panic!("id {id} of a table of {rows} rows"));
            if *slot == ABSENT {
                *slot = 0;
                self.ids.push(id);
            }
            *slot += 1;
            self.batch.push(id);
        }
        self.sort_ids();
        // From the number of places of each id to where its next place goes.
        let mut start = 0;
        for &id in &self.ids {
            self.starts.push(start);
            start += std::mem::replace(&mut self.slots[id as usize], start);
        }
        self.starts.push(start);
        self.places.resize(self.batch.len(), 0);
        for (place, &id) in self.batch.iter().enumerate() {
            let next = &mut self.slots[id as usize];
            self.places[*next as usize] = place as u32;
            *next += 1;
        }
        self.ids.iter().for_each(|&id| self.slots[id as usize] = ABSENT);
    }

    /// Brings `ids` into ascending order, by their slots where those are not many more.
    fn sort_ids(&mut self) {
        const SLOTS_AN_ID: usize = 8;
        if self.ids.len() < self.slots.len() / SLOTS_AN_ID {
            return self.ids.sort_unstable();
        }
        self.ids.clear();
        let taken = (0u32..).zip(&self.slots).filter(|&(_, &slot)| slot != ABSENT);
        self.ids.extend(taken.map(|(id, _)| id));
    }

    /// Rows of the table: ids are below it.
    #[must_use]
    pub fn table_rows(&self) -> usize {
        self.slots.len()
    }

    /// The distinct ids, ascending.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The number of distinct ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the batch was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The places of the `index`-th distinct id, ascending.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    #[must_use]
    #[inline]
    pub fn places(&self, index: usize) -> &[u32] {
        &self.places[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    /// Puts `labels[place]` at each place, such as the text that it belongs to, until the next batch.
    ///
    /// # Panics
    /// If there are fewer labels than places.
    pub(crate) fn label_places(&mut self, labels: &[u32]) {
        self.places.iter_mut().for_each(|place| *place = labels[*place as usize]);
    }

    /// Runs `work` on contiguous ranges of distinct ids, one a worker, with about the same number of places each.
    ///
    /// `tables` has a row for each row of the table and is cut between the ids: `work(range, first, part)` gets the part
    /// whose first row is that of id `first`, and all ids of `range` lie in it. Allocates nothing.
    pub fn for_parts_of_table<P: SplitRows>(
        &self,
        parallelism: Parallelism,
        tables: P,
        work: &(impl Fn(Range<usize>, u32, P) + Sync),
    ) {
        let cut = |middle: usize, first: u32| (self.ids[middle] - first) as usize;
        self.split(parallelism.count(), 0..self.len(), 0, tables, &cut, work);
    }

    /// As [`for_parts_of_table`](Self::for_parts_of_table), with `rows` that have a row for each distinct id instead.
    pub fn for_parts<P: SplitRows>(&self, parallelism: Parallelism, rows: P, work: &(impl Fn(Range<usize>, P) + Sync)) {
        let cut = |middle: usize, first: u32| middle - first as usize;
        self.split(parallelism.count(), 0..self.len(), 0, rows, &cut, &|range, _, part| work(range, part));
    }

    /// `cut(middle, first)` is the row, in a part that begins at `first`, before which the `middle`-th id's part begins.
    fn split<P: SplitRows>(
        &self,
        workers: usize,
        range: Range<usize>,
        first: u32,
        part: P,
        cut: &(impl Fn(usize, u32) -> usize + Sync),
        work: &(impl Fn(Range<usize>, u32, P) + Sync),
    ) {
        let (start, end) = (self.starts.get(range.start), self.starts.get(range.end));
        let places = end.zip(start).map_or(0, |(end, start)| end - start);
        let left = workers / 2;
        let wanted = self.starts.get(range.start).map_or(0, |start| start + places / workers as u32 * left as u32);
        let middle = self.starts.partition_point(|&start| start < wanted).clamp(range.start, range.end);
        if workers == 1 || middle == range.start || middle == range.end {
            return work(range, first, part);
        }
        let at = cut(middle, first);
        let (top, bottom) = part.split_rows(at);
        join(
            || self.split(left, range.start..middle, first, top, cut, work),
            || self.split(workers - left, middle..range.end, first + at as u32, bottom, cut, work),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn batch(length: u64, rows: u64, step: u64) -> Vec<u32> {
        let stream = Stream::new(4, Purpose::Caller, step);
        (0..length).map(|index| stream.below(index, rows) as u32).collect()
    }

    #[test]
    fn every_place_is_found_once_at_its_id() {
        for (length, rows) in [(0, 5), (1, 1), (50, 7), (50, 1000), (300, 300)] {
            let mut distinct = DistinctIds::new(rows as usize, 300);
            // The second batch finds nothing of the first.
            for step in 0..2 {
                let batch = batch(length, rows, step);
                distinct.find(batch.iter().copied());
                assert!(distinct.ids().is_sorted_by(|a, b| a < b));
                let mut seen = vec![false; batch.len()];
                for (index, &id) in distinct.ids().iter().enumerate() {
                    assert!(distinct.places(index).is_sorted_by(|a, b| a < b) && !distinct.places(index).is_empty());
                    for &place in distinct.places(index) {
                        assert_eq!(batch[place as usize], id);
                        assert!(!std::mem::replace(&mut seen[place as usize], true));
                    }
                }
                assert!(seen.into_iter().all(|seen| seen), "{length} of {rows}");
            }
        }
    }

    #[test]
    fn parts_have_every_id_once_with_its_own_row() {
        for (length, rows) in [(0, 5), (1, 1), (50, 7), (50, 1000), (300, 300)] {
            let mut distinct = DistinctIds::new(rows as usize, 300);
            distinct.find(batch(length, rows, 0));
            for workers in 1..6 {
                let parallelism = Parallelism::workers(workers);
                let mut table = vec![0u32; rows as usize];
                distinct.for_parts_of_table(parallelism, &mut table[..], &|range, first, part| {
                    range.for_each(|index| part[(distinct.ids()[index] - first) as usize] += 1 + index as u32);
                });
                let mut expected = vec![0; rows as usize];
                distinct.ids().iter().enumerate().for_each(|(index, &id)| expected[id as usize] = 1 + index as u32);
                assert_eq!(table, expected, "{length} of {rows}, {workers} workers");

                let mut compact = vec![0u32; distinct.len()];
                distinct.for_parts(parallelism, &mut compact[..], &|range, part| {
                    part.iter_mut().zip(range).for_each(|(value, index)| *value += 1 + index as u32);
                });
                assert!(compact.into_iter().eq(1..=distinct.len() as u32), "{length} of {rows}, {workers} workers");
            }
        }
    }

    #[test]
    #[should_panic(expected = "more than 2 ids")]
    fn more_ids_than_the_capacity_panic() {
        DistinctIds::new(9, 2).find([1, 1, 1]);
    }

    #[test]
    #[should_panic(expected = "id 9 of a table of 9 rows")]
    fn an_id_outside_the_table_panics() {
        DistinctIds::new(9, 2).find([9]);
    }
}
