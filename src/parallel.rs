//! How an operation is split over workers: one explicit argument, no global state.
//!
//! An operation that takes a [`Parallelism`] splits its rows (or its panels) into that many contiguous parts and runs
//! them on the rayon pool it is called in. The split depends on the number of workers alone, never on which thread is
//! free, so the same number of workers gives the same bits.

use std::ops::Range;

/// The number of workers an operation is split over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallelism(usize);

impl Parallelism {
    /// One worker: the calling thread.
    pub const SEQUENTIAL: Self = Self(1);

    /// `workers` workers; 0 counts as 1.
    #[must_use]
    pub const fn workers(workers: usize) -> Self {
        Self(if workers == 0 { 1 } else { workers })
    }

    /// The number of workers.
    #[must_use]
    pub const fn count(self) -> usize {
        self.0
    }
}

/// The part of `0..length` that belongs to `part` of `parts`: contiguous, in order, each boundary a multiple of `unit`.
#[must_use]
pub fn part_of(length: usize, unit: usize, part: usize, parts: usize) -> Range<usize> {
    let units = length.div_ceil(unit);
    let bound = |part: usize| (units * part / parts * unit).min(length);
    bound(part)..bound(part + 1)
}

/// Runs `work` on every item, the items spread over the rayon pool by recursive halving. Allocates nothing.
pub fn for_each<T: Send>(items: &mut [T], work: &(impl Fn(&mut T) + Sync)) {
    match items {
        [] => {}
        [item] => work(item),
        _ => {
            let (left, right) = items.split_at_mut(items.len() / 2);
            rayon::join(|| for_each(left, work), || for_each(right, work));
        }
    }
}

/// Runs `work(index)` for every index in `range`, spread over the rayon pool by recursive halving. Allocates nothing.
pub fn for_each_index(range: Range<usize>, work: &(impl Fn(usize) + Sync)) {
    match range.len() {
        0 => {}
        1 => work(range.start),
        length => {
            let middle = range.start + length / 2;
            rayon::join(|| for_each_index(range.start..middle, work), || for_each_index(middle..range.end, work));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_range_once_and_start_on_units() {
        for length in 0..100 {
            for parts in 1..6 {
                let mut next = 0;
                for part in 0..parts {
                    let range = part_of(length, 8, part, parts);
                    assert_eq!(range.start, next);
                    assert!(range.start % 8 == 0 || range.start == length);
                    next = range.end;
                }
                assert_eq!(next, length);
            }
        }
    }

    #[test]
    fn every_item_is_visited_once() {
        let mut items = vec![0; 37];
        for_each(&mut items, &|item| *item += 1);
        assert_eq!(items, vec![1; 37]);
    }
}
