//! How an operation is split over workers: one explicit argument, no global state.
//!
//! An operation that takes a [`Parallelism`] splits its rows (or its panels) into that many contiguous parts and runs
//! them on the rayon pool it is called in. The split depends on the number of workers alone, never on which thread is
//! free, so the same number of workers gives the same bits.

mod awake;
mod waiting;

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

pub(crate) use awake::{awake, join};
pub(crate) use waiting::pause;

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

/// Runs `work(index, item)` on every item, spread over the rayon pool by recursive halving. Allocates nothing.
pub fn for_each_indexed<T: Send>(items: &mut [T], work: &(impl Fn(usize, &mut T) + Sync)) {
    halve(0, items, work);
}

fn halve<T: Send>(first: usize, items: &mut [T], work: &(impl Fn(usize, &mut T) + Sync)) {
    match items {
        [] => {}
        [item] => work(first, item),
        _ => {
            let middle = items.len() / 2;
            let (left, right) = items.split_at_mut(middle);
            join(|| halve(first, left, work), || halve(first + middle, right, work));
        }
    }
}

/// Something made of rows that can be cut in two between rows: views, slices with an item a row, and tuples of them.
pub trait SplitRows: Sized + Send {
    /// The rows before `at`, and the rest.
    fn split_rows(self, at: usize) -> (Self, Self);
}

impl<T: Sync> SplitRows for ArrayView2<'_, T> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        self.split_at(Axis(0), at)
    }
}

impl<T: Send> SplitRows for ArrayViewMut2<'_, T> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        self.split_at(Axis(0), at)
    }
}

impl<T: Sync> SplitRows for &[T] {
    fn split_rows(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }
}

impl<T: Send> SplitRows for &mut [T] {
    fn split_rows(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<P: SplitRows> SplitRows for Option<P> {
    fn split_rows(self, at: usize) -> (Self, Self) {
        self.map(|part| part.split_rows(at)).unzip()
    }
}

macro_rules! split_tuple {
    ($($part:ident),+) => {
        impl<$($part: SplitRows),+> SplitRows for ($($part,)+) {
            #[allow(non_snake_case)]
            fn split_rows(self, at: usize) -> (Self, Self) {
                let ($($part,)+) = self;
                $(let $part = $part.split_rows(at);)+
                (($($part.0,)+), ($($part.1,)+))
            }
        }
    };
}
split_tuple!(A, B);
split_tuple!(A, B, C);
split_tuple!(A, B, C, D);
split_tuple!(A, B, C, D, E);

/// Runs `work` on contiguous groups of `rows` rows, one group a worker, and combines the results in row order.
/// Allocates nothing.
pub fn map_rows<P: SplitRows, R: Send>(
    parallelism: Parallelism,
    rows: usize,
    parts: P,
    work: &(impl Fn(P) -> R + Sync),
    combine: &(impl Fn(R, R) -> R + Sync),
) -> R {
    let workers = parallelism.count().min(rows);
    if workers <= 1 {
        return work(parts);
    }
    let left = workers / 2;
    let at = rows * left / workers;
    let (top, bottom) = parts.split_rows(at);
    let (top, bottom) = join(
        || map_rows(Parallelism(left), at, top, work, combine),
        || map_rows(Parallelism(workers - left), rows - at, bottom, work, combine),
    );
    combine(top, bottom)
}

/// Runs `work` on contiguous groups of `rows` rows, one group a worker. Allocates nothing.
pub fn for_rows<P: SplitRows>(parallelism: Parallelism, rows: usize, parts: P, work: &(impl Fn(P) + Sync)) {
    map_rows(parallelism, rows, parts, work, &|(), ()| ());
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
                    assert!(range.start.is_multiple_of(8) || range.start == length);
                    next = range.end;
                }
                assert_eq!(next, length);
            }
        }
    }

    #[test]
    fn every_item_is_visited_once() {
        let mut items = vec![0; 37];
        for_each_indexed(&mut items, &|index, item| *item += index);
        assert_eq!(items, (0..37).collect::<Vec<_>>());
    }
}
