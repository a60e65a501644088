//! The part of a matrix that is needed next, brought into the second-level cache while the processor computes.

use super::dispatch::prefetch_line;
use super::lanes::LANES;
use super::tile::Factor;

/// The cache lines of a part of a matrix, row by row; some are asked for at each [`advance`](Ahead::advance).
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    start: *const f32,
    stride: usize,
    rows: usize,
    lines: usize,
    /// Row and line that come next.
    next: (usize, usize),
    at_once: usize,
}

impl Ahead {
    /// No lines.
    pub const NONE: Self = Self { start: std::ptr::null(), stride: 0, rows: 0, lines: 0, next: (0, 0), at_once: 0 };

    /// The first `rows` × `columns` elements of `matrix`, spread over `times` calls.
    pub fn of(matrix: Factor, (rows, columns): (usize, usize), times: usize) -> Self {
        let Factor { start, row_stride, column_stride } = matrix;
        // As many rows as lie contiguously in memory.
        let (stride, rows, length) =
            if column_stride == 1 { (row_stride, rows, columns) } else { (column_stride, columns, rows) };
        let lines = length.div_ceil(LANES);
        Self { start, stride, rows, lines, next: (0, 0), at_once: (rows * lines).div_ceil(times) }
    }

    /// Asks for some lines more.
    #[inline(always)]
    pub fn advance(&mut self) {
        for _ in 0..self.at_once {
            self.next().into_iter().for_each(prefetch_line);
        }
    }
}

/// An element of each line.
impl Iterator for Ahead {
    type Item = *const f32;

    #[inline(always)]
    fn next(&mut self) -> Option<*const f32> {
        let (row, line) = self.next;
        if row == self.rows {
            return None;
        }
        self.next = if line + 1 == self.lines { (row + 1, 0) } else { (row, line + 1) };
        Some(self.start.wrapping_add(row * self.stride + line * LANES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_asked_for_once_within_the_times_given() {
        let matrix = vec![0.0f32; 40 * 100];
        for (rows, columns) in [(1, 1), (16, 64), (33, 100), (40, 16)] {
            for (row_stride, column_stride) in [(100, 1), (1, 40)] {
                let times = 7;
                let factor = Factor { start: matrix.as_ptr(), row_stride, column_stride };
                let mut ahead = Ahead::of(factor, (rows, columns), times);
                let mut seen = vec![0; matrix.len()];
                for at in ahead {
                    let first = (at as usize - matrix.as_ptr() as usize) / size_of::<f32>();
                    let last = (first + LANES).min(matrix.len());
                    seen[first..last].iter_mut().for_each(|seen| *seen += 1);
                }
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    // Where a line reaches into the next row, that row's first line is asked for too.
                    let seen = seen[i * row_stride + j * column_stride];
                    assert!((1..=2).contains(&seen), "{rows} × {columns}, ({i}, {j}): {seen} times");
                }
                (0..times).for_each(|_| ahead.advance());
                assert_eq!(ahead.next(), None, "{rows} × {columns}");
            }
        }
        let mut nothing = Ahead::NONE;
        assert_eq!(nothing.next(), None);
    }
}
