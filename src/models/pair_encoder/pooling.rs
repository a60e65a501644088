//! From tokens to a vector of length 1, and the gradient's way back to the sum before it was normalised.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::data::TokenRows;
use crate::kernels::elementwise::{add_assign, all_finite, axpy, dot, scale, squared_norm};
use crate::kernels::gathered::gathered_sum;
use crate::parallel::{Parallelism, SplitRows, for_rows, map_rows};

/// A vector that is shorter than this counts as 0.
const SHORTEST: f64 = 1e-12;

/// The vectors of all tokens, and their weights.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub vectors: &'a [f32],
    pub weights: Option<&'a [f32]>,
}

/// The numbers of consecutive texts, which are split like rows.
struct Numbers(std::ops::Range<usize>);

impl SplitRows for Numbers {
    fn split_rows(self, at: usize) -> (Self, Self) {
        let middle = self.0.start + at;
        (Self(self.0.start..middle), Self(middle..self.0.end))
    }
}

/// Row i of `vectors` ← the sum s of text i, brought to the length ℓ that `length_of` gives for it; `factors[i]` ← ℓ/‖s‖,
/// or 0 where s is too short.
pub(super) fn pool(
    table: Table<'_>,
    texts: &TokenRows,
    length_of: &(impl Fn(usize) -> f32 + Sync),
    vectors: ArrayViewMut2<'_, f32>,
    factors: Option<&mut [f32]>,
    parallelism: Parallelism,
) {
    let (ids, ends) = (texts.ids(), texts.ends());
    let work = |(Numbers(numbers), mut vectors, mut factors): (_, ArrayViewMut2<'_, f32>, Option<&mut [f32]>)| {
        let mut place = numbers.start.checked_sub(1).map_or(0, |before| ends[before]);
        for (index, (number, mut row)) in numbers.zip(vectors.rows_mut()).enumerate() {
            let sum = row.as_slice_mut().expect("rows of vectors are contiguous");
            let tokens = &ids[place..ends[number]];
            place = ends[number];
            gathered_sum(sum, table.vectors, tokens, table.weights);
            let factor = bring_to_length(sum, length_of(number), SHORTEST);
            if let Some(factors) = &mut factors {
                factors[index] = factor;
            }
        }
    };
    for_rows(parallelism, texts.len(), (Numbers(0..texts.len()), vectors, factors), &work);
}

/// x ← ℓ·x/‖x‖, or 0 where x is shorter than `shortest`; returns the factor.
fn bring_to_length(x: &mut [f32], length: f32, shortest: f64) -> f32 {
    let former = squared_norm(x).sqrt();
    // A length that is not a number passes, so that the loss tells.
    let factor = if former < shortest { 0.0 } else { (f64::from(length) / former) as f32 };
    scale(x, factor);
    factor
}

/// v ← f·(d − v·(v·d)/ℓ²), for every row: from d, the gradient of v = ℓ·x/‖x‖, that of x, where f = ℓ/‖x‖ is the row's
/// factor. Returns whether all is finite.
pub(super) fn replace_by_gradient(
    vectors: ArrayViewMut2<'_, f32>,
    d_vectors: ArrayView2<'_, f32>,
    factors: &[f32],
    length: f32,
    parallelism: Parallelism,
) -> bool {
    let inverse_square = f64::from(length).powi(-2);
    let work = |(mut vectors, d_vectors, factors): (ArrayViewMut2<'_, f32>, ArrayView2<'_, f32>, &[f32])| {
        let mut finite = true;
        for ((mut vector, d_vector), &factor) in vectors.rows_mut().into_iter().zip(d_vectors.rows()).zip(factors) {
            let vector = vector.as_slice_mut().expect("rows of vectors are contiguous");
            let d_vector = slice(&d_vector);
            let along = f64::from(dot(vector, d_vector)) * inverse_square;
            scale(vector, (-f64::from(factor) * along) as f32);
            axpy(vector, factor, d_vector);
            finite &= all_finite(vector);
        }
        finite
    };
    map_rows(parallelism, factors.len(), (vectors, d_vectors, factors), &work, &|a, b| a && b)
}

/// Every row of `prefixes` ← the first values of the row of `vectors`, at its length; `prefix_factors` ← what the sums that
/// these were by `factors` were multiplied with in all.
pub(super) fn take_prefixes(
    vectors: ArrayView2<'_, f32>,
    factors: &[f32],
    length_of: &(impl Fn(usize) -> f32 + Sync),
    prefixes: ArrayViewMut2<'_, f32>,
    prefix_factors: &mut [f32],
    parallelism: Parallelism,
) {
    let parts = (Numbers(0..factors.len()), vectors, factors, prefixes, prefix_factors);
    for_rows(parallelism, factors.len(), parts, &|(
        Numbers(numbers),
        vectors,
        factors,
        mut prefixes,
        prefix_factors,
    )| {
        let rows = numbers.zip(vectors.rows()).zip(prefixes.rows_mut());
        for ((((number, vector), mut prefix), factor), prefix_factor) in rows.zip(factors).zip(prefix_factors) {
            let prefix = prefix.as_slice_mut().expect("rows of prefixes are contiguous");
            prefix.copy_from_slice(&slice(&vector)[..prefix.len()]);
            let length = length_of(number);
            *prefix_factor = factor * bring_to_length(prefix, length, SHORTEST * f64::from(length));
        }
    });
}

/// Adds the rows of `prefixes` to the first values of those of `rows`; returns whether all sums are finite.
pub(super) fn add_prefixes(
    prefixes: ArrayView2<'_, f32>,
    rows: ArrayViewMut2<'_, f32>,
    parallelism: Parallelism,
) -> bool {
    let work = |(prefixes, mut rows): (ArrayView2<'_, f32>, ArrayViewMut2<'_, f32>)| {
        let mut finite = true;
        for (prefix, mut row) in prefixes.rows().into_iter().zip(rows.rows_mut()) {
            let prefix = slice(&prefix);
            let start = &mut row.as_slice_mut().expect("rows are contiguous")[..prefix.len()];
            add_assign(start, prefix);
            finite &= all_finite(start);
        }
        finite
    };
    map_rows(parallelism, prefixes.nrows(), (prefixes, rows), &work, &|a, b| a && b)
}

fn slice<'a>(row: &ndarray::ArrayView1<'a, f32>) -> &'a [f32] {
    row.to_slice().expect("rows are contiguous")
}
